/* Listings that the kernel keeps, and their ends. */

#ifndef FUSEFS_LISTING_H
#define FUSEFS_LISTING_H

#define FUSE_USE_VERSION 314
#include <Python.h>

#include <fuse_lowlevel.h>
#include <stdint.h>

/* What libfuse itself has by this name, or NULL. */
__attribute__((visibility("hidden"))) void *in_libfuse(const char *name);

/* keep_listing(kept): with True it may go on with what it has kept before. */
__attribute__((visibility("hidden"))) PyObject *keep_listing(PyObject *module, PyObject *kept);

/* Put ourselves before these operations. */
__attribute__((visibility("hidden"))) void listing_before(struct fuse_lowlevel_ops *ops);

/* How many questions were answered that only asked for the end. */
__attribute__((visibility("hidden"))) uint64_t listings_ended(void);

#endif
