"""Attributes as FUSE wants them. Pure translation."""

from __future__ import annotations

import stat

import pyfuse3

from metadata.api import Attr, VolumeStat
from node.wire.limits import KIB, NAME_BYTES_MAX

# What cp and cat take as the size of their buffers.
IO_BYTES = 128 * KIB
SECTOR_BYTES = 512
STATFS_UNIT_BYTES = 4 * KIB
# Inode numbers do not run out; statfs has no word for that.
INODES_MAX = 1 << 40
TIME_NS_MAX = (1 << 63) - 1  # the year 2262


def entry_of(attr: Attr, attr_s: float = 0, name_s: float = 0) -> pyfuse3.EntryAttributes:
    """Build the reply that names an inode: for ``attr_s`` and ``name_s`` seconds the kernel believes the attributes
    and the name without asking."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attr.ino
    entry.entry_timeout = name_s
    entry.attr_timeout = attr_s
    entry.st_mode = attr.mode
    entry.st_nlink = attr.nlink
    entry.st_uid = attr.uid
    entry.st_gid = attr.gid
    entry.st_rdev = attr.rdev
    entry.st_size = attr.size
    entry.st_blksize = IO_BYTES
    entry.st_blocks = -(-attr.stored // SECTOR_BYTES)
    entry.st_atime_ns = attr.atime_ns
    entry.st_mtime_ns = attr.mtime_ns
    entry.st_ctime_ns = attr.ctime_ns
    return entry


def missing_entry(name_s: float) -> pyfuse3.EntryAttributes:
    """Build the reply that there is no such name, and that the kernel need not ask again for so long."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = name_s
    entry.attr_timeout = 0
    return entry


def bare_entry(ino: int) -> pyfuse3.EntryAttributes:
    """Build the entry of "." or "..", of which only type and number count."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = ino
    entry.entry_timeout = 0
    entry.attr_timeout = 0
    entry.st_mode = stat.S_IFDIR
    return entry


def statfs_of(volume: VolumeStat) -> pyfuse3.StatvfsData:
    """Build the answer to statfs(2)."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = STATFS_UNIT_BYTES
    data.f_frsize = STATFS_UNIT_BYTES
    data.f_blocks = volume.total_bytes // STATFS_UNIT_BYTES
    data.f_bfree = volume.free_bytes // STATFS_UNIT_BYTES
    data.f_bavail = data.f_bfree
    data.f_files = max(INODES_MAX, volume.files)
    data.f_ffree = data.f_files - volume.files
    data.f_favail = data.f_ffree
    data.f_namemax = NAME_BYTES_MAX
    return data


def storable_time(time_ns: int) -> int:
    """Return the nearest time that fits the wire, as Linux does with times out of a filesystem's range."""
    return min(max(time_ns, -TIME_NS_MAX), TIME_NS_MAX)


def permitted(attr: Attr, mask: int, uid: int, groups: set[int]) -> bool:
    """Decide access(2) by the permission bits; ``mask`` is a combination of R_OK, W_OK and X_OK."""
    if uid == 0:
        return not mask & 1 or stat.S_ISDIR(attr.mode) or bool(attr.mode & 0o111)
    if uid == attr.uid:
        bits = attr.mode >> 6
    elif attr.gid in groups:
        bits = attr.mode >> 3
    else:
        bits = attr.mode
    return bits & mask == mask
