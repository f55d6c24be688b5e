"""What the blocks of each placement group add up to, so that two servers see at a glance whether they hold the same.

One row a bucket (``storage.order``), changed with every block that comes, goes or is touched. A group's digest is the
sum of its rows: of two words of each name, and of a third times the touch epoch, modulo 2^64. Names are hashes, so the
sums of different sets differ but for a chance of 2^-128, and the order in which blocks came does not matter. Pure.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

from storage.entry import Entry, State
from storage.order import BUCKETS

ROW = struct.Struct("<IIQQQQ")  # blocks that live, blocks damaged, bytes stored, two sums of names, one of touches
_WORDS = struct.Struct("<QQQ")
_MASK = (1 << 64) - 1
_COLUMNS = "IIQQQQ"

Row = tuple[int, int, int, int, int, int]


class Sum(NamedTuple):
    """What some buckets add up to."""

    blocks: int
    damaged: int
    stored_bytes: int
    digest: bytes  # 16 bytes
    touches: int


def delta(block: bytes, old: Optional[Entry], new: Optional[Entry]) -> Optional[Row]:
    """Return by how much a block's row changes (modulo 2^64) when its entry does; None for not at all."""
    now = _part(block, new)
    if old is None:
        return now if new is not None else None
    was = _part(block, old)
    if was == now:
        return None
    return _add(now, was, -1)


def _part(block: bytes, entry: Optional[Entry]) -> Row:
    if entry is None or entry.state == State.QUARANTINED:
        return 0, 0, 0, 0, 0, 0
    if entry.state == State.DAMAGED:
        return 0, 1, 0, 0, 0, 0
    one, two, three = _WORDS.unpack_from(block, 8)
    return 1, 0, entry.stored, one, two, three * entry.epoch & _MASK


def _add(row: Row, other: Row, sign: int = 1) -> Row:
    a, b, c, d, e, f = row
    x, y, z, u, v, w = other
    sums = d + sign * u, e + sign * v, f + sign * w
    return a + sign * x, b + sign * y, c + sign * z, sums[0] & _MASK, sums[1] & _MASK, sums[2] & _MASK


def add_row(value: Optional[bytes], change: Row) -> bytes:
    """Return a packed row (None: zeros) with a change added."""
    return ROW.pack(*(_add(ROW.unpack(value), change) if value is not None else change))


class Tally:
    """All rows, in memory. One thread at a time."""

    def __init__(self, rows: Iterable[tuple[int, bytes]] = ()) -> None:
        """``rows``: (bucket, packed row)."""
        self._columns: Sequence[array[int]] = [array(code, [0]) * BUCKETS for code in _COLUMNS]
        for bucket, value in rows:
            self._change(bucket, ROW.unpack(value))

    def change(self, block: bytes, bucket: int, old: Optional[Entry], new: Optional[Entry]) -> None:
        """A block's entry changes."""
        change = delta(block, old, new)
        if change is not None:
            self._change(bucket, change)

    def _change(self, bucket: int, change: Row) -> None:
        blocks, damaged, stored, one, two, touches = self._columns
        a, b, c, d, e, f = change
        blocks[bucket] += a
        damaged[bucket] += b
        stored[bucket] += c
        one[bucket] = (one[bucket] + d) & _MASK
        two[bucket] = (two[bucket] + e) & _MASK
        touches[bucket] = (touches[bucket] + f) & _MASK

    def sum(self, buckets: range) -> Sum:
        """Return what these neighbouring buckets add up to."""
        part = slice(buckets.start, buckets.stop)
        blocks, damaged, stored, one, two, touches = [sum(column[part]) for column in self._columns]
        digest = _WORDS.pack(one & _MASK, two & _MASK, 0)[:16]
        return Sum(blocks, damaged, stored, digest, touches & _MASK)

    def with_damage(self) -> list[int]:
        """Return the buckets that have damaged blocks."""
        damaged = self._columns[1]
        return [bucket for bucket, count in enumerate(damaged) if count] if any(damaged) else []
