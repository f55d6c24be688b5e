/* Listings that the kernel keeps. pyfuse3 has no way to say so in its reply to OPENDIR, so the reply passes through here.
 *
 * Loaded for all to see, this library's fuse_reply_open is the one that pyfuse3 calls.
 */

#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 314
#include "_listing.h"

#include <fuse_lowlevel.h>

static enum { NOT, ANEW, ON } next; /* how the next directory is opened */

__attribute__((visibility("default"))) int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
    static int (*real)(fuse_req_t, const struct fuse_file_info *);
    struct fuse_file_info opened = *fi;

    if (!real) {
        *(void **)&real = in_libfuse("fuse_reply_open");
        if (!real)
            return -1;
    }
    if (next != NOT) {
        opened.cache_readdir = 1;
        opened.keep_cache = next == ON;
        next = NOT;
    }
    return real(req, &opened);
}

PyObject *keep_listing(PyObject *module, PyObject *kept)
{
    int truth = PyObject_IsTrue(kept);
    (void)module;
    if (truth < 0)
        return NULL;
    next = truth ? ON : ANEW;
    Py_RETURN_NONE;
}
