"""Locks of files between all mounts: flock(2) and fcntl(2), kept by the service (metadata.state.locks).

What another mount reads under a lock was written under one, so data written here is committed before a lock is given
up or weakened. Locks end with the session: whoever had some finds its open files dead.

The service does not know processes and descriptors. Who may hold something is noted here, by the number that the
kernel gives an owner and by the handle that the lock was taken through: a process loses its fcntl locks of a file
when it closes any descriptor of it (``closed``), and what was taken through a handle ends with it (``released``).
"""

from __future__ import annotations

import logging
from typing import Any

import trio

from fusefs.client.handles import Handle
from fusefs.client.results import expect
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import LOCK_ASK_S

log = logging.getLogger(__name__)

END = (1 << 63) - 1

_Key = tuple[bool, int]  # flock or fcntl, the kernel's number of the owner


class _Owner:
    """Who may hold locks on one file."""

    __slots__ = ("handles", "pending", "holds")

    def __init__(self) -> None:
        self.handles: set[Handle] = set()
        self.pending = 0  # requests under way
        self.holds = False


class Locking:
    """The locks of the programs on this mount."""

    def __init__(self, session: Session, writeback: WriteBack) -> None:
        self._session = session
        self._writeback = writeback
        self._owners: dict[int, dict[_Key, _Owner]] = {}
        self._releasing: dict[int, set[trio.Event]] = {}  # inodes of which a last close is being told to the service
        self._turns: dict[int, trio.Event] = {}
        self._tickets = 0
        self._counts = {"locks": 0, "unlocks": 0, "waits": 0, "asked": 0}

    # --- what programs ask ----------------------------------------------------------------------------------------

    async def get(
        self, handle: Handle, owner: int, *, flock: bool, low: int, high: int, exclusive: bool
    ) -> api.LockState:
        """Say what is in the way of a lock. The pid is 0 where its owner is on another mount."""
        self._check(handle)
        query = api.GetLock(self._session.id, handle.ino, owner, flock, low, high, exclusive)
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
        for done in list(self._releasing.get(handle.ino, ())):
            await done.wait()
        if not exclusive:
            await self._commit(handle)  # it may be weakened
        self._counts["locks"] += 1
        known = self._owner(handle.ino, (flock, owner))
        known.handles.add(handle)
        known.pending += 1
        self._tickets += 1
        ticket = self._tickets if wait is not None else 0
        turn = self._turns[ticket] = trio.Event()
        op = api.Lock(handle.ino, owner, flock, low, high, exclusive, pid, ticket)
        try:
            granted = await self._submit(handle, op, known)
            if not granted and wait is None:
                raise FsError(Code.LOCKED, "somebody else holds a lock")
            known.holds = True  # or will, until the wait has ended
            if not granted:
                assert wait is not None
                await self._wait(handle, op, turn, wait)
        finally:
            known.pending -= 1
            self._turns.pop(ticket, None)
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
        """The last descriptor of this handle is closed: what was taken through it ends."""
        keys = [key for key, known in self._owners.get(handle.ino, {}).items() if handle in known.handles]
        if not keys:
            return
        done = trio.Event()
        self._releasing.setdefault(handle.ino, set()).add(done)
        try:
            if handle.file.dead is None:
                await self._commit(handle)
            for key in keys:
                await self._unlock(handle, key, 0, END)
        finally:
            for key in keys:
                self._owner(handle.ino, key).handles.discard(handle)
                self._settle(handle.ino, key)
            done.set()
            self._releasing[handle.ino].discard(done)
            if not self._releasing[handle.ino]:
                del self._releasing[handle.ino]

    # --- what the service says ------------------------------------------------------------------------------------

    def pushed(self, message: api.LocksGranted) -> None:
        """The turn of some has come."""
        if message.session == self._session.id:
            for ticket in message.tickets:
                if ticket in self._turns:
                    self._turns[ticket].set()

    def lost(self) -> None:
        """The session has ended, and all locks with it."""
        self._owners.clear()
        for turn in self._turns.values():
            turn.set()

    # --- how ------------------------------------------------------------------------------------------------------

    def _check(self, handle: Handle) -> None:
        if handle.file.dead is not None:
            raise FsError(handle.file.dead.code, handle.file.dead.detail)

    async def _commit(self, handle: Handle) -> None:
        if not handle.file.idle_data:
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
        try:
            expect((await self._session.submit(op, incarnation=handle.file.incarnation))[0], api.Done)
        except FsError as error:
            if error.code not in (Code.UNKNOWN_SESSION, Code.FENCED):  # then all its locks have ended
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
                if not turn.is_set() and not await self._still_waits(handle, op):
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
        return {**self._counts, "waiting": len(self._turns), "files": len(self._owners)}
