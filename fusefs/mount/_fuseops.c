/* The requests that pyfuse3 has no handler for: locks, fallocate, lseek, copy_file_range, and who flushes; what Python
 * need not be woken for (_quiet.c, _shown.c); what pyfuse3 cannot say (_listing.c) or does not hand on (_origin.c); and one thing
 * that libfuse 3.14 does not know how to ask the kernel for: shared mappings of files that are open for direct I/O.
 *
 * Loaded with RTLD_GLOBAL before pyfuse3, this library's fuse_session_new is the one that pyfuse3 calls: it adds to the
 * table of operations and calls libfuse's. fuse_session_destroy likewise, because a request must not be answered after
 * it. Each request becomes a Request object, given to one Python callable that answers now or later, in this thread.
 *
 * Who owns what: libfuse owns a fuse_req until it is answered, and frees it then. A Request holds the pointer until
 * that moment, and not longer: every answer takes it out first. A Request that nobody answers answers EIO when it is
 * collected. What is still unanswered when the session is destroyed is let go (all_gone). Interrupts come from libfuse
 * for unanswered requests only, in the serving thread; a callback holds a lock of libfuse's that answering does not
 * need but fuse_req_interrupt_func does, so callbacks are registered once and never from a callback.
 *
 * Every entry from libfuse takes the GIL itself, whether or not the caller has it.
 */

#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 314
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "_listing.h"
#include "_origin.h"
#include "_quiet.h"
#include "_shown.h"

/* --- state: one mount in a process, as with pyfuse3 --------------------------------------------------------------- */

static PyObject *handler;                  /* what is given each request, or NULL: nothing is added */
static bool with_locks = true;             /* locks are among it */
static struct fuse_session *session;       /* the one that was made through us */
static struct fuse_lowlevel_ops original;  /* as pyfuse3 filled it in */
static bool left_unmasked;                 /* modes come without the umask applied */
static uint64_t flusher;                   /* lock owner of the flush that is being started */
static enum { NOT_OFFERED, OFFERED, AGREED } mapping_direct; /* what the kernel said of shared mappings of such files */

/* --- requests ----------------------------------------------------------------------------------------------------- */

typedef struct Request {
    PyObject_HEAD
    fuse_req_t req;           /* NULL once it was answered */
    PyObject *on_interrupt;   /* or NULL */
    struct Request *next, *previous;
    long pid;
    unsigned long uid, gid;
} Request;

static Request *unanswered;

static void link_in(Request *self)
{
    self->previous = NULL;
    self->next = unanswered;
    if (unanswered)
        unanswered->previous = self;
    unanswered = self;
}

/* Take the pointer out, for an answer. NULL: there is nothing to answer any more. */
static fuse_req_t take(Request *self)
{
    fuse_req_t req = self->req;
    if (!req)
        return NULL;
    self->req = NULL;
    if (self->previous)
        self->previous->next = self->next;
    else
        unanswered = self->next;
    if (self->next)
        self->next->previous = self->previous;
    self->next = self->previous = NULL;
    return req;
}

static void all_gone(void)
{
    while (unanswered)
        take(unanswered);
}

static void request_dealloc(PyObject *object)
{
    Request *self = (Request *)object;
    PyObject *error_type, *error, *traceback;
    fuse_req_t req = take(self);

    PyErr_Fetch(&error_type, &error, &traceback);
    if (req)
        fuse_reply_err(req, EIO);
    Py_CLEAR(self->on_interrupt);
    PyErr_Restore(error_type, error, traceback);
    Py_TYPE(object)->tp_free(object);
}

/* After an answer: nobody interrupts it any more. That libfuse could not send it is no matter: whoever asked is gone. */
static PyObject *answered(PyObject *object, fuse_req_t req, int error)
{
    (void)error;
    Py_CLEAR(((Request *)object)->on_interrupt);
    return PyBool_FromLong(req != NULL);
}

static PyObject *request_fail(PyObject *object, PyObject *argument)
{
    long number = PyLong_AsLong(argument);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    if (number < 0 || number > 4095) {
        PyErr_SetString(PyExc_ValueError, "not an error number");
        return NULL;
    }
    fuse_req_t req = take((Request *)object);
    return answered(object, req, req ? fuse_reply_err(req, (int)number) : 0);
}

static PyObject *request_count(PyObject *object, PyObject *argument)
{
    size_t count = PyLong_AsSize_t(argument);
    if (count == (size_t)-1 && PyErr_Occurred())
        return NULL;
    fuse_req_t req = take((Request *)object);
    return answered(object, req, req ? fuse_reply_write(req, count) : 0);
}

static PyObject *request_position(PyObject *object, PyObject *argument)
{
    long long offset = PyLong_AsLongLong(argument);
    if (offset == -1 && PyErr_Occurred())
        return NULL;
    fuse_req_t req = take((Request *)object);
    return answered(object, req, req ? fuse_reply_lseek(req, offset) : 0);
}

static PyObject *request_lock(PyObject *object, PyObject *arguments)
{
    int kind;
    long long start, length;
    long pid;
    struct flock lock;

    if (!PyArg_ParseTuple(arguments, "iLLl", &kind, &start, &length, &pid))
        return NULL;
    memset(&lock, 0, sizeof lock);
    lock.l_type = (short)kind;
    lock.l_whence = SEEK_SET;
    lock.l_start = start;
    lock.l_len = length;
    lock.l_pid = (pid_t)pid;
    fuse_req_t req = take((Request *)object);
    return answered(object, req, req ? fuse_reply_lock(req, &lock) : 0);
}

static void interrupted(fuse_req_t req, void *data)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Request *self = data;
    (void)req;
    Py_INCREF(self);
    if (self->req && self->on_interrupt) {
        PyObject *callback = Py_NewRef(self->on_interrupt);
        PyObject *result = PyObject_CallNoArgs(callback);
        if (result)
            Py_DECREF(result);
        else
            PyErr_WriteUnraisable(callback);
        Py_DECREF(callback);
    }
    Py_DECREF(self);
    PyGILState_Release(gil);
}

static PyObject *request_on_interrupt(PyObject *object, PyObject *callable)
{
    Request *self = (Request *)object;
    if (!PyCallable_Check(callable)) {
        PyErr_SetString(PyExc_TypeError, "not callable");
        return NULL;
    }
    if (self->on_interrupt) {
        PyErr_SetString(PyExc_RuntimeError, "there is a callback already");
        return NULL;
    }
    Py_INCREF(callable);
    self->on_interrupt = callable;
    if (self->req)
        fuse_req_interrupt_func(self->req, interrupted, self); /* calls at once where it came before */
    Py_RETURN_NONE;
}

static PyObject *request_is_open(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((Request *)object)->req != NULL);
}

static PyObject *request_pid(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLong(((Request *)object)->pid);
}

static PyObject *request_uid(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(((Request *)object)->uid);
}

static PyMethodDef request_methods[] = {
    {"fail", request_fail, METH_O, "Answer with an errno, 0: success. False where it was answered before."},
    {"count", request_count, METH_O, "Answer with a number of bytes."},
    {"position", request_position, METH_O, "Answer with an offset."},
    {"lock", request_lock, METH_VARARGS, "Answer with a lock: type, start, length (0: to the end), pid."},
    {"on_interrupt", request_on_interrupt, METH_O, "Have a callable called when whoever asked is interrupted; once."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef request_getset[] = {
    {"open", request_is_open, NULL, "Whether it waits for its answer.", NULL},
    {"pid", request_pid, NULL, "The thread that asks.", NULL},
    {"uid", request_uid, NULL, "The user that asks.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject RequestType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fusefs.mount._fuseops.Request",
    .tp_doc = "A request of the kernel that waits for its answer.",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = request_dealloc,
    .tp_methods = request_methods,
    .tp_getset = request_getset,
};

/* --- from libfuse to Python --------------------------------------------------------------------------------------- */

static Request *request_new(fuse_req_t req)
{
    Request *self = PyObject_New(Request, &RequestType);
    const struct fuse_ctx *context = fuse_req_ctx(req);
    if (!self)
        return NULL;
    self->req = req;
    self->on_interrupt = NULL;
    self->pid = context->pid;
    self->uid = context->uid;
    self->gid = context->gid;
    link_in(self);
    return self;
}

/* Hand a request to the handler with the arguments that format says. Whatever goes wrong, it is answered. */
static void dispatch(fuse_req_t req, const char *name, const char *format, ...)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *arguments = NULL, *result = NULL;
    Request *request = request_new(req);
    va_list rest;

    if (!request) {
        fuse_reply_err(req, ENOMEM);
        PyErr_Clear();
        PyGILState_Release(gil);
        return;
    }
    va_start(rest, format);
    arguments = Py_VaBuildValue(format, rest);
    va_end(rest);
    if (arguments && handler)
        result = PyObject_CallFunction(handler, "sOO", name, (PyObject *)request, arguments);
    if (!result) {
        if (PyErr_Occurred())
            PyErr_WriteUnraisable(handler);
        if ((req = take(request)))
            fuse_reply_err(req, EIO);
    }
    Py_XDECREF(result);
    Py_XDECREF(arguments);
    Py_DECREF(request);
    PyGILState_Release(gil);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    if (original.init)
        original.init(userdata, conn);
    if (conn->capable & FUSE_CAP_DONT_MASK) { /* or the kernel applies the umask where a default ACL decides */
        conn->want |= FUSE_CAP_DONT_MASK;
        left_unmasked = true;
    }
    conn->want |= conn->capable & FUSE_CAP_CACHE_SYMLINKS; /* a target never changes, and no number is used again */
}

static void op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
    dispatch(req, "getlk", "(KKKiLL)", (unsigned long long)ino, (unsigned long long)fi->fh,
             (unsigned long long)fi->lock_owner, (int)lock->l_type, (long long)lock->l_start, (long long)lock->l_len);
}

static void op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
    quiet_locking(ino);
    dispatch(req, "setlk", "(KKKiLLli)", (unsigned long long)ino, (unsigned long long)fi->fh,
             (unsigned long long)fi->lock_owner, (int)lock->l_type, (long long)lock->l_start, (long long)lock->l_len,
             (long)lock->l_pid, sleep);
}

static void op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
    dispatch(req, "flock", "(KKKi)", (unsigned long long)ino, (unsigned long long)fi->fh,
             (unsigned long long)fi->lock_owner, op);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    dispatch(req, "fallocate", "(KKiLL)", (unsigned long long)ino, (unsigned long long)fi->fh, mode,
             (long long)offset, (long long)length);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    dispatch(req, "lseek", "(KKLi)", (unsigned long long)ino, (unsigned long long)fi->fh, (long long)offset, whence);
}

static void op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in, struct fuse_file_info *fi_in,
                               fuse_ino_t ino_out, off_t off_out, struct fuse_file_info *fi_out, size_t length,
                               int flags)
{
    (void)ino_in;
    (void)ino_out;
    dispatch(req, "copy_file_range", "(KLKLKi)", (unsigned long long)fi_in->fh, (long long)off_in,
             (unsigned long long)fi_out->fh, (long long)off_out, (unsigned long long)length, flags);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    if (quiet_flush(fi->fh, ino)) {
        fuse_reply_err(req, 0);
        return;
    }
    flusher = fi->lock_owner; /* pyfuse3's handler begins to run before anything else does */
    original.flush(req, ino, fi);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (shown_missing(parent, name))
        fuse_reply_err(req, ENOENT);
    else
        original.lookup(req, parent, name);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    if (quiet_getxattr(ino, name)) {
        fuse_reply_err(req, ENODATA);
        return;
    }
    original.getxattr(req, ino, name, size);
}

/* --- taking part in the making of a session ----------------------------------------------------------------------- */

void *in_libfuse(const char *name)
{
    void *library = dlopen("libfuse3.so.3", RTLD_LAZY | RTLD_NOLOAD);
    void *found = library ? dlsym(library, name) : NULL;
    if (library)
        dlclose(library);
    return found;
}

struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op, size_t op_size,
                                      void *userdata)
{
    struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
    struct fuse_lowlevel_ops ops;
    struct fuse_session *made;

    *(void **)&real = in_libfuse("fuse_session_new");
    if (!real)
        return NULL;
    if (!handler)
        return real(args, op, op_size, userdata);
    memset(&ops, 0, sizeof ops);
    memcpy(&ops, op, op_size < sizeof ops ? op_size : sizeof ops);
    original = ops;
    left_unmasked = false;
    quiet_begin();
    shown_begin();
    listing_before(&ops);
    origin_before(&ops);
    mapping_direct = NOT_OFFERED;
    ops.init = op_init;
    if (with_locks) { /* else the kernel keeps them itself */
        ops.getlk = op_getlk;
        ops.setlk = op_setlk;
        ops.flock = op_flock;
    }
    ops.fallocate = op_fallocate;
    ops.lseek = op_lseek;
    ops.copy_file_range = op_copy_file_range;
    if (original.flush)
        ops.flush = op_flush;
    if (original.lookup)
        ops.lookup = op_lookup;
    if (original.getxattr)
        ops.getxattr = op_getxattr;
    made = real(args, &ops, sizeof ops, userdata);
    session = made;
    return made;
}

/* The kernel offers what it can in its first request, INIT, and takes what the reply repeats. libfuse 3.14 drops the
 * flags that it does not know, so they are read off the request and added to the reply on their way.
 */
#define DIRECT_IO_ALLOW_MMAP (1u << (36 - 32)) /* in flags2; Linux 6.6 and later */

static ssize_t io_read(int fd, void *buffer, size_t size, void *userdata)
{
    ssize_t got = read(fd, buffer, size);
    const struct fuse_in_header *header = buffer;
    const struct fuse_init_in *init = (const void *)(header + 1);

    (void)userdata;
    if (got >= (ssize_t)(sizeof *header + offsetof(struct fuse_init_in, unused)) && header->opcode == FUSE_INIT &&
        (init->flags & FUSE_INIT_EXT) && (init->flags2 & DIRECT_IO_ALLOW_MMAP))
        mapping_direct = OFFERED;
    return got;
}

static ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    (void)userdata;
    if (mapping_direct == OFFERED) { /* this is the reply to INIT: the kernel asks nothing else before it has it */
        const struct fuse_out_header *header = iov[0].iov_base;
        mapping_direct = NOT_OFFERED;
        if (count == 2 && header->error == 0 && iov[1].iov_len >= sizeof(struct fuse_init_out)) {
            struct fuse_init_out *init = iov[1].iov_base;
            init->flags |= FUSE_INIT_EXT;
            init->flags2 |= DIRECT_IO_ALLOW_MMAP;
            mapping_direct = AGREED;
        }
    }
    return writev(fd, iov, count);
}

int fuse_session_mount(struct fuse_session *mounted, const char *mountpoint)
{
    static const struct fuse_custom_io io = {.read = io_read, .writev = io_writev};
    int (*real)(struct fuse_session *, const char *);
    int (*customize)(struct fuse_session *, const struct fuse_custom_io *, int);
    int error;

    *(void **)&real = in_libfuse("fuse_session_mount");
    *(void **)&customize = in_libfuse("fuse_session_custom_io");
    if (!real)
        return -1;
    error = real(mounted, mountpoint);
    if (!error && handler && mounted == session && customize)
        customize(mounted, &io, fuse_session_fd(mounted)); /* without it all works as libfuse has it */
    return error;
}

void fuse_session_destroy(struct fuse_session *ended)
{
    void (*real)(struct fuse_session *);

    if (ended == session) {
        PyGILState_STATE gil = PyGILState_Ensure();
        all_gone();
        session = NULL;
        PyGILState_Release(gil);
    }
    *(void **)&real = in_libfuse("fuse_session_destroy");
    if (real)
        real(ended);
}

/* --- the module --------------------------------------------------------------------------------------------------- */

static PyObject *set_handler(PyObject *module, PyObject *callable)
{
    (void)module;
    if (callable != Py_None && !PyCallable_Check(callable)) {
        PyErr_SetString(PyExc_TypeError, "not callable");
        return NULL;
    }
    PyObject *before = handler;
    handler = callable == Py_None ? NULL : Py_NewRef(callable);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *take_locks(PyObject *module, PyObject *wanted)
{
    int truth = PyObject_IsTrue(wanted);
    (void)module;
    if (truth < 0)
        return NULL;
    with_locks = truth;
    Py_RETURN_NONE;
}

static PyObject *serving(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyBool_FromLong(session != NULL);
}

static PyObject *waiting(PyObject *module, PyObject *nothing)
{
    long count = 0;
    (void)module;
    (void)nothing;
    for (Request *one = unanswered; one; one = one->next)
        count++;
    return PyLong_FromLong(count);
}

static PyObject *unmasked(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyBool_FromLong(left_unmasked);
}

static PyObject *maps_direct(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return PyBool_FromLong(mapping_direct == AGREED);
}

static PyObject *take_flusher(PyObject *module, PyObject *nothing)
{
    uint64_t owner = flusher;
    (void)module;
    (void)nothing;
    flusher = 0;
    return PyLong_FromUnsignedLongLong(owner);
}

static PyMethodDef module_methods[] = {
    {"set_handler", set_handler, METH_O, "Have requests handed to handler(name, request, arguments); None: to nobody."},
    {"take_locks", take_locks, METH_O, "Whether sessions that are made from now on hand over locks."},
    {"serving", serving, METH_NOARGS, "Whether the session that libfuse has was made through here."},
    {"waiting", waiting, METH_NOARGS, "How many requests wait for their answer."},
    {"unmasked", unmasked, METH_NOARGS, "Whether the kernel leaves the umask to us."},
    {"maps_direct", maps_direct, METH_NOARGS, "Whether files that are open for direct I/O can be mapped shared."},
    {"take_flusher", take_flusher, METH_NOARGS, "The lock owner of the flush whose handler begins now; then 0."},
    {"take_paged", take_paged, METH_NOARGS, "Whether the read that begins now fills pages, or the write is of mapped ones; then False."},
    {"take_by_handle", take_by_handle, METH_NOARGS, "Whether the question for attributes that begins now is a reader's; then False."},
    {"quiet", quiet_counts, METH_NOARGS, "How many flushes, questions about capabilities, ends of listings, attributes and missing names went to no handler."},
    {"set_incapable", set_incapable, METH_VARARGS, "An inode has no capabilities for so many seconds; 0: not known."},
    {"show", (PyCFunction)(void (*)(void))show, METH_FASTCALL, "The kernel is told these attributes when it asks, for so many seconds, and of names that are not among these that they are missing; None: not all are known."},
    {"hide", hide, METH_O, "Not any more, of an inode. How many seconds ago it was told last, None: not lately."},
    {"hide_all", hide_all, METH_NOARGS, "Of none."},
    {"keep_listing", keep_listing, METH_O, "The kernel keeps the listing of what is opened next; True: as it has it."},
    {"none_incapable", none_incapable, METH_NOARGS, "Of no inode that is known any more."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fusefs.mount._fuseops",
    .m_doc = "Requests of the kernel that pyfuse3 has no handler for.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__fuseops(void)
{
    PyObject *module;

    if (PyType_Ready(&RequestType) < 0)
        return NULL;
    module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    if (PyModule_AddIntConstant(module, "QUIET", (long)QUIET) < 0 ||
        PyModule_AddObjectRef(module, "Request", (PyObject *)&RequestType) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
