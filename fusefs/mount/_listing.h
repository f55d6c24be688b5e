/* Whether the kernel keeps the listing of the directory that is opened next. */

#ifndef FUSEFS_LISTING_H
#define FUSEFS_LISTING_H

#include <Python.h>

/* What libfuse itself has by this name, or NULL. */
__attribute__((visibility("hidden"))) void *in_libfuse(const char *name);

/* keep_listing(kept): with True it may go on with what it has kept before. */
__attribute__((visibility("hidden"))) PyObject *keep_listing(PyObject *module, PyObject *kept);

#endif
