/* What the kernel asks and Python need not be woken for. All of it runs in the thread that serves. */

#define PY_SSIZE_T_CLEAN
#include "_quiet.h"
#include "_clock.h"
#include "_listing.h"
#include "_shown.h"

#include <string.h>

static uint64_t flushed, refused; /* how many were answered */

/* Closing a descriptor ends the fcntl locks that its process has on the file; otherwise nothing has to be done where it
 * was opened for reading only. Inodes that such a lock was ever asked for are remembered by some of their bits.
 */
#define LOCKED_BITS 65536

static uint64_t ever_locked[LOCKED_BITS / 64];

static uint64_t *locked_word(fuse_ino_t ino)
{
    return &ever_locked[ino % LOCKED_BITS / 64];
}

static uint64_t locked_bit(fuse_ino_t ino)
{
    return 1ull << (ino % 64);
}

void quiet_locking(fuse_ino_t ino)
{
    *locked_word(ino) |= locked_bit(ino);
}

bool quiet_flush(uint64_t fh, fuse_ino_t ino)
{
    bool quiet = (fh & QUIET) && !(*locked_word(ino) & locked_bit(ino));
    flushed += quiet;
    return quiet;
}

/* Before each write the kernel asks whether the file has capabilities to take away. Inodes that are known to have none,
 * for how long, are kept in a table of one place for each, which later ones take.
 */
#define CAPABILITY "security.capability"
#define PLACES 8192

static struct place {
    fuse_ino_t ino;
    uint64_t until_ns;
} incapable[PLACES];

bool quiet_getxattr(fuse_ino_t ino, const char *name)
{
    const struct place *place = &incapable[ino % PLACES];
    bool quiet = place->ino == ino && !strcmp(name, CAPABILITY) && clock_ns() < place->until_ns;
    refused += quiet;
    return quiet;
}

void quiet_begin(void)
{
    memset(ever_locked, 0, sizeof ever_locked);
    memset(incapable, 0, sizeof incapable);
    flushed = refused = 0;
}

/* --- for Python --------------------------------------------------------------------------------------------------- */

PyObject *quiet_counts(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    return Py_BuildValue("KKKKK", (unsigned long long)flushed, (unsigned long long)refused,
                         (unsigned long long)listings_ended(), (unsigned long long)shown_count(),
                         (unsigned long long)shown_missed());
}

PyObject *set_incapable(PyObject *module, PyObject *arguments)
{
    unsigned long long ino;
    double left_s;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "Kd", &ino, &left_s))
        return NULL;
    struct place *place = &incapable[ino % PLACES];
    if (left_s > 0) {
        place->ino = ino;
        place->until_ns = clock_ns() + (uint64_t)(left_s * 1e9);
    } else if (place->ino == ino)
        place->ino = 0;
    Py_RETURN_NONE;
}

PyObject *none_incapable(PyObject *module, PyObject *nothing)
{
    (void)module;
    (void)nothing;
    memset(incapable, 0, sizeof incapable);
    Py_RETURN_NONE;
}
