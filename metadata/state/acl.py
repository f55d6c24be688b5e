"""POSIX access control lists as Linux passes them in extended attributes, and how they go with a mode. Pure.

A value is a version (2) and entries of (tag, permissions, id), little-endian, in a fixed order: owner, named users,
group, named groups, mask, others. The mode's three groups of bits are those of the owner, of the mask (of the group
where there is no mask) and of others, and both always say the same. A list of only owner, group and others is a mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, error
from typing import NamedTuple

from node.wire.errors import Code, FsError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

HAS_ACCESS = 1  # in Inode.acl and Attr.flags
HAS_DEFAULT = 2

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ORDER = (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)
_VERSION = 2
_HEADER = Struct("<I")
_ENTRY = Struct("<HHI")
_NO_ID = (1 << 32) - 1


class Entry(NamedTuple):
    tag: int
    perm: int
    id: int


def decode(value: bytes) -> tuple[Entry, ...]:
    """Read a value; empty where it names nobody. INVALID for what no kernel would make."""
    if not value:
        return ()
    try:
        (version,) = _HEADER.unpack_from(value)
        entries = tuple(Entry(*entry) for entry in _ENTRY.iter_unpack(value[_HEADER.size :]))
    except error:
        raise FsError(Code.INVALID, f"an access control list of {len(value)} bytes") from None
    if version != _VERSION:
        raise FsError(Code.INVALID, f"an access control list of version {version}")
    if entries:
        _check(entries)
    return entries


def _check(entries: Sequence[Entry]) -> None:
    tags = [entry.tag for entry in entries]
    if any(tag not in _ORDER for tag in tags) or any(entry.perm > 7 for entry in entries):
        raise FsError(Code.INVALID, "an access control list with unknown tags or permissions")
    if tags != sorted(tags, key=_ORDER.index) or any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)):
        raise FsError(Code.INVALID, "an access control list that is out of order or lacks somebody")
    named = {tag for tag in tags if tag in (USER, GROUP)}
    if tags.count(MASK) > 1 or (named and MASK not in tags):
        raise FsError(Code.INVALID, "an access control list without its mask")
    if any(entry.id == _NO_ID for entry in entries if entry.tag in (USER, GROUP)):
        raise FsError(Code.INVALID, "an access control list that names nobody")


def encode(entries: Sequence[Entry]) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join([_ENTRY.pack(*entry) for entry in entries])


def is_mode(entries: Sequence[Entry]) -> bool:
    """Whether a mode says it all."""
    return len(entries) == 3


def bits_of(entries: Sequence[Entry]) -> int:
    """The nine bits of the mode that goes with a list."""
    by_tag = {entry.tag: entry.perm for entry in entries}
    return by_tag[USER_OBJ] << 6 | by_tag.get(MASK, by_tag[GROUP_OBJ]) << 3 | by_tag[OTHER]


def with_bits(entries: Sequence[Entry], mode: int) -> tuple[Entry, ...]:
    """The list after chmod(2)."""
    group = MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
    wanted = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(entry._replace(perm=wanted.get(entry.tag, entry.perm)) for entry in entries)


def inherited(default: Sequence[Entry], mode: int) -> tuple[Entry, ...]:
    """The access list of what is made with ``mode`` where ``default`` is handed down: nobody gets more than either."""
    group = MASK if any(entry.tag == MASK for entry in default) else GROUP_OBJ
    most = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(entry._replace(perm=entry.perm & most.get(entry.tag, 7)) for entry in default)
