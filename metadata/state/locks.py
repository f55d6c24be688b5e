"""Locks of files, cluster-wide: part of the state, so they survive a fail-over and travel in snapshots.

A session owns the locks of its programs; when it ends, or its fence is raised, they go in the same entry. Who has to
wait is kept in the state too, in the order of coming, and granted by the entry that makes room; the leader then tells
the session (``Turn.granted``). So a lost message or leader costs a waiter time, never its turn.

All rows are in memory too: there are few, and a search for a cycle of waiting owners looks at many.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from metadata import lockset
from metadata.api import CancelLock, Done, GetLock, Lock, Locked, LockState, PutLocks, Unlock
from metadata.lockset import Held, LockRow, Owner, Waiter, blockers, check_number, put, take_out, wanted, without
from metadata.state import keys
from metadata.state.inodes import Inodes
from metadata.state.records import encode
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import LOCAL_LOCKS_MAX, LOCKS_PER_INODE_MAX, LOCKS_PER_SESSION_MAX

K = TypeVar("K")


class Locks:
    """The locks of one shard's inodes."""

    def __init__(self, tables: Tables, inodes: Inodes) -> None:
        self._tables = tables
        self._inodes = inodes
        self._rows: dict[int, LockRow] = {}
        self._of_session: dict[int, set[int]] = {}  # inodes on which it holds or wants something
        self._waits: dict[Owner, set[int]] = {}  # inodes on which this owner waits for a range
        self.reload()

    def reload(self) -> None:
        """Read all locks from the tables."""
        self._rows = {}
        self._of_session = {}
        self._waits = {}
        for key, value in self._tables.range(keys.LOCKS, keys.prefix_end(keys.LOCKS)):
            self._index(keys.first(key), lockset.decode_locks(value))

    # --- operations -------------------------------------------------------------------------------------------

    def lock(self, op: Lock, turn: Turn) -> Locked:
        want = wanted(turn.session, op)
        check_number(op.ticket)
        self._inodes.load(op.ino)
        row = self._rows.get(op.ino, LockRow())
        asked = lockset.request(row, want, op.ticket, lambda blocking: self._circular(want, blocking))
        if asked is row:
            return Locked(True)
        self._check_room(op.ino, row, turn.session)
        self._save(op.ino, asked, turn)
        if not op.ticket:
            return Locked(lockset.covers(asked.held, want))
        return Locked(self._waiter(op.ino, turn.session, op.ticket) is None)  # giving up the old one may have helped

    def unlock(self, op: Unlock, turn: Turn) -> Done:
        row = self._rows.get(op.ino)
        if row is not None:
            self._save(op.ino, LockRow(tuple(take_out(row.held, wanted(turn.session, op))), row.waiting), turn)
        return Done()

    def cancel(self, op: CancelLock, turn: Turn) -> Locked:
        """Stop waiting. Where the ticket waits no more it was granted: the owner has the lock."""
        waiter = self._waiter(op.ino, turn.session, op.ticket)
        if waiter is None:
            return Locked(True)
        row = self._rows[op.ino]
        self._save(op.ino, LockRow(row.held, tuple(one for one in row.waiting if one is not waiter)), turn)
        return Locked(False)

    def put_locks(self, op: PutLocks, turn: Turn) -> Done:
        """The session decided about these locks by itself while nobody else could have any."""
        if len(op.locks) > LOCAL_LOCKS_MAX:
            raise FsError(Code.TOO_BIG, f"{len(op.locks)} locks of inode {op.ino} at once")
        turn.work += len(op.locks)
        if self._inodes.find(op.ino) is None:
            return Done()  # as with forget
        row = without(self._rows.get(op.ino, LockRow()), turn.session)
        held, waiting = list(row.held), list(row.waiting)
        for one in op.locks:
            want = wanted(turn.session, one)
            check_number(one.ticket)
            if one.ticket:
                waiting.append(Waiter(want, one.ticket))
            elif blockers(held, want):
                raise FsError(Code.LOCKED, f"inode {op.ino} is locked by others than who decided about its locks")
            else:
                held = put(held, want)
        self._save(op.ino, LockRow(tuple(held), tuple(waiting)), turn)
        return Done()

    def get(self, query: GetLock) -> LockState:
        return lockset.look(self._rows.get(query.ino, LockRow()), wanted(query.session, query), query.ticket)

    def among(self, inos: Iterable[int]) -> tuple[int, ...]:
        """Those of these inodes on which anybody holds or wants a lock."""
        rows = self._rows
        return tuple([ino for ino in inos if ino in rows]) if rows else ()

    # --- what others cause ------------------------------------------------------------------------------------

    def end(self, session: int, turn: Turn) -> None:
        """All locks of a session go."""
        for ino in sorted(self._of_session.get(session, ())):
            self._save(ino, without(self._rows[ino], session), turn)

    def forget(self, ino: int) -> None:
        """The inode is gone; nobody had it open, so nobody can have meant to keep it locked."""
        if ino in self._rows:
            self._drop(ino)
            self._tables.delete(keys.locks(ino))

    # --- rows -------------------------------------------------------------------------------------------------

    def _waiter(self, ino: int, session: int, ticket: int) -> Waiter | None:
        return lockset.waiter(self._rows.get(ino, LockRow()), session, ticket)

    def _save(self, ino: int, row: LockRow, turn: Turn) -> None:
        """Write a row after whoever can be has been granted what it waits for."""
        row, granted = lockset.settled(row)
        turn.granted.extend((waiter.want.session, waiter.ticket) for waiter in granted)
        if row == self._rows.get(ino, LockRow()):
            return
        self._drop(ino)
        if row.held or row.waiting:
            self._index(ino, row)
            self._tables.put(keys.locks(ino), encode(row))
        else:
            self._tables.delete(keys.locks(ino))

    def _index(self, ino: int, row: LockRow) -> None:
        self._rows[ino] = row
        for one in (*row.held, *(waiter.want for waiter in row.waiting)):
            self._of_session.setdefault(one.session, set()).add(ino)
        for waiter in row.waiting:
            if not waiter.want.flock:
                self._waits.setdefault((waiter.want.session, waiter.want.owner), set()).add(ino)

    def _drop(self, ino: int) -> None:
        row = self._rows.pop(ino, LockRow())
        for one in (*row.held, *(waiter.want for waiter in row.waiting)):
            _discard(self._of_session, one.session, ino)
        for waiter in row.waiting:
            _discard(self._waits, (waiter.want.session, waiter.want.owner), ino)

    def _check_room(self, ino: int, row: LockRow, session: int) -> None:
        inos = self._of_session.get(session, ())
        if len(row.held) + len(row.waiting) >= LOCKS_PER_INODE_MAX:
            raise FsError(Code.NO_LOCKS, f"{LOCKS_PER_INODE_MAX} locks on inode {ino}")
        if len(inos) >= LOCKS_PER_SESSION_MAX and ino not in inos:
            raise FsError(Code.NO_LOCKS, f"session {session} has locks on {LOCKS_PER_SESSION_MAX} files")

    def _circular(self, want: Held, in_the_way: list[Held]) -> bool:
        return lockset.circle(
            want, in_the_way, lambda owner: [self._rows[ino] for ino in sorted(self._waits.get(owner, ()))]
        )


def _discard(index: dict[K, set[int]], key: K, ino: int) -> None:
    inos = index.get(key)
    if inos is not None:
        inos.discard(ino)
        if not inos:
            del index[key]
