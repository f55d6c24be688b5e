/* What a request that is being started comes from. pyfuse3 does not hand that on; but its handler begins to run before
 * anything else does, so what is noted here is about that one. */

#include "_origin.h"
#include "_shown.h"

#include <stdbool.h>

static bool paged;     /* a read or write is of pages in the kernel */
static bool by_handle; /* a question for attributes names an open file */
static struct fuse_lowlevel_ops behind;

/* A read that fills pages is nobody's: only one that goes past them has an owner of locks. */
static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    paged = !fi->lock_owner;
    behind.read(req, ino, size, off, fi);
}

static void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *bufv, off_t off,
                         struct fuse_file_info *fi)
{
    paged = fi->writepage;
    behind.write_buf(req, ino, bufv, off, fi);
}

/* Who reads has the size asked for through the open file; stat and fstat do not name it. */
static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (!fi && shown_getattr(req, ino))
        return;
    by_handle = fi != NULL;
    behind.getattr(req, ino, fi);
}

void origin_before(struct fuse_lowlevel_ops *ops)
{
    behind = *ops;
    if (behind.read)
        ops->read = op_read;
    if (behind.write_buf)
        ops->write_buf = op_write_buf;
    if (behind.getattr)
        ops->getattr = op_getattr;
}

/* --- for Python --------------------------------------------------------------------------------------------------- */

static PyObject *taken(bool *noted)
{
    bool was = *noted;

    *noted = false;
    return PyBool_FromLong(was);
}

PyObject *take_paged(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return taken(&paged);
}

PyObject *take_by_handle(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return taken(&by_handle);
}
