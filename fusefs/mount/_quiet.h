/* What the kernel asks and Python need not be woken for: flushes of descriptors that were opened for reading only, and
 * whether a file has capabilities, which the kernel wants to know before each write.
 */

#ifndef FUSEFS_QUIET_H
#define FUSEFS_QUIET_H

#define FUSE_USE_VERSION 314
#include <Python.h>

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden) /* the module is loaded for all to see */

#define QUIET (1ull << 62) /* in the number of a file that is open for reading only */

/* A session is made. */
void quiet_begin(void);

/* An fcntl lock is asked for: closing this file matters from now on. */
void quiet_locking(fuse_ino_t ino);

/* Whether closing a descriptor changes nothing. */
bool quiet_flush(uint64_t fh, fuse_ino_t ino);

/* Whether an inode is known to lack this attribute. */
bool quiet_getxattr(fuse_ino_t ino, const char *name);

/* Functions of the module. */
PyObject *quiet_counts(PyObject *module, PyObject *nothing);
PyObject *set_incapable(PyObject *module, PyObject *arguments);
PyObject *none_incapable(PyObject *module, PyObject *nothing);

#pragma GCC visibility pop

#endif
