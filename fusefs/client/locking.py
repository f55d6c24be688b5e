"""Locks of files between all mounts: flock(2) and fcntl(2), kept by the service (metadata.state.locks).

What another mount reads under a lock was written under one, so data written here is committed before a lock is given
up or weakened. Locks end with the session: whoever had some finds its open files dead.

Where nobody else can see a file before we are asked (``Leases.alone``) and nobody had locks on it, this mount decides
by itself (``LockTables``), without a word to the service; what was written stays here too, because whoever wants the
lock has the lease recalled first. When that lease ends, however it does, the table goes into the journal at once and
the service decides from then on (``hand_over``): so it is there before a recall is acknowledged, a new leader's term is
named, or any question about the inode is answered. A mount that is fenced before is told so by that, and its session
has ended.

The service does not know processes and descriptors. Who may hold something is noted here, by the number that the
kernel gives an owner and by the handle that the lock was taken through: a process loses its fcntl locks of a file
when it closes any descriptor of it (``closed``), and what was taken through a handle ends with it (``released``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Optional

import trio

from fusefs.client.handles import Handle
from fusefs.client.locktables import LockTables
from fusefs.client.results import expect
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata import api
from metadata.api import Held, lockset
from node.wire.errors import Code, FsError
from node.wire.limits import LOCK_ALONE_ASK_S, LOCK_ASK_S

log = logging.getLogger(__name__)

END = lockset.END
ASKED_MAX = 4096
AGAIN_S = 1.0  # until a last close that the service has not heard of is told again

_Key = tuple[bool, int]  # flock or fcntl, the kernel's number of the owner


class _Owner:
    """Who may hold locks on one file."""

    __slots__ = ("handles", "pending", "holds", "pids")

    def __init__(self) -> None:
        self.handles: set[Handle] = set()
        self.pids: set[int] = set()  # who asked
        self.pending = 0  # requests under way
        self.holds = False


class Locking:
    """The locks of the programs on this mount."""

    def __init__(self, session: Session, writeback: WriteBack, now_ns: Callable[[], int]) -> None:
        self._session = session
        self._now_ns = now_ns
        self._tables = LockTables()
        self._asked: dict[int, float] = {}  # inode -> when it was last asked whether we are alone with it
        self._waiting: dict[int, tuple[int, bool]] = {}  # ticket -> (inode, flock)
        self._writeback = writeback
        self._owners: dict[int, dict[_Key, _Owner]] = {}
        self._left: dict[int, dict[tuple[_Key, Handle], None]] = {}  # inode -> what ends with last closes, and has not
        self._releasing: dict[int, trio.Event] = {}  # inodes of which a last close is being told to the service
        self._untold = trio.Event()  # some could not be told
        self._turns: dict[int, trio.Event] = {}
        self._tickets = 0
        self._counts = {"locks": 0, "unlocks": 0, "waits": 0, "asked": 0, "here": 0, "handed_over": 0}
        self.on_lost: Callable[[Collection[int], Collection[Handle]], None] = lambda pids, handles: None
        session.leases.on_end = self.hand_over
        session.holds_locks = lambda: bool(self._owners)

    # --- what programs ask ----------------------------------------------------------------------------------------

    async def get(
        self, handle: Handle, owner: int, *, flock: bool, low: int, high: int, exclusive: bool
    ) -> api.LockState:
        """Say what is in the way of a lock. The pid is 0 where its owner is on another mount."""
        self._check(handle)
        query = api.GetLock(self._session.id, handle.ino, owner, flock, low, high, exclusive)
        if self._decides(handle.ino):
            return self._tables.look(handle.ino, lockset.wanted(self._session.id, query))
        return await self._session.query(query, api.LockState)

    def is_own(self, state: api.LockState) -> bool:
        """Whether the lock that is in the way belongs to a program of this mount."""
        return state.session == self._session.id

    async def lock(
        self,
        handle: Handle,
        owner: int,
        *,
        flock: bool,
        low: int,
        high: int,
        exclusive: bool,
        pid: int,
        wait: trio.CancelScope | None,
    ) -> None:
        """Lock. LOCKED where another's is in the way, or, with ``wait``, wait until it is not: INTERRUPTED when that
        scope, not entered yet, is cancelled; DEADLOCK instead of waiting for ever. IO: the session has ended."""
        self._check(handle)
        while handle.ino in self._left:  # else a last close that is told late would take this lock too
            await self._let_go(handle.ino)
        if not exclusive:
            await self._commit(handle)  # it may be weakened
        if not self._decides(handle.ino):
            await self._ask(handle.ino)
            self._check(handle)
        self._counts["locks"] += 1
        known = self._owner(handle.ino, (flock, owner))
        known.handles.add(handle)
        known.pids.add(pid)
        known.pending += 1
        self._tickets += 1
        ticket = self._tickets if wait is not None else 0
        turn = self._turns[ticket] = trio.Event()
        op = api.Lock(handle.ino, owner, flock, low, high, exclusive, pid, ticket)
        try:
            granted = self._decide(op)
            if granted is None:
                granted = await self._submit(handle, op, known)
                self._check(handle)  # a repetition is answered also to a session that was fenced since
            if not granted and wait is None:
                raise FsError(Code.LOCKED, "somebody else holds a lock")
            known.holds = True  # or will, until the wait has ended
            if not granted:
                assert wait is not None
                await self._wait(handle, op, turn, wait)
        finally:
            known.pending -= 1
            self._turns.pop(ticket, None)
            self._waiting.pop(ticket, None)
            self._settle(handle.ino, (flock, owner))

    async def unlock(self, handle: Handle, owner: int, *, flock: bool, low: int, high: int) -> None:
        """Give up what the owner holds in a range; data written here before is committed first."""
        self._check(handle)
        await self._commit(handle)
        await self._unlock(handle, (flock, owner), low, high)

    async def closed(self, handle: Handle, owner: int) -> None:
        """A process closed a descriptor of this file, and all is flushed: its fcntl locks of the file end."""
        if owner and (False, owner) in self._owners.get(handle.ino, {}):
            await self._unlock(handle, (False, owner), 0, END)

    async def released(self, handle: Handle) -> None:
        """The last descriptor of this handle is closed: what was taken through it ends. Where this fails now ``run``
        tries again."""
        keys = [key for key, known in self._owners.get(handle.ino, {}).items() if handle in known.handles]
        if keys:
            self._left.setdefault(handle.ino, {}).update(dict.fromkeys([(key, handle) for key in keys]))
            await self._let_go(handle.ino)

    async def run(self) -> None:
        """Tell the service of last closes that it has not heard of; until cancelled."""
        while True:
            await self._untold.wait()
            self._untold = trio.Event()
            await trio.sleep(AGAIN_S)
            for ino in list(self._left):
                try:
                    await self._let_go(ino)
                except FsError as error:
                    log.info("inode %d: locks of closed files are still held: %s", ino, error)

    async def _let_go(self, ino: int) -> None:
        """End what last closes have left of the locks on a file; one at a time."""
        while (other := self._releasing.get(ino)) is not None:
            await other.wait()
        if ino not in self._left:
            return
        left = self._left[ino]
        done = self._releasing[ino] = trio.Event()
        try:
            for key, handle in list(left):
                if handle.file.dead is None:
                    await self._commit(handle)
                await self._unlock(handle, key, 0, END)
                left.pop((key, handle), None)
                self._owner(ino, key).handles.discard(handle)
                self._settle(ino, key)
        finally:
            if not left:
                self._left.pop(ino, None)
            else:
                self._untold.set()
            del self._releasing[ino]
            done.set()

    # --- what the service says ------------------------------------------------------------------------------------

    def pushed(self, message: api.LocksGranted) -> None:
        """The turn of some has come."""
        if message.session == self._session.id:
            for ticket in message.tickets:
                if ticket in self._turns:
                    self._turns[ticket].set()

    def lost(self) -> None:
        """The session has ended, and all locks with it."""
        for owners in self._owners.values():
            for known in owners.values():
                if known.holds:
                    self.on_lost(known.pids, known.handles)
        self._owners.clear()
        self._tables.clear()
        for left in self._left.values():
            left.clear()
        for turn in self._turns.values():
            turn.set()

    # --- deciding here --------------------------------------------------------------------------------------------

    def hand_over(self, inos: Optional[Collection[int]] = None) -> None:
        """Sync. We decide no more about the locks of these inodes (None: of any): the service does, from the tables as
        they are now.

        A circle of owners is found by whoever knows all its parts. So ranges are waited for either here or there.
        """
        if not self._tables:
            return
        ending = self._tables.all() if inos is None else [ino for ino in inos if ino in self._tables]
        ranged = self._tables.ranged_waits()
        if ranged and not set(ranged).isdisjoint(ending):
            ending = {*ending, *ranged}
        for ino in ending:
            self._counts["handed_over"] += 1
            self._session.leases.bringing_locks(ino)
            self._session.leases.changed(ino)
            self._session.journal.add(api.PutLocks(ino, self._tables.take(ino)), self._now_ns(), (ino,))

    def _decides(self, ino: int) -> bool:
        """Sync. Whether we decide about the locks of an inode now."""
        if not self._session.leases.alone(ino, self._session.now_s()):
            self.hand_over((ino,))
            return False
        return ino in self._tables or self._session.leases.unlocked(ino)

    async def _ask(self, ino: int) -> None:
        """Ask whether we are alone with a file that nobody here has locks on."""
        session, now_s = self._session, trio.current_time()
        if not session.leases.on or not session.journal.enabled or ino in self._owners:
            return
        if now_s < self._asked.get(ino, -LOCK_ALONE_ASK_S) + LOCK_ALONE_ASK_S:
            return
        if len(self._asked) >= ASKED_MAX:
            self._asked.clear()
        self._asked[ino] = now_s
        try:
            await session.read(api.GetAttr(ino))
        except FsError as error:
            log.info("inode %d: %s", ino, error)  # and so will say whoever is asked for the lock

    def _decide(self, op: api.Lock) -> Optional[bool]:
        """Sync. Lock here; None: the service has to be asked."""
        ino, want = op.ino, lockset.wanted(self._session.id, op)
        ranged = op.ticket != 0 and not op.flock
        if self._decides(ino):
            if not self._tables.full(ino) and not (ranged and self._waits_there() and self._tables.blocked(ino, want)):
                granted, turns = self._tables.request(ino, want, op.ticket)
                self._here(turns)
                self._waiting[op.ticket] = ino, op.flock
                return granted
            self.hand_over((ino,))
        self._waiting[op.ticket] = ino, op.flock
        if ranged:
            self.hand_over(self._tables.ranged_waits())
        return None

    def _unlock_here(self, ino: int, want: Held) -> bool:
        """Sync. Unlock here; False: the service has to be asked."""
        if not self._decides(ino):
            return False
        if self._tables.full(ino):
            self.hand_over((ino,))
            return False
        if ino in self._tables:
            self._here(self._tables.unlock(ino, want))
        return True

    def _here(self, turns: list[int]) -> None:
        """Something was decided here, and by that the turn of some has come."""
        self._counts["here"] += 1
        self._session.exclusive.changed()
        for ticket in turns:
            if ticket in self._turns:
                self._turns[ticket].set()

    def _waits_there(self) -> bool:
        """Whether somebody here waits for a range at the service."""
        return any(
            ticket and not flock and not self._tables.waits(ino, ticket)
            for ticket, (ino, flock) in self._waiting.items()
        )

    # --- how ------------------------------------------------------------------------------------------------------

    def _check(self, handle: Handle) -> None:
        handle.file.check()
        if handle.file.incarnation != self._session.incarnation:
            raise FsError(Code.IO, "the session that had this file open has ended")

    async def _commit(self, handle: Handle) -> None:
        """What is written here is seen by whoever gets the lock next: also where he has to recall the file first."""
        file = handle.file
        if not file.idle_data and not (file.exclusive and self._decides(file.ino)):
            try:
                await self._writeback.flush(handle.file)
            except FsError as error:
                log.warning("inode %d: unlocked with data that is not written back: %s", handle.ino, error)

    async def _submit(self, handle: Handle, op: api.Lock, known: _Owner) -> bool:
        try:
            results = await self._session.submit(op, incarnation=handle.file.incarnation)
        except BaseException:
            known.holds = True  # perhaps
            raise
        return expect(results[0], api.Locked).granted

    async def _unlock(self, handle: Handle, key: _Key, low: int, high: int) -> None:
        self._counts["unlocks"] += 1
        flock, owner = key
        op = api.Unlock(handle.ino, owner, flock, low, high)
        if handle.file.dead is not None or handle.file.incarnation != self._session.incarnation:
            return  # all its locks have ended
        try:
            if not self._unlock_here(handle.ino, lockset.wanted(self._session.id, op)):
                expect((await self._session.submit(op, incarnation=handle.file.incarnation))[0], api.Done)
        except FsError as error:
            if error.code not in (Code.UNKNOWN_SESSION, Code.FENCED):
                raise
        if flock or (low == 0 and high == END):
            known = self._owners.get(handle.ino, {}).get(key)
            if known is not None:
                known.holds = False
                self._settle(handle.ino, key)

    async def _wait(self, handle: Handle, op: api.Lock, turn: trio.Event, wait: trio.CancelScope) -> None:
        self._counts["waits"] += 1
        with wait:
            while not turn.is_set():
                with trio.move_on_after(LOCK_ASK_S):
                    await turn.wait()
                if turn.is_set() or self._tables.waits(op.ino, op.ticket):
                    continue
                if not await self._still_waits(handle, op):
                    break
        self._check(handle)
        if wait.cancelled_caught and not await self._withdraw(handle, op):
            raise FsError(Code.INTERRUPTED, "a wait for a lock was interrupted")

    async def _still_waits(self, handle: Handle, op: api.Lock) -> bool:
        self._counts["asked"] += 1
        query = api.GetLock(
            self._session.id, op.ino, op.owner, op.flock, op.low, op.high, op.exclusive, op.ticket
        )
        try:
            state = await self._session.query(query, api.LockState)
        except FsError as error:
            log.info("inode %d: cannot ask for the turn of a lock: %s", op.ino, error)
            return handle.file.dead is None
        if not state.waiting and not state.held and handle.file.dead is None:
            raise FsError(Code.IO, "the session that waited for a lock has ended")
        return state.waiting

    async def _withdraw(self, handle: Handle, op: api.Lock) -> bool:
        """Wait no more. True: the turn had come before."""
        if self._tables.cancel(op.ino, op.ticket):
            return False
        cancel = api.CancelLock(op.ino, op.ticket)
        try:
            results = await self._session.submit(cancel, incarnation=handle.file.incarnation)
            return expect(results[0], api.Locked).granted
        except FsError as error:
            log.warning("inode %d: a wait for a lock could not be withdrawn: %s", op.ino, error)
            return False

    def _owner(self, ino: int, key: _Key) -> _Owner:
        return self._owners.setdefault(ino, {}).setdefault(key, _Owner())

    def _settle(self, ino: int, key: _Key) -> None:
        """Forget an owner that holds nothing."""
        owners = self._owners.get(ino, {})
        known = owners.get(key)
        if known is not None and not known.holds and not known.pending:
            del owners[key]
        if not owners:
            self._owners.pop(ino, None)

    def statistics(self) -> dict[str, Any]:
        return {
            **self._counts,
            "waiting": len(self._turns),
            "files": len(self._owners),
            "files_here": len(self._tables),
        }
