"""Words of the wire: plain types that every layer shares.

Names, paths and symlink targets are ``bytes`` everywhere inside; ``str`` exists only at the command line.
All times are integer nanoseconds since the Unix epoch, all sizes and offsets are bytes.
"""

from __future__ import annotations

from typing import NewType, Union

Ino = NewType("Ino", int)
"""Inode number: 20-bit slot | 44-bit sequence, never reused."""

SessionId = NewType("SessionId", int)
"""One mount's registration; assigned by the log, never reused, never 0."""

MemberId = NewType("MemberId", int)
"""A Raft member: never reused, never 0."""

ServerId = NewType("ServerId", int)
"""A chunk server: never reused, never 0."""

GroupId = NewType("GroupId", int)
"""A Raft group. Group 0 hosts the root and, until slots move, every shard."""

BlockId = NewType("BlockId", bytes)
"""BLAKE3-256 of a block's plaintext, 32 bytes."""

Epoch = NewType("Epoch", int)
"""A garbage-collection epoch."""

Buffer = Union[bytes, bytearray, memoryview]
"""What travels as a payload frame: never copied on the way."""

ROOT_INO = Ino(1)
BLOCK_ID_BYTES = 32
SLOT_BITS = 20
SEQUENCE_BITS = 44


def slot_of(ino: int) -> int:
    """Return the slot that an inode number belongs to; the slot names the group that owns it."""
    return ino >> SEQUENCE_BITS
