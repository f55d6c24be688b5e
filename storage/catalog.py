"""The index of a block store: block -> where its record is, and its state.

The segments are the truth. A catalog only remembers what they say up to a *position*, so that a start need not read
them all: updates collect in memory and are committed now and then, together with the position they stand for. What a
crash takes from the catalog, the store reads again from the segments behind the position; where the catalog is missing,
damaged or of another store, the store reads all of them.
"""

from __future__ import annotations

import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Optional, Protocol

import lmdb
import msgspec
from msgspec.structs import replace

from node.host.disk import FatalDiskError
from node.wire.limits import CATALOG_MAP_BYTES
from storage.entry import Entry, State, Usage, counts, unpack_entry
from storage.order import BUCKETS, bucket_of, key_of
from storage.tally import Row, Tally, add_row, delta

__all__ = ["Catalog", "Entry", "LmdbCatalog", "MemoryCatalog", "ScrubState", "State", "Summary", "counts"]

VERSION = 3
EVERYTHING = range(BUCKETS)
_STEP_ENTRIES = 2048  # more of them at once leave more pages free in the file

_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError, struct.error)


def _counts(value: Optional[bytes]) -> bool:
    return value is not None and value[-1] != State.QUARANTINED


class ScrubState(msgspec.Struct, frozen=True, kw_only=True):
    """How far scrubbing is."""

    place: tuple[int, int] = (0, 0)  # segment, offset: verified up to here; (0, 0) between passes
    until: tuple[int, int] = (0, 0)  # where the pass ends
    passes: int = 0  # finished
    damaged: int = 0  # blocks found damaged in this pass
    done_bytes: int = 0  # read in this pass
    begun_s: int = 0  # when the pass began, seconds since the Unix epoch


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a catalog stands for, committed together with its entries."""

    version: int = VERSION
    store: bytes = b""  # identity of the store
    segment: int = 0  # the position: the catalog holds what the segments say before it
    offset: int = 0
    sequence: int = 0  # of the last record before the position
    blocks: int = 0  # LIVE and DAMAGED
    epoch_floor: int = 0  # no block counts as touched earlier than this: damage may have cost touches
    epoch_max: int = 0  # the highest epoch in any record
    segments: dict[int, int] = {}  # number -> length in bytes, at that position
    usage: dict[int, tuple[int, int]] = {}  # number -> bytes of blocks that live, that are in quarantine
    confirmed: tuple[int, int] = (0, 0)  # segment, offset: what was put or touched before it is known to the volume
    purged: tuple[int, int] = (0, 0)  # deletions before it are out of quarantine
    scrub: ScrubState = ScrubState()
    pg_epoch: int = 0  # the highest of the placement table that a leader told of
    removing: tuple[int, ...] = ()  # segments that no entry needs: about to be removed, or gone already


class Catalog(Protocol):
    """An index with a position. Readers may be in any threads; writers one at a time, ``flush`` beside them."""

    def summary(self) -> Summary:
        """Return the summary of the last flush; an empty one for a catalog that was never flushed."""

    def get(self, block: bytes) -> Optional[Entry]:
        """Return the entry of a block as last set."""

    def set(self, block: bytes, entry: Optional[Entry]) -> None:
        """Set or (None) forget an entry. Durable after flush."""

    def pending(self) -> int:
        """Return how many entries were set since the last flush began."""

    def freeze(self, summary: Summary) -> None:
        """Begin a flush: what was set so far belongs to this summary. The one who sets must be the one who calls."""

    def flush(self) -> None:
        """Make durable what was frozen. Returns at once when nothing is. Raises OSError and keeps all.

        May run in a thread of its own while others get and set. A crash leaves the old position, with any of the new
        entries, or the new one with all of them."""

    def clear(self) -> None:
        """Forget everything, durably."""

    def scan(self, after: bytes = b"", buckets: range = EVERYTHING) -> Iterator[tuple[bytes, Entry]]:
        """Walk the entries behind the name ``after`` in the order of ``storage.order``, in these buckets only.

        As they were at the start; any of what is set meanwhile may be among them. Any thread."""

    def tally(self) -> Tally:
        """Return what the entries add up to. Right after opening or ``clear``, before anything is set."""

    def close(self) -> None:
        """Release what is held; nothing is flushed."""


class MemoryCatalog:
    """The catalog's twin for tests: survives as long as the object. ``crash`` forgets what was not flushed."""

    def __init__(self) -> None:
        self._now: dict[bytes, Entry] = {}
        self._changed: set[bytes] = set()
        self._frozen: Optional[tuple[Summary, dict[bytes, Entry]]] = None
        self._durable: tuple[Summary, dict[bytes, Entry]] = (Summary(), {})

    def summary(self) -> Summary:
        return self._durable[0]

    def get(self, block: bytes) -> Optional[Entry]:
        return self._now.get(block)

    def set(self, block: bytes, entry: Optional[Entry]) -> None:
        self._changed.add(block)
        if entry is None:
            self._now.pop(block, None)
        else:
            self._now[block] = entry

    def pending(self) -> int:
        return len(self._changed)

    def freeze(self, summary: Summary) -> None:
        self._frozen = (summary, dict(self._now))
        self._changed.clear()

    def flush(self) -> None:
        if self._frozen is not None:
            self._durable, self._frozen = self._frozen, None

    def clear(self) -> None:
        self._now.clear()
        self._changed.clear()
        self._frozen, self._durable = None, (Summary(), {})

    def scan(self, after: bytes = b"", buckets: range = EVERYTHING) -> Iterator[tuple[bytes, Entry]]:
        found = sorted((key_of(block), entry) for block, entry in self._now.copy().items())
        return iter([
            (key_of(key), entry) for key, entry in found if bucket_of(key) in buckets and key > key_of(after)
        ])

    def tally(self) -> Tally:
        tally = Tally()
        for block, entry in self._now.items():
            tally.change(block, bucket_of(key_of(block)), None, entry)
        return tally

    def close(self) -> None:
        """Nothing is held."""

    def crash(self) -> None:
        """Forget what was not flushed, as a loss of power does."""
        self._frozen = None
        self._now = dict(self._durable[1])
        self._changed.clear()


class LmdbCatalog:
    """The catalog in an LMDB environment, fully synced at each flush; the only code here that knows lmdb.

    A catalog that LMDB cannot open, or of another version, is removed: it holds nothing that the segments do not.
    """

    def __init__(self, directory: Path, *, map_bytes: int = CATALOG_MAP_BYTES) -> None:
        self._directory = directory
        self._map_bytes = map_bytes
        self._flushing = threading.Lock()
        # An update is in _new, then in _old while it is being committed, then in LMDB. A reader looks in this order,
        # and each step fills the next place before it empties the last: so it finds every update somewhere.
        # By key (storage.order), here and there.
        self._new: dict[bytes, Optional[bytes]] = {}
        self._old: dict[bytes, Optional[bytes]] = {}
        self._frozen: Optional[Summary] = None
        try:
            self._open()
        except (*_DAMAGE, lmdb.VersionMismatchError, msgspec.MsgspecError):
            shutil.rmtree(directory)
            self._open()

    def _open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # LMDB would give it the mode of a file
        self._environment = lmdb.open(
            str(self._directory), map_size=self._map_bytes, max_dbs=3, max_spare_txns=4, mode=0o600, meminit=False,
        )
        try:
            length = (self._directory / "data.mdb").stat().st_size
            if length < (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]:
                raise lmdb.CorruptedError("cut off")  # reading the missing pages would end the process by SIGBUS
            self._blocks = self._environment.open_db(b"blocks")
            self._about = self._environment.open_db(b"about")
            self._groups = self._environment.open_db(b"groups")
            with self._environment.begin() as transaction:
                summary = transaction.get(b"summary", db=self._about)
            self._summary = msgspec.msgpack.decode(summary, type=Summary) if summary else Summary()
            if self._summary.version != VERSION:
                raise msgspec.ValidationError(f"catalog version {self._summary.version}")
        except BaseException:
            self._environment.close()
            raise

    def summary(self) -> Summary:
        return self._summary

    def get(self, block: bytes) -> Optional[Entry]:
        key = key_of(block)
        for updates in (self._new, self._old):
            if key in updates:
                value = updates[key]  # updates never leave the dictionary they are in
                return unpack_entry(value) if value is not None else None
        try:
            with self._environment.begin() as transaction:
                value = transaction.get(key, db=self._blocks)
            return unpack_entry(value) if value is not None else None
        except _DAMAGE as error:
            self._distrust(error)

    def set(self, block: bytes, entry: Optional[Entry]) -> None:
        self._new[key_of(block)] = entry.pack() if entry is not None else None

    def pending(self) -> int:
        return len(self._new)

    def freeze(self, summary: Summary) -> None:
        with self._flushing:
            if self._old:  # a flush failed: its updates and these go together
                self._new = {**self._old, **self._new}
            self._frozen = summary
            self._old = self._new
            self._new = {}

    def flush(self) -> None:
        with self._flushing:
            summary = self._frozen
            if summary is None:
                return
            try:
                self._write(sorted(self._old), summary)
            except lmdb.Error as error:
                raise OSError(f"catalog {self._directory}: {error}") from error
            self._frozen = None
            self._old = {}

    def _write(self, order: list[bytes], summary: Summary) -> None:
        """Commit the updates in the order of keys and in steps, so that each step touches its own few pages.

        Keys are random: one large transaction would copy nearly every page, and the file would be twice as long. After
        a crash in between, some entries are newer than the position: applying the records behind it once more changes
        nothing, and the number of blocks, the usage and the tally are kept right for what is in.
        """
        blocks, usage = self._summary.blocks, Usage(self._summary.usage)
        steps = len(order) > _STEP_ENTRIES
        for at in range(0, len(order), _STEP_ENTRIES):
            last = at + _STEP_ENTRIES >= len(order)
            with self._environment.begin(write=True) as transaction:
                for key in order[at : at + _STEP_ENTRIES]:
                    value = self._old[key]
                    before = transaction.get(key, db=self._blocks)
                    blocks += _counts(value) - _counts(before)
                    old = unpack_entry(before) if before else None
                    new = unpack_entry(value) if value else None
                    if steps:
                        usage.change(old, new)
                    self._count(transaction, key, delta(key_of(key), old, new))
                    if value is None:
                        transaction.delete(key, db=self._blocks)
                    else:
                        transaction.put(key, value, db=self._blocks)
                reached = summary if last else replace(self._summary, blocks=blocks, usage=usage.snapshot())
                transaction.put(b"summary", msgspec.msgpack.encode(reached), db=self._about)
            self._summary = reached
        if not order:
            with self._environment.begin(write=True) as transaction:
                transaction.put(b"summary", msgspec.msgpack.encode(summary), db=self._about)
            self._summary = summary

    def _count(self, transaction: Any, key: bytes, change: Optional[Row]) -> None:
        if change is not None:
            row = transaction.get(key[:2], db=self._groups)
            transaction.put(key[:2], add_row(row, change), db=self._groups)

    def clear(self) -> None:
        with self._flushing:
            self._environment.close()
            shutil.rmtree(self._directory)
            self._new, self._old, self._frozen = {}, {}, None
            self._open()

    def scan(self, after: bytes = b"", buckets: range = EVERYTHING) -> Iterator[tuple[bytes, Entry]]:
        low = max(buckets.start.to_bytes(2, "big"), key_of(after) + b"\0" if after else b"")
        high = buckets.stop.to_bytes(3, "big")[1:] if buckets.stop < BUCKETS else None
        updates = self._updates(low, high)  # before the transaction begins: what leaves them is in it
        with self._environment.begin(db=self._blocks) as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(low)
            while found or updates:
                key = cursor.key() if found else b""
                if found and high is not None and key >= high:
                    found = False
                    continue
                if updates and (not found or updates[-1][0] <= key):
                    if found and updates[-1][0] == key:
                        found = cursor.next()
                    key, value = updates.pop()
                    if value is not None:
                        yield key_of(key), unpack_entry(value)
                    continue
                yield key_of(key), unpack_entry(cursor.value())
                found = cursor.next()

    def _updates(self, low: bytes, high: Optional[bytes]) -> list[tuple[bytes, Optional[bytes]]]:
        """Return what is not yet in LMDB of a range of keys, falling."""
        new, old = self._new.copy(), self._old  # in this order: nothing slips through while a flush begins
        merged = {**old.copy(), **new}
        within = [item for item in merged.items() if low <= item[0] and (high is None or item[0] < high)]
        return sorted(within, key=lambda item: item[0], reverse=True)

    def tally(self) -> Tally:
        with self._environment.begin(db=self._groups) as transaction, transaction.cursor() as cursor:
            return Tally((bucket_of(bytes(key)), value) for key, value in cursor)

    def close(self) -> None:
        self._environment.close()

    def _distrust(self, error: Exception) -> NoReturn:
        """The file turns out to be damaged: see to it that the next start reads the segments instead."""
        (self._directory / "data.mdb").unlink(missing_ok=True)
        what = f"catalog {self._directory} is damaged ({error}); the next start builds it anew"
        raise FatalDiskError(what) from error
