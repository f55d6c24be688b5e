/* Whether the kernel keeps the listing of the directory that is opened next. */

#ifndef FUSEFS_LISTING_H
#define FUSEFS_LISTING_H

#include <Python.h>

/* keep_listing(kept): with True it may go on with what it has kept before. */
__attribute__((visibility("hidden"))) PyObject *keep_listing(PyObject *module, PyObject *kept);

#endif
