/* What a request that is being started comes from: pages in the kernel, or a read through an open file. */

#ifndef FUSEFS_ORIGIN_H
#define FUSEFS_ORIGIN_H

#define FUSE_USE_VERSION 314
#include <Python.h>

#include <fuse_lowlevel.h>

/* Put ourselves before these operations. */
__attribute__((visibility("hidden"))) void origin_before(struct fuse_lowlevel_ops *ops);

/* Said once, to the handler that begins now. */
__attribute__((visibility("hidden"))) PyObject *take_paged(PyObject *module, PyObject *nothing);
__attribute__((visibility("hidden"))) PyObject *take_by_handle(PyObject *module, PyObject *nothing);

#endif
