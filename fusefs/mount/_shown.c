/* What the kernel is told without Python being woken: attributes of a directory, and that a name is not there. All of it
 * runs in the thread that serves.
 *
 * A table of one place for each inode, which later ones take. When a place was last answered from is remembered for a
 * while after it is hidden, and it is not taken meanwhile: who makes the kernel forget has to let the answer arrive.
 * That a name is missing the kernel does not keep, so nobody has to wait for that.
 */

#define PY_SSIZE_T_CLEAN
#include "_shown.h"
#include "_clock.h"

#include <linux/limits.h>
#include <string.h>
#include <sys/stat.h>

#define PLACES 1024
#define SECTOR 512
#define TRIES 4 /* who asks for what is missing again and again is answered by Python, which has the kernel keep it */
#define REMEMBERED_NS 1000000000u

static struct place {
    fuse_ino_t ino;
    uint64_t until_ns; /* 0: hidden */
    uint64_t answered_ns;
    struct stat attr;
    PyObject *names; /* all there are, as keys; NULL: not known */
    int tries;       /* so many more names may be answered to be missing */
} places[PLACES];

static uint64_t answered, missed;

static void hide_place(struct place *place)
{
    place->until_ns = 0;
    Py_CLEAR(place->names);
}

void shown_begin(void)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    for (int i = 0; i < PLACES; i++)
        hide_place(&places[i]);
    PyGILState_Release(gil);
    memset(places, 0, sizeof places);
    answered = missed = 0;
}

bool shown_getattr(fuse_req_t req, fuse_ino_t ino)
{
    struct place *place = &places[ino % PLACES];
    uint64_t now;

    if (place->ino != ino || !place->until_ns || (now = clock_ns()) >= place->until_ns)
        return false;
    place->answered_ns = now;
    answered++;
    fuse_reply_attr(req, &place->attr, (double)(place->until_ns - now) / 1e9);
    return true;
}

bool shown_missing(fuse_ino_t parent, const char *name)
{
    struct place *place = &places[parent % PLACES];

    if (place->ino != parent || !place->names || !place->tries || clock_ns() >= place->until_ns)
        return false;
    if (strlen(name) > NAME_MAX || !strcmp(name, ".") || !strcmp(name, ".."))
        return false;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *key = PyBytes_FromString(name);
    int there = key ? PyDict_Contains(place->names, key) : -1;
    Py_XDECREF(key);
    if (there < 0)
        PyErr_Clear();
    PyGILState_Release(gil);
    if (there)
        return false;
    place->tries--;
    missed++;
    return true;
}

uint64_t shown_count(void)
{
    return answered;
}

uint64_t shown_missed(void)
{
    return missed;
}

/* --- for Python --------------------------------------------------------------------------------------------------- */

static bool number_of(PyObject *attr, const char *name, long long *number)
{
    PyObject *value = PyObject_GetAttrString(attr, name);
    if (!value)
        return false;
    *number = PyLong_AsLongLong(value);
    Py_DECREF(value);
    return *number != -1 || !PyErr_Occurred();
}

static struct timespec time_of(long long ns)
{
    long long seconds = ns / 1000000000, rest = ns % 1000000000;
    if (rest < 0) {
        seconds--;
        rest += 1000000000;
    }
    return (struct timespec){.tv_sec = seconds, .tv_nsec = rest};
}

PyObject *show(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    static const char *const names[] = {"ino", "mode", "nlink", "uid", "gid", "rdev", "size", "stored",
                                        "atime_ns", "mtime_ns", "ctime_ns"};
    enum { INO, MODE, NLINK, UID, GID, RDEV, SIZE, STORED, ATIME, MTIME, CTIME, FIELDS };
    long long fields[FIELDS];
    (void)module;
    if (count != 4 || (arguments[3] != Py_None && !PyDict_Check(arguments[3]))) {
        PyErr_SetString(PyExc_TypeError, "show(attr, unit_bytes, left_s, names)");
        return NULL;
    }
    long unit = PyLong_AsLong(arguments[1]);
    double left_s = PyFloat_AsDouble(arguments[2]);
    if (PyErr_Occurred())
        return NULL;
    for (int i = 0; i < FIELDS; i++)
        if (!number_of(arguments[0], names[i], &fields[i]))
            return NULL;
    uint64_t now = clock_ns();
    struct place *place = &places[(fuse_ino_t)fields[INO] % PLACES];
    if (place->ino != (fuse_ino_t)fields[INO]) {
        if (place->answered_ns + REMEMBERED_NS > now)
            Py_RETURN_NONE;
        place->answered_ns = 0;
    }
    place->ino = (fuse_ino_t)fields[INO];
    place->until_ns = left_s > 0 ? now + (uint64_t)(left_s * 1e9) : 0;
    Py_XSETREF(place->names, left_s > 0 && arguments[3] != Py_None ? Py_NewRef(arguments[3]) : NULL);
    place->tries = TRIES;
    place->attr = (struct stat){
        .st_ino = (ino_t)fields[INO],
        .st_mode = (mode_t)fields[MODE],
        .st_nlink = (nlink_t)fields[NLINK],
        .st_uid = (uid_t)fields[UID],
        .st_gid = (gid_t)fields[GID],
        .st_rdev = (dev_t)fields[RDEV],
        .st_size = (off_t)fields[SIZE],
        .st_blksize = (blksize_t)unit,
        .st_blocks = (blkcnt_t)((fields[STORED] + SECTOR - 1) / SECTOR),
        .st_atim = time_of(fields[ATIME]),
        .st_mtim = time_of(fields[MTIME]),
        .st_ctim = time_of(fields[CTIME]),
    };
    Py_RETURN_NONE;
}

PyObject *hide(PyObject *module, PyObject *argument)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(argument);
    (void)module;
    if (ino == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    struct place *place = &places[ino % PLACES];
    if (place->ino != ino)
        Py_RETURN_NONE;
    hide_place(place);
    if (!place->answered_ns)
        Py_RETURN_NONE;
    return PyFloat_FromDouble((double)(clock_ns() - place->answered_ns) / 1e9);
}

PyObject *hide_all(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    for (int i = 0; i < PLACES; i++)
        hide_place(&places[i]);
    Py_RETURN_NONE;
}
