"""Segments and catalog together: what is appended becomes durable first and visible then.

Three locks, taken in this order: ``writing`` by whoever appends or takes blocks away (one at a time), ``checkpointing``
by whoever commits the catalog, ``index`` for the microseconds in which the catalog and the position change together.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from node.wire.types import Buffer
from storage.catalog import Catalog
from storage.entry import Entry
from storage.records import RECORD_HEADER_BYTES, Record
from storage.recover import Place, recover, transition
from storage.segments import Segments

_log = logging.getLogger(__name__)


class Journal:
    """The one writer of a store. Opening recovers (``recovery`` tells what was found)."""

    def __init__(self, segments: Segments, catalog: Catalog, *, commit_entries: int) -> None:
        self.segments = segments
        self.catalog = catalog
        self.at, self.recovery = recover(segments, catalog, commit_entries=commit_entries)
        self.writing = threading.Lock()
        self.index = threading.Lock()
        self._checkpointing = threading.Lock()
        self._checkpointed_bytes = segments.used_bytes
        self._checkpoint_failed = False

    def append(self, group: Sequence[tuple[Record, Buffer]]) -> None:
        """Write and sync a group; only then does the catalog, and so anybody, see it. The caller holds ``writing``.

        Raises OSError, with nothing of the group left, when the disk is full; FatalDiskError when it is broken.
        """
        offsets = self.segments.append(group)
        self.segments.sync()
        number = self.segments.active
        with self.index:
            for (record, _), offset in zip(group, offsets):
                old = self.catalog.get(record.block)
                self.at.change(self.catalog, record.block, old, transition(old, record, number, offset))
                self.at.epoch_max = max(self.at.epoch_max, record.epoch)
            self.at.sequence = group[-1][0].sequence
            self.at.segment, self.at.offset = number, self.segments.length(number)

    def roll(self) -> None:
        """Begin the next segment. The caller holds ``writing``. Raises OSError on a full disk."""
        self.segments.roll()
        with self.index:
            self.at.segment, self.at.offset = self.segments.active, self.segments.length(self.segments.active)

    def forget(self, block: bytes, entry: Entry) -> bool:
        """Forget a block if its entry is still this one. The caller holds ``writing``."""
        with self.index:
            if self.catalog.get(block) != entry:
                return False
            self.at.change(self.catalog, block, entry, None)
            return True

    def replace(self, block: bytes, old: Entry, new: Entry) -> bool:
        """Set a block's entry if it is still ``old``."""
        with self.index:
            if self.catalog.get(block) != old:
                return False
            self.at.change(self.catalog, block, old, new)
            return True

    def end(self) -> Place:
        """Return the place behind the last durable record."""
        with self.index:
            return self.at.segment, self.at.offset

    def dead(self, number: int) -> int:
        """Return how many bytes of a segment are needed by nobody."""
        usage = self.at.usage
        return self.segments.length(number) - usage.live(number) - usage.quarantined(number)

    def remove(self, number: int) -> bool:
        """Remove a segment that no entry points into. False when the catalog could not be made durable first.

        The catalog says so before the segment goes, so that a start in between knows that it may be missing.
        """
        usage = self.at.usage
        assert not usage.live(number) and not usage.quarantined(number), number
        with self.index:
            self.at.removing = self.at.removing | {number}
        if not self.checkpoint():
            return False
        self.segments.remove(number)
        with self.index:
            self.at.removing = self.at.removing - {number}
        return True

    # -- the catalog's commits

    def lag_bytes(self) -> int:
        """Return about how many bytes a start would have to scan."""
        return self.segments.used_bytes - self._checkpointed_bytes

    def checkpoint(self) -> bool:
        """Commit the catalog; return whether it is durable. A full disk is only logged: all stays in memory."""
        with self._checkpointing:
            with self.index:
                used_bytes = self.segments.used_bytes
                self.catalog.freeze(self.at.summary(self.segments))
            try:
                self.catalog.flush()
            except OSError as error:
                if not self._checkpoint_failed:  # said once, not every few seconds
                    _log.warning("catalog not committed, it stays in memory: %s", error)
                self._checkpoint_failed = True
                return False
            self._checkpoint_failed = False
            self._checkpointed_bytes = used_bytes
            return True

    def close(self) -> None:
        """Commit the catalog and release everything. Nothing else may be running."""
        self.checkpoint()
        self.catalog.close()
        self.segments.close()


def size_of(record: Record) -> int:
    """Return how much a record takes in a segment."""
    return RECORD_HEADER_BYTES + record.stored
