"""What this mount has changed by itself and the service does not know yet, in order.

Operations on names and attributes go in when they are answered (``fusefs.client.local``), and so does the data of a
file when it is closed. Everything goes out in that order, in batches of one Submit each, one after the other: so what
is lost when the mount dies is a suffix, a directory comes before what is in it, and a file's data before its new name
(rule 11). An entry leaves when the service has answered it. Nothing here is ever sent under two numbers.

Bytes of files that are still open have their place in that order too, though they come in here only now and then: a
*unit* of entries ends with all there are, where they are few, and a batch ends where a unit does. So what a batch
brings is all that was done before some moment. A unit in which nobody wrote to an open file may be cut anywhere.

Who must know that all of it has arrived waits in ``drain``: fsync, a mutation that goes to the service itself, a
question about an inode that is changed here, the acknowledgement of a recall, and whoever names a new leader's term.
What goes out here waits for none of these; that is why it travels as ``Submit.journal``, which the service takes even
in grace.

An error of an operation that was answered long ago is told at the next fsync or close of what it concerns.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional, Protocol

import trio

from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import INO_RANGE_MAX, LOG_DATA_ENTRY_BYTES

if TYPE_CHECKING:
    from fusefs.client.commit import Group
    from fusefs.client.files import File

log = logging.getLogger(__name__)

DELAY_S = 0.03  # for others to come along
BATCH_OPS = 256
UNIT_OPS = 128  # and what files that are open have
HURRY_OPS = 512  # as many do not wait
ENTRIES_MAX = 16_384  # beyond, operations go to the service themselves
RETRY_S = 0.2
INOS = min(4096, INO_RANGE_MAX)
INOS_LOW = 1024

_PASSING = frozenset(
    {Code.OVERLOADED, Code.TIMEOUT, Code.RETRY, Code.UNREACHABLE, Code.NOT_LEADER, Code.SHUTTING_DOWN}
)


class Entry:
    """One operation, or (``file``) the data of a file up to a generation."""

    __slots__ = ("number", "op", "time_ns", "inos", "file", "generation", "group", "carry")

    def __init__(self, number: int, op: Optional[api.Op], time_ns: int, inos: tuple[int, ...]) -> None:
        self.number = number
        self.op = op
        self.time_ns = time_ns
        self.inos = inos
        self.file: Optional[File] = None
        self.generation = 0
        self.group: Optional[Group] = None  # on its way to the chunk servers, to be committed in a batch
        self.carry = False  # little data may travel with its commit: somebody waits for it


class Channel(Protocol):
    """The session, as far as a journal needs it."""

    async def bring(
        self,
        ops: tuple[api.Op, ...],
        times_ns: tuple[int, ...],
        bases: tuple[tuple[int, int], ...],
        gives: tuple[int, ...],
    ) -> tuple[api.Result, ...]:
        """Have a batch executed, whatever it takes; raises when it never will be. Leases on ``gives`` end with it."""
        ...

    async def more_inos(self, count: int) -> api.InoRange: ...

    def changed_here(self) -> None: ...


class Data(Protocol):
    """Write-back, as far as a journal needs it."""

    def reserve(self, file: File, generation: int, carry: bool) -> Optional[Group]:
        """Put what is dirty, where one small group is all there is and nobody else writes the file back; else None.
        With ``carry`` it may travel with its commit instead."""
        ...

    def hasten(self, *, carry: bool) -> None:
        """The journal waits for what is reserved; with ``carry`` somebody waits for the journal."""
        ...

    def message(self, file: File, put: Group) -> Optional[api.Commit]:
        """The commit of a finished put; None where it does not fit into a batch."""
        ...

    def landed(self, file: File, put: Group, committed: api.Committed) -> None: ...

    def unreserve(self, file: File) -> None: ...

    def log_full(self) -> None: ...

    async def flush_for_journal(self, file: File, carry: bool) -> None: ...


class Journal:
    """The changes of one session. ``run`` sends them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.data: Data
        self.on_settled: Callable[[int], None] = lambda ino: None  # nothing of this inode is left in here
        self.seal_open: Callable[[bool, Optional[File]], int] = lambda carry, but: 0  # adds what open files have
        self.give: Callable[[Collection[File]], tuple[int, ...]] = lambda files: ()  # which leases end with a batch
        self.on_failed: Callable[[Collection[int], FsError], None] = lambda inos, error: None
        self._entries: deque[Entry] = deque()
        self._concerned: dict[int, int] = {}  # inode -> entries
        self._versions: dict[int, int] = {}  # directory -> its data version at the service, before what is left
        self._number = 0  # of the newest entry
        self._done = 0  # all up to here have left
        self._units: deque[tuple[int, bool]] = deque()  # number of the last entry, whether it must not be cut
        self._unit_end = 0  # the last entry of the newest of them
        self._ending = False  # a unit
        self._answered = trio.lowlevel.ParkingLot()
        self._work = trio.Event()
        self._hurry = trio.Event()
        self._waiting = 0  # so many wait for what is in here
        self._suspended = 0
        self._inos: deque[tuple[int, int]] = deque()  # ranges [first, end) of numbers to give
        self._inos_left = 0
        self._ended = 0  # sessions that did
        self._wants_inos = trio.Event()
        self.enabled = True
        self.delay_s = DELAY_S
        self._batches = 0
        self._sent = 0
        self._lost = 0

    # --- what goes in -------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def open(self) -> bool:
        """Whether anything may be changed here now."""
        return self.enabled and not self._suspended and len(self._entries) < ENTRIES_MAX

    def take_ino(self) -> int:
        """A number for a new inode; 0: there is none now, and some are being fetched."""
        if self._inos_left < INOS_LOW:
            self._wants_inos.set()
        if not self._inos:
            return 0
        first, end = self._inos[0]
        self._inos_left -= 1
        if first + 1 == end:
            self._inos.popleft()
        else:
            self._inos[0] = first + 1, end
        return first

    def base(self, ino: int, version: int) -> None:
        """Names of a directory are about to be changed here; so far the service has them at this data version."""
        if ino not in self._concerned:
            self._versions[ino] = version

    def add(self, op: api.Op, time_ns: int, inos: tuple[int, ...]) -> None:
        """An operation was executed on the facts."""
        self._append(Entry(0, op, time_ns, inos))

    def add_data(self, file: File, time_ns: int, *, carry: bool = False) -> None:
        """The dirty bytes of a file shall be committed, as of now. ``carry``: somebody waits for that, so where they
        are few they may travel with the commit."""
        entry = Entry(0, None, time_ns, (file.ino,))
        entry.file = file
        entry.generation = file.dirty.seal()
        entry.carry = carry
        file.unsealed = False
        file.journaled += 1
        if file.reserved == file.journaled - 1:  # else an earlier entry has still to take its bytes
            entry.group = self.data.reserve(file, entry.generation, carry)
        alone = entry.group is None and not self._ending
        if alone:  # it may have to be brought outside of a batch
            self._end_unit(file)
        self._append(entry)
        if alone:
            self._mark(False)

    def _append(self, entry: Entry) -> None:
        self._channel.changed_here()
        self._number += 1
        entry.number = self._number
        self._entries.append(entry)
        for ino in entry.inos:
            self._concerned[ino] = self._concerned.get(ino, 0) + 1
        self._work.set()
        if len(self._entries) >= HURRY_OPS:
            self._hurry.set()
        if self._number - self._unit_end >= UNIT_OPS and not self._ending:
            self._end_unit()

    def _end_unit(self, but: Optional[File] = None, *, hurried: bool = False) -> None:
        """What was written to open files so far belongs to what was done so far; of ``but`` that is known already."""
        self._ending = True
        try:
            sealed = self.seal_open(hurried or self._hurry.is_set(), but)
        finally:
            self._ending = False
        self._mark(sealed > 0)

    def _mark(self, tight: bool) -> None:
        if self._number > self._unit_end:
            self._units.append((self._number, tight))
            self._unit_end = self._number

    def complete(self) -> None:
        """Something is about to be changed that is not in here: what was written to open files comes first."""
        if self.open:
            self._end_unit(hurried=True)

    def hurry(self) -> None:
        """Somebody would like to see it arrive."""
        self._hurry.set()

    def concerns(self, inos: Iterable[int]) -> bool:
        """Whether the service does not know yet how one of these was changed here."""
        concerned = self._concerned
        return bool(concerned) and any(ino in concerned for ino in inos)

    def inos(self) -> tuple[int, ...]:
        """The inodes that were changed here and of which the service does not know it yet."""
        return tuple(self._concerned)

    # --- who waits ----------------------------------------------------------------------------------------------

    async def drain(self, deadline: float) -> None:
        """Return when the service has answered all that is in here now. TIMEOUT at the deadline."""
        last = self._number
        self._waiting += 1
        try:
            while self._done < last:
                self._hurry.set()
                with trio.move_on_at(deadline) as scope:
                    await self._answered.park()
                if scope.cancelled_caught:
                    raise FsError(Code.TIMEOUT, "changes made here did not reach the metadata service in time")
        finally:
            self._waiting -= 1

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Nothing is changed here meanwhile."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def clear(self) -> None:
        """The session has ended: everything in here is lost."""
        self._ended += 1
        reserved = [entry.file for entry in self._entries if entry.file is not None and entry.group is not None]
        for entry in self._entries:
            if entry.file is not None:
                entry.file.journaled -= 1
        if self._entries:
            log.error("%d changes that were not synced are lost with the session", len(self._entries))
            self._lost += len(self._entries)
        self._entries.clear()
        self._units.clear()
        self._unit_end = self._number
        self._concerned.clear()
        self._versions.clear()
        self._inos.clear()
        self._inos_left = 0
        self._done = self._number
        for file in reserved:  # or who syncs or closes one of them waits in vain, instead of hearing of it
            self.data.unreserve(file)
        self._answered.unpark_all()

    # --- what goes out ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fetch_inos)
            while True:
                await self._work.wait()
                if not self._hurry.is_set():
                    with trio.move_on_after(self.delay_s):
                        await self._hurry.wait()
                hurried = self._hurry.is_set()
                self._hurry = trio.Event()
                while self._entries:
                    try:
                        self._end_unit(hurried=hurried)
                        await self._send_some()
                    except FsError as error:  # the session has ended, and clear was or will be called
                        log.info("the journal could not be sent: %s", error)
                        await trio.sleep(RETRY_S)
                    except Exception:  # a bug costs an attempt, not the mount
                        log.exception("the journal could not be sent")
                        await trio.sleep(RETRY_S)
                    if not self._hurry.is_set() and len(self._entries) < HURRY_OPS:
                        break
                    hurried = False  # who has come since has said so anew
                if self._entries:
                    self._work.set()
                else:
                    self._work = trio.Event()

    async def _fetch_inos(self) -> None:
        while True:
            await self._wants_inos.wait()
            ended = self._ended
            try:
                got = await self._channel.more_inos(INOS)
                if ended == self._ended:  # else they were given to the session before
                    self._inos.append((got.first, got.first + got.count))
                    self._inos_left += got.count
            except FsError as error:
                log.info("no inode numbers: %s", error)
                await trio.sleep(RETRY_S)
            self._wants_inos = trio.Event()

    async def _send_some(self) -> None:
        batch = await self._gather()
        if not batch:
            return
        number = batch[-1].number
        ops = tuple(map(self._op_of, batch))
        gives = self._gives(batch)  # before anything else is read off the entries: it may add some
        results = await self._channel.bring(ops, tuple([entry.time_ns for entry in batch]), self._bases(batch), gives)
        if not self._entries or self._entries[0] is not batch[0]:
            return  # cleared meanwhile
        self._batches += 1
        failed: Optional[tuple[Entry, api.Failed]] = None
        for entry, op, result in zip(batch, ops, results):
            if isinstance(result, api.Failed):
                failed = entry, result
                break
            self._learn_versions(op, result)
            if entry.file is not None and isinstance(result, api.Committed):
                assert entry.group is not None
                self.data.landed(entry.file, entry.group, result)
                self.data.unreserve(entry.file)
            self._leave(entry)
        if failed is not None:
            await self._fell(*failed)
        assert self._done <= number
        self._answered.unpark_all()

    def _gives(self, batch: Sequence[Entry]) -> tuple[int, ...]:
        """The files in a batch that are given back with it: of these nothing is left behind."""
        files = {entry.file.ino: entry.file for entry in batch if entry.file is not None and entry.file.watched}
        if not files:
            return ()
        brought = Counter([ino for entry in batch for ino in entry.inos])
        whole = [file for ino, file in files.items() if self._concerned[ino] == brought[ino]]
        return tuple([ino for ino in self.give(whole) if self._concerned[ino] == brought[ino]])

    def _op_of(self, entry: Entry) -> api.Op:
        if entry.op is not None:
            return entry.op
        assert entry.file is not None and entry.group is not None
        message = self.data.message(entry.file, entry.group)
        assert message is not None
        return message

    async def _gather(self) -> list[Entry]:
        """The entries at the head that can be sent now; waits for the first one, or brings it by itself.

        A file that is new in this batch waits for its data: after a crash it is there with them or not at all.
        """
        units = iter(list(self._units))
        last, tight = next(units)
        batch: list[Entry] = []
        whole = 0  # of these a batch may consist
        made: set[int] = set()
        room_bytes = LOG_DATA_ENTRY_BYTES
        for entry in list(self._entries):
            if len(batch) == BATCH_OPS:
                break
            if entry.file is not None:
                if entry.group is None:
                    entry.group = self.data.reserve(entry.file, entry.generation, entry.carry)
                put = entry.group
                if put is not None and not put.done.is_set():
                    if whole and entry.file.ino not in made:
                        break
                    self.data.hasten(carry=self._waiting > 0)
                    await put.done.wait()
                    if not self._entries or self._entries[0] is not (batch[0] if batch else entry):
                        return []
                if put is None or put.error is not None or self.data.message(entry.file, put) is None:
                    if not batch:
                        await self._bring_data(entry)
                    break
                room_bytes -= put.carried_bytes
                if room_bytes < 0:
                    break
            elif isinstance(entry.op, api.Make):
                made.add(entry.op.ino)
            batch.append(entry)
            if entry.number > last:
                last, tight = next(units)
            if not tight or entry.number == last:
                whole = len(batch)
        return batch[:whole] if whole else batch

    async def _bring_data(self, entry: Entry) -> None:
        """Write a file back outside a batch: much data, an append, or one that failed."""
        file = entry.file
        assert file is not None
        for other in self._entries:  # those behind it too: nobody else writes the file back until all are released
            if other.file is file and other.group is not None:
                other.group = None
                self.data.unreserve(file)
        if file.dirty and file.dead is None and not (file.removed and not file.handles):
            try:
                await self.data.flush_for_journal(file, entry.carry)
            except FsError as error:
                log.warning("data of inode %d is not written back: %s", file.ino, error)
                if error.code in _PASSING and file.dirty and file.dead is None:
                    file.unsealed = True  # names need not wait for it any longer, but a recall does
        if self._entries and self._entries[0] is entry:
            self._leave(entry)
            self._answered.unpark_all()

    async def _fell(self, entry: Entry, result: api.Failed) -> None:
        """An operation that was answered as done failed at the service; what follows it goes on."""
        error = FsError(Code(result.code), result.detail)
        if entry.file is not None:
            entry.carry = False
            if error.code is Code.LOG_FULL:
                self.data.log_full()
            await self._bring_data(entry)  # once more, with everything that can be done about it
            return
        log.error("a change of inodes %s that was made here failed at the service: %s", list(entry.inos), error)
        self._lost += 1
        for ino in entry.inos:
            self._versions.pop(ino, None)
        self._leave(entry)
        self.on_failed(entry.inos, error)

    def _leave(self, entry: Entry) -> None:
        assert self._entries[0] is entry
        self._entries.popleft()
        self._done = entry.number
        if self._units[0][0] == entry.number:
            self._units.popleft()
        self._sent += 1
        if entry.file is not None:
            entry.file.journaled -= 1
        for ino in entry.inos:
            left = self._concerned[ino] - 1
            if left:
                self._concerned[ino] = left
            else:
                del self._concerned[ino]
                self._versions.pop(ino, None)
                self.on_settled(ino)

    # --- base versions ------------------------------------------------------------------------------------------

    def _bases(self, batch: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
        versions = self._versions
        if not versions:
            return ()
        inos = {ino: None for entry in batch for ino in entry.inos if ino in versions}
        return tuple([(ino, versions[ino]) for ino in inos])

    def _learn_versions(self, op: api.Op, result: api.Result) -> None:
        """What a result tells of the directories that are based on, and what it leaves open."""
        versions = self._versions
        if not versions:
            return
        told: dict[int, int] = {}
        for attr in (getattr(result, "attr", None), getattr(result, "parent", None)):
            if attr is not None:
                told[attr.ino] = attr.data_version
        for field in ("parent", "new_parent", "ino"):
            ino = getattr(op, field, 0)
            if ino not in versions:
                continue
            if ino in told:
                versions[ino] = told[ino]
            else:
                del versions[ino]
        if isinstance(result, api.Removed):
            versions.pop(result.ino, None)
        elif isinstance(result, api.Renamed):
            versions.pop(result.ino, None)
            versions.pop(result.replaced, None)

    def statistics(self) -> dict[str, Any]:
        return {
            "entries": len(self._entries),
            "batches": self._batches,
            "sent": self._sent,
            "lost": self._lost,
            "suspended": self._suspended,
            "inos": self._inos_left,
        }
