/* Attributes of directories that were just changed from here. The kernel forgets them with each change by name, and asks
 * before the next one, because it checks permissions.
 */

#ifndef FUSEFS_SHOWN_H
#define FUSEFS_SHOWN_H

#define FUSE_USE_VERSION 314
#include <Python.h>

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* A session is made. */
void shown_begin(void);

/* Answer a question for attributes where they are shown; return whether it was. */
bool shown_getattr(fuse_req_t req, fuse_ino_t ino);

/* How many were answered. */
uint64_t shown_count(void);

/* Functions of the module. */
PyObject *show(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *hide(PyObject *module, PyObject *ino);
PyObject *hide_all(PyObject *module, PyObject *nothing);

#pragma GCC visibility pop

#endif
