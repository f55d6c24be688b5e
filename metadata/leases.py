"""Who may cache what: the leader's table of read leases. Pure; time and sending are the caller's.

A lease says: this session is told before anybody is told otherwise. A mutation is applied first; then every other
session that holds a lease on an inode it touched is recalled, and until all of them have acknowledged (or their
leases have run out) neither the mutation is answered nor is anybody shown the inode. So for everyone the change
happens at the moment in which the last old view is gone.

Whoever owes an acknowledgement is still answered (rule 5: a recall waits for nobody who waits for the leader), but
without a lease. A session's leases end together, ``lease_s`` after its last grant or renewal; the leader waits
``margin_s`` longer, and longer still by the journey of the answer, because it counts from replying and the holder
from sending.

Leases are this leader's memory. One that begins does not know what its predecessors granted, so until every session
has said that it holds nothing of theirs, or the longest of their leases has ended, it answers neither reads nor
mutations (``in_grace``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Fire = Callable[[], None]
Debt = tuple[int, int]  # (session, number of a recall): what has not been acknowledged


class LeaseTable:
    """Leases, recalls and those who wait for them, of one leadership after another."""

    def __init__(self, lease_s: float, margin_s: float, per_session_max: int) -> None:
        self._lease_s = lease_s
        self._margin_s = margin_s
        self._max = per_session_max
        self.term = 0  # of this leadership, 0: none
        self._grace_s = 0.0  # grace ends then at the latest
        self._doubtful: set[int] = set()  # sessions that may hold leases of an earlier leader
        self._held: dict[int, dict[int, None]] = {}  # session -> inodes, least recently granted first
        self._holders: dict[int, set[int]] = {}  # inode -> sessions; the inverse of _held
        self._until_s: dict[int, float] = {}  # session -> when its leases have ended for certain
        self._owed: dict[int, set[Debt]] = {}  # inode -> debts
        self._recalls: dict[Debt, tuple[int, ...]] = {}  # debt -> inodes
        self._waiting: dict[Debt, list[_Waiter]] = {}
        self._graced: list[Fire] = []  # wait for the end of grace
        self._number = 0
        self.counts = {"grants": 0, "recalls": 0, "broken": 0, "released": 0}

    # --- leadership -------------------------------------------------------------------------------------------

    def begin(self, term: int, sessions: Iterable[int], now_s: float) -> None:
        """This leadership begins; ``sessions`` are all registered ones."""
        assert not self.term
        self.term = term
        self._doubtful = set(sessions)
        self._grace_s = now_s + self._lease_s + self._margin_s

    def end(self) -> None:
        """The leadership is over; those who wait are answered by whoever failed them."""
        self.term = 0
        for table in (self._held, self._holders, self._until_s, self._owed, self._recalls, self._waiting):
            table.clear()
        self._doubtful.clear()
        self._graced.clear()

    def clear(self, session: int) -> None:
        """The session says that it holds no lease of an earlier leader, or it has ended."""
        self._doubtful.discard(session)
        self._end_grace()

    @property
    def in_grace(self) -> bool:
        """Whether an earlier leader's lease may still be in force."""
        return bool(self._doubtful)

    def wait_grace(self, fire: Fire) -> None:
        """Call ``fire`` when grace has ended."""
        self._graced.append(fire)

    def _end_grace(self) -> None:
        if not self._doubtful and self._graced:
            waiting, self._graced = self._graced, []
            for fire in waiting:
                fire()

    # --- grants -----------------------------------------------------------------------------------------------

    def grant(self, session: int, inos: Sequence[int], now_s: float) -> bool:
        """Lease all of ``inos`` to the session, or none: where a recall of one is under way."""
        if self._doubtful or not self.term:
            return False
        owed = self._owed
        if owed and any(ino in owed for ino in inos):
            return False
        held = self._held.get(session)
        if held is None:
            held = self._held[session] = {}
        holders = self._holders
        for ino in inos:
            if ino in held:
                del held[ino]  # to the end: most recently granted
            else:
                others = holders.get(ino)
                if others is None:
                    holders[ino] = {session}
                else:
                    others.add(session)
            held[ino] = None
        self.counts["grants"] += len(inos)
        self.prolong(session, now_s)
        return True

    def prolong(self, session: int, now_s: float) -> None:
        """A grant or renewal is answered now: all leases of the session last that much longer."""
        self._until_s[session] = now_s + self._lease_s + self._margin_s

    def surplus(self, session: int) -> tuple[int, ...]:
        """Inodes to recall because the session holds too many: the least recently granted."""
        held = self._held.get(session, {})
        if len(held) <= self._max:
            return ()
        return tuple(list(held)[: len(held) - self._max + self._max // 16])

    def held(self, session: int) -> int:
        """How many leases a session holds."""
        return len(self._held.get(session, ()))

    # --- recalls ----------------------------------------------------------------------------------------------

    def change(self, inos: Iterable[int], by: int) -> list[tuple[int, int, tuple[int, ...]]]:
        """Somebody changed these inodes. Return the recalls to send: (session, number, inodes), not to ``by``."""
        affected: dict[int, list[int]] = {}
        for ino in inos:
            for session in self._holders.get(ino, ()):
                if session != by:
                    affected.setdefault(session, []).append(ino)
        return [self.recall(session, tuple(mine)) for session, mine in affected.items()]

    def recall(self, session: int, inos: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        """Take leases from a session: it owes an acknowledgement."""
        self._number += 1
        debt = (session, self._number)
        self._recalls[debt] = inos
        for ino in inos:
            self._release(session, ino)
            self._owed.setdefault(ino, set()).add(debt)
        self.counts["recalls"] += 1
        return session, self._number, inos

    def _release(self, session: int, ino: int) -> None:
        self._held[session].pop(ino, None)
        holders = self._holders.get(ino)
        if holders is not None:
            holders.discard(session)
            if not holders:
                del self._holders[ino]

    def acknowledge(self, session: int, number: int) -> None:
        """The session has dropped what a recall named. Unknown ones are ignored."""
        debt = (session, number)
        for ino in self._recalls.pop(debt, ()):
            debts = self._owed[ino]
            debts.discard(debt)
            if not debts:
                del self._owed[ino]
        for waiter in self._waiting.pop(debt, ()):
            waiter.debts.discard(debt)
            if not waiter.debts:
                self.counts["released"] += 1
                waiter.fire()

    def debts(self, inos: Iterable[int], asking: int = 0) -> set[Debt]:
        """What must be acknowledged before anybody sees these inodes; ``asking`` does not wait for itself."""
        if not self._owed:
            return set()
        found: set[Debt] = set()
        for ino in inos:
            found |= self._owed.get(ino, set())
        return {debt for debt in found if debt[0] != asking} if asking else found

    def wait(self, debts: set[Debt], fire: Fire) -> None:
        """Call ``fire`` when all of ``debts``, which is not empty, are paid."""
        waiter = _Waiter(debts, fire)
        for debt in debts:
            self._waiting.setdefault(debt, []).append(waiter)

    # --- ends -------------------------------------------------------------------------------------------------

    def lapse(self, now_s: float) -> list[int]:
        """Break the leases that have ended, and end grace when it is over. Returns the sessions that owed something."""
        if self._doubtful and now_s >= self._grace_s:
            self._doubtful.clear()
            self._end_grace()
        broken = []
        for session in [session for session, until_s in self._until_s.items() if now_s >= until_s]:
            if any(debt[0] == session for debt in self._recalls):
                broken.append(session)
            self.drop(session)
        self.counts["broken"] += len(broken)
        return broken

    def drop(self, session: int) -> None:
        """The session's leases are over: they ended by time, or it said so by ending."""
        for ino in list(self._held.get(session, ())):
            self._release(session, ino)
        self._held.pop(session, None)
        self._until_s.pop(session, None)
        for debt in [debt for debt in self._recalls if debt[0] == session]:
            self.acknowledge(*debt)

    def statistics(self) -> dict[str, float]:
        """Counters and gauges."""
        leases = sum(len(held) for held in self._held.values())
        return {"leases": leases, "owed": len(self._recalls), "doubtful": len(self._doubtful), **self.counts}


class _Waiter:
    __slots__ = ("debts", "fire")

    def __init__(self, debts: set[Debt], fire: Fire) -> None:
        self.debts = debts
        self.fire = fire
