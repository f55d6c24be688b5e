"""What a catalog knows of one block, and how the entries of all of them add up by segment."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import NamedTuple, Optional

from storage.records import RECORD_HEADER_BYTES

_ENTRY = struct.Struct("<IIIIIIB")


class State(enum.IntEnum):
    """What a block's entry stands for. Numbers are part of the format: append, never renumber."""

    LIVE = 1
    QUARANTINED = 2  # deleted, still readable; a touch brings it back
    DAMAGED = 3  # its bytes were found bad: reads fail, the next put stores it anew


class Entry(NamedTuple):
    """Where a block is and what is known about it."""

    segment: int
    offset: int  # of the encoded block (behind the record's header)
    stored: int  # length encoded
    plain: int  # length of the plaintext
    epoch: int  # the highest touch epoch
    time_s: int  # of the last change of state, seconds since the Unix epoch
    state: int

    def pack(self) -> bytes:
        return _ENTRY.pack(*self)


def unpack_entry(value: bytes) -> Entry:
    """Return an entry as ``pack`` made it."""
    return Entry._make(_ENTRY.unpack(value))


def counts(entry: Optional[Entry]) -> bool:
    """Whether an entry is one of the blocks that the store says it has."""
    return entry is not None and entry.state != State.QUARANTINED


class Usage:
    """How many bytes of each segment belong to blocks that live, and to blocks in quarantine, headers included.

    What is left of a segment is dead: records of blocks that are elsewhere or nowhere, touches, deletions, damage.
    """

    def __init__(self, known: Mapping[int, tuple[int, int]] = {}) -> None:  # noqa: B006  read only
        self._live = {segment: live for segment, (live, _) in known.items() if live}
        self._quarantined = {segment: held for segment, (_, held) in known.items() if held}
        self.live_bytes = sum(self._live.values())
        self.quarantined_bytes = sum(self._quarantined.values())

    def change(self, old: Optional[Entry], new: Optional[Entry]) -> None:
        """A block's entry changes."""
        if old is not None:
            self._add(old, -1)
        if new is not None:
            self._add(new, 1)

    def _add(self, entry: Entry, sign: int) -> None:
        size = sign * (entry.stored + RECORD_HEADER_BYTES)
        if entry.state == State.LIVE:
            self.live_bytes += size
            by_segment = self._live
        elif entry.state == State.QUARANTINED:
            self.quarantined_bytes += size
            by_segment = self._quarantined
        else:
            return
        total = by_segment.get(entry.segment, 0) + size
        if total:
            by_segment[entry.segment] = total
        else:
            by_segment.pop(entry.segment, None)

    def live(self, segment: int) -> int:
        """Return the bytes of a segment that belong to blocks that live."""
        return self._live.get(segment, 0)

    def quarantined(self, segment: int) -> int:
        """Return the bytes of a segment that belong to blocks in quarantine."""
        return self._quarantined.get(segment, 0)

    def snapshot(self) -> dict[int, tuple[int, int]]:
        """Return (live, quarantined) by segment, for ``Usage(snapshot)``."""
        segments = self._live.keys() | self._quarantined.keys()
        return {segment: (self.live(segment), self.quarantined(segment)) for segment in sorted(segments)}
