"""Checks of what comes from outside: each raises FsError and writes nothing."""

from __future__ import annotations

import stat

from metadata.api import Commit, Extent, Make, Submit
from metadata.state import extents as algebra
from node.wire.errors import Code, FsError
from node.wire.limits import (
    COMMIT_EXTENTS_MAX,
    FILE_BYTES_MAX,
    LOG_DATA_ENTRY_BYTES,
    NAME_BYTES_MAX,
    NOT_HELD_MAX,
    SUBMIT_BASES_MAX,
    SUBMIT_EXTENTS_MAX,
    SUBMIT_OPS_MAX,
    SYMLINK_BYTES_MAX,
)

ID_MAX = (1 << 32) - 2  # user and group ids; the next one means "no id"
RDEV_MAX = (1 << 32) - 1
TIME_MIN = -(1 << 63) + 1  # one less is TIME_NOW
TIME_MAX = (1 << 63) - 1
SEQUENCE_MAX = (1 << 63) - 1
PERMISSIONS = 0o7777
TYPES = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)


def check_name(name: bytes) -> None:
    """A name that an entry of a directory can have."""
    if not 0 < len(name) <= NAME_BYTES_MAX:
        if name:
            raise FsError(Code.NAME_TOO_LONG, f"a name of {len(name)} bytes")
        raise FsError(Code.INVALID, "an empty name")
    if b"/" in name or b"\0" in name or name == b"." or name == b"..":
        raise FsError(Code.INVALID, f"the name {name!r}")


def check_size(size: int) -> None:
    """A size that a file can have."""
    if size < 0:
        raise FsError(Code.INVALID, f"size {size}")
    if size > FILE_BYTES_MAX:
        raise FsError(Code.FILE_TOO_BIG, f"size {size}")


def check_range(offset: int, length: int) -> None:
    """A range of bytes, not empty, within the largest file."""
    if offset < 0 or length < 1:
        raise FsError(Code.INVALID, f"range of {length} bytes at {offset}")
    if offset + length > FILE_BYTES_MAX:
        raise FsError(Code.FILE_TOO_BIG, f"range of {length} bytes at {offset}")


def check_owner(owner: int) -> None:
    """A user or group id."""
    if not 0 <= owner <= ID_MAX:
        raise FsError(Code.INVALID, f"owner {owner}")


def check_extents(extents: tuple[Extent, ...]) -> None:
    """Extents as a commit may bring them."""
    if len(extents) > COMMIT_EXTENTS_MAX:
        raise FsError(Code.TOO_BIG, f"{len(extents)} extents in one commit")
    fault = algebra.well_formed(extents)
    if fault:
        raise FsError(Code.INVALID, fault)


def check_not_held(inos: tuple[int, ...]) -> None:
    """A list of inodes that a session vouches for."""
    if len(inos) > NOT_HELD_MAX:
        raise FsError(Code.TOO_BIG, f"vouches for {len(inos)} inodes")


def clamp_time(time_ns: int) -> int:
    """The nearest time that can be stored, as Linux does with time stamps out of a file system's range."""
    return min(max(time_ns, TIME_MIN), TIME_MAX)


def check_make(op: Make) -> None:
    """Everything of a Make that can be judged without looking at the state."""
    check_name(op.name)
    kind = op.mode & ~PERMISSIONS  # not S_IFMT, which raises for a large number
    if kind not in TYPES:
        raise FsError(Code.INVALID, f"mode {op.mode:#o}")
    check_owner(op.uid)
    check_owner(op.gid)
    if not 0 <= op.rdev <= RDEV_MAX:
        raise FsError(Code.INVALID, f"device {op.rdev}")
    if kind == stat.S_IFLNK:
        if len(op.target) > SYMLINK_BYTES_MAX:
            raise FsError(Code.NAME_TOO_LONG, f"a symlink target of {len(op.target)} bytes")
        if not op.target or b"\0" in op.target:
            raise FsError(Code.INVALID, "a symlink target that is empty or has a NUL")
    elif op.target:
        raise FsError(Code.INVALID, "a target, but no symlink")
    if op.extents or op.size:
        if kind != stat.S_IFREG:
            raise FsError(Code.INVALID, "data, but no regular file")
        check_size(op.size)
        check_extents(op.extents)
    if op.ino < 0:
        raise FsError(Code.INVALID, f"inode number {op.ino}")


def check_submit(submit: Submit) -> None:
    """The shape of a Submit: bounds that hold whatever the state is. The leader may check before it proposes."""
    if len(submit.ops) > SUBMIT_OPS_MAX:
        raise FsError(Code.TOO_BIG, f"{len(submit.ops)} operations in one Submit")
    if sum([len(op.extents) for op in submit.ops if isinstance(op, (Commit, Make))]) > SUBMIT_EXTENTS_MAX:
        raise FsError(Code.TOO_BIG, f"more than {SUBMIT_EXTENTS_MAX} extents in one Submit")
    if sum([len(op.data) for op in submit.ops if type(op) is Commit]) > LOG_DATA_ENTRY_BYTES:
        raise FsError(Code.TOO_BIG, f"more than {LOG_DATA_ENTRY_BYTES} bytes with one Submit")
    if not 1 <= submit.sequence <= SEQUENCE_MAX or not 1 <= submit.lowest_unacked <= submit.sequence:
        raise FsError(Code.INVALID, f"sequence {submit.sequence}, lowest unacknowledged {submit.lowest_unacked}")
    if submit.times_ns and len(submit.times_ns) != len(submit.ops):
        raise FsError(Code.INVALID, f"{len(submit.times_ns)} times for {len(submit.ops)} operations")
    if len(submit.bases) > SUBMIT_BASES_MAX:
        raise FsError(Code.TOO_BIG, f"{len(submit.bases)} base versions")
    if not 0 <= submit.after < submit.sequence:
        raise FsError(Code.INVALID, f"sequence {submit.sequence} after {submit.after}")
