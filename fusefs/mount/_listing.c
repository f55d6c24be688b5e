/* Listings that the kernel keeps, and their ends.
 *
 * pyfuse3 has no way to say in its reply to OPENDIR that a listing is kept, so the reply passes through here: loaded for
 * all to see, this library's fuse_reply_open is the one that pyfuse3 calls.
 *
 * Who lists a directory asks until he is told that nothing follows. Where that was known with the last entry, its
 * position says so, and nobody is woken to say it again.
 */

#define PY_SSIZE_T_CLEAN
#include "_listing.h"

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

/* --- ends --------------------------------------------------------------------------------------------------------- */

#define ENDS (1 << 30) /* in a position: fusefs.mount.operations.END */

static void (*readdirplus)(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
static uint64_t ended;

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    if (offset & ENDS) {
        ended++;
        fuse_reply_buf(req, NULL, 0);
    } else
        readdirplus(req, ino, size, offset, fi);
}

void listing_before(struct fuse_lowlevel_ops *ops)
{
    readdirplus = ops->readdirplus;
    ended = 0;
    if (readdirplus)
        ops->readdirplus = op_readdirplus;
}

uint64_t listings_ended(void)
{
    return ended;
}

/* --- for Python --------------------------------------------------------------------------------------------------- */

PyObject *keep_listing(PyObject *module, PyObject *kept)
{
    int truth = PyObject_IsTrue(kept);
    (void)module;
    if (truth < 0)
        return NULL;
    next = truth ? ON : ANEW;
    Py_RETURN_NONE;
}
