/* Directories that were just changed from here. The kernel forgets their attributes with each change by name, and asks
 * before the next one, because it checks permissions; and before it has something made it asks whether it is there.
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

/* Whether a name is known to be missing in a directory that is shown. */
bool shown_missing(fuse_ino_t parent, const char *name);

/* How many were answered. */
uint64_t shown_count(void);
uint64_t shown_missed(void);

/* Functions of the module. */
PyObject *show(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *hide(PyObject *module, PyObject *ino);
PyObject *hide_all(PyObject *module, PyObject *nothing);

#pragma GCC visibility pop

#endif
