"""The order in which blocks are listed: one in which each placement group lies together, however long the table is.

A group is the low bits of a name's first eight bytes, read as a number. The key of a name is the name with those 64
bits reversed: so the bits that choose a group come first, and a group of a table of 2^k rows is the keys with one k-bit
prefix. The finest groups that a table may have are *buckets*; every group is a run of buckets.
"""

from __future__ import annotations

from node.wire.limits import PLACEMENT_GROUPS_MAX

_HEAD_BYTES = 8
_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
BUCKETS = PLACEMENT_GROUPS_MAX
_BUCKET_BITS = BUCKETS.bit_length() - 1

assert BUCKETS == 1 << 16  # two bytes of the key


def key_of(name: bytes) -> bytes:
    """Return the key of a name. The key of a key is the name."""
    return name[_HEAD_BYTES - 1 :: -1].translate(_MIRROR) + name[_HEAD_BYTES:]


def bucket_of(key: bytes) -> int:
    """Return the bucket that a key lies in."""
    return key[0] << 8 | key[1]


def is_table_length(groups: int) -> bool:
    """Whether a table may have this many rows."""
    return 0 < groups <= BUCKETS and groups & (groups - 1) == 0


def buckets_of(group: int, groups: int) -> range:
    """Return the buckets of a group of a table of ``groups`` rows."""
    assert is_table_length(groups) and 0 <= group < groups, (group, groups)
    first = int(f"{group:0{_BUCKET_BITS}b}"[::-1], 2)
    return range(first, first + BUCKETS // groups)


def group_of(name: bytes, groups: int) -> int:
    """Return the group of a block in a table of ``groups`` rows."""
    return int.from_bytes(name[:_HEAD_BYTES], "big") % groups
