"""Who may cache what: the leader's table of leases. Pure; time and sending are the caller's.

A lease says: this session is told before anybody is told otherwise. A mutation is applied first; then every other
session that holds a lease on an inode it touched is recalled, and until all of them have acknowledged (or their
leases have run out) neither the mutation is answered nor is anybody shown the inode. So for everyone the change
happens at the moment in which the last old view is gone.

The session that made the change serves its old view until the answer reaches it. So what it touched stays
*unsettled* until it shows, by the ``lowest_unacked`` of a later request, that it has the answer; whoever else asks
before that has it recalled from that session too, like from any other. A session that works alone is never asked,
nor is one that has said with the change that it shows no old view of it meanwhile (``Submit.settled``), as long as
others only look: after another change its answer is old when it arrives, and must not be believed.

Whoever owes an acknowledgement is still answered (rule 5: a recall waits for nobody who waits for the leader), but
without a lease. A session's leases end together, ``lease_s`` after its last grant or renewal; the leader waits
``margin_s`` longer, and longer still by the journey of the answer, because it counts from replying and the holder
from sending.

A recall may get lost while the connection that it was sent by stands. So it is sent again, after longer and longer
pauses, until it is acknowledged or the session's leases have ended (``unanswered``); the holder takes no notice of one
that it is serving already. No two recalls ever have one number, not under different leaders either: else the late
acknowledgement of one would be taken for that of another.

A lease of which the session is the only holder may be *exclusive*. Then the session changes the inode by itself and
brings the changes later, in its journal. So the recall of an exclusive lease comes *before* what conflicts with it: a
reader is answered from the state after the acknowledgement, and a mutation is not even proposed before (``seize``,
``unsaid``). From when a mutation is proposed until it is applied nobody else is given what it touches exclusively
(``pend``). An exclusive lease ends with its acknowledgement or with a fence in the log, never by time alone: whoever
is silent until its leases have ended keeps them as long as nobody needs them, so a machine that slept loses nothing.
An inode that two want to change is given to nobody exclusively for a while.

Leases are this leader's memory. One that begins does not know what its predecessors granted, so until every session
has said that it holds nothing of theirs, or the longest of their leases has ended, it answers neither reads nor
mutations (``in_grace``). That a session holds nothing *now* is not enough: an old leader's grant may still be on its
way to it. So the session has to name the new term, and takes grants of no other from then on. Before it does, it brings
its journal, or tells which inodes that is about: those it has exclusively then (``reclaim``), as under the leader that
it changed them under, and nobody has been shown them meanwhile. Those that have not named the term when the longest
lease has ended are fenced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

COOL_MAX = 65_536  # inodes that are remembered to be wanted by two

AGAIN_S_MIN, AGAIN_S_MAX = 0.5, 4.0  # until a recall is sent again: for the first time, and at most
RECALLS_BITS = 32  # of a recall's number; above them is the term

READING_COOLS = 0.1  # of the time for which two who change an inode are kept from having it exclusively

Fire = Callable[[], None]
Debt = tuple[int, int]  # (session, number of a recall): what has not been acknowledged
Recall = tuple[int, int, tuple[int, ...]]  # (session, number, inodes)


class LeaseTable:
    """Leases, recalls and those who wait for them, of one leadership after another."""

    def __init__(
        self, lease_s: float, margin_s: float, per_session_max: int, *, fencing: bool = False, cool_s: float = 1.0
    ) -> None:
        """``fencing``: the owner has sessions fenced (``unfenced``), so leases may be exclusive."""
        self._lease_s = lease_s
        self._margin_s = margin_s
        self._max = per_session_max
        self._fencing = fencing
        self._cool_s = cool_s
        self.term = 0  # of this leadership, 0: none
        self._grace_s = 0.0  # grace ends then at the latest
        self._doubtful: set[int] = set()  # sessions that may hold leases of an earlier leader
        self._held: dict[int, dict[int, None]] = {}  # session -> inodes, least recently granted first
        self._holders: dict[int, set[int]] = {}  # inode -> sessions; the inverse of _held
        self._until_s: dict[int, float] = {}  # session -> when its leases have ended for certain
        self._owed: dict[int, set[Debt]] = {}  # inode -> debts
        self._recalls: dict[Debt, tuple[int, ...]] = {}  # debt -> inodes
        self._again: dict[Debt, tuple[float, float]] = {}  # debt -> when its recall is sent again, and the pause then
        self._waiting: dict[Debt, list[_Waiter]] = {}
        self._unsettled: dict[int, tuple[int, int]] = {}  # inode -> (session, sequence) of its last change
        self._blank: set[int] = set()  # of these, those of which that session shows no old view
        self._changes: dict[int, deque[tuple[int, tuple[int, ...]]]] = {}  # session -> (sequence, inodes), in order
        self._graced: list[Fire] = []  # wait for the end of grace
        self._exclusive: dict[int, int] = {}  # inode -> the session that may change it by itself, its only holder
        self._owned: dict[int, int] = {}  # session -> how many inodes it has exclusively
        self._unsaid: dict[int, set[Debt]] = {}  # inode -> debts of sessions that may have changed it by themselves
        self._pending: dict[int, list[int]] = {}  # inode -> sessions with mutations of it that are not applied yet
        self._applying: dict[int, list[Fire]] = {}  # inode -> who waits until nothing is pending
        self._cool: dict[int, float] = {}  # inode -> until when nobody has it exclusively
        self._gave: dict[int, int] = {}  # but this session, of these, which has just given it back
        self._silent: set[int] = set()  # their time is over, their exclusive leases stand
        self._late = False  # grace is over, and not all have named the term
        self._number = 0
        self.counts = {
            "grants": 0, "recalls": 0, "recalled_again": 0, "broken": 0, "released": 0, "seized": 0, "fenced": 0,
            "reclaimed": 0, "given": 0,
        }  # fmt: skip

    # --- leadership -------------------------------------------------------------------------------------------

    def begin(self, term: int, sessions: Iterable[int], now_s: float) -> None:
        """This leadership begins; ``sessions`` are all registered ones."""
        assert not self.term
        self.term = term
        self._number = term << RECALLS_BITS
        self._doubtful = set(sessions)
        self._grace_s = now_s + self._lease_s + self._margin_s
        self._late = False

    def end(self) -> None:
        """The leadership is over; those who wait are answered by whoever failed them."""
        self.term = 0
        for table in (self._held, self._holders, self._until_s, self._owed, self._recalls, self._waiting):
            table.clear()
        self._again.clear()
        self._exclusive.clear()
        self._owned.clear()
        self._unsaid.clear()
        self._pending.clear()
        self._applying.clear()
        self._cool.clear()
        self._gave.clear()
        self._silent.clear()
        self._unsettled.clear()
        self._blank.clear()
        self._changes.clear()
        self._doubtful.clear()
        self._graced.clear()

    def clear(self, session: int) -> None:
        """The session holds no lease of an earlier leader and will take none: it named this term, or it has ended."""
        self._doubtful.discard(session)
        self._end_grace()

    def reclaim(self, session: int, inos: Iterable[int], now_s: float) -> bool:
        """The session changed these inodes under exclusive leases of an earlier leader. Whether it has them so again:
        while it has not named this term nothing is granted to anybody, so nobody else can have them."""
        if session not in self._doubtful:
            return False
        for ino in inos:
            if ino not in self._exclusive:
                self._hold_alone(session, ino)
        self.counts["reclaimed"] += 1
        self.prolong(session, now_s)
        return True

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
        exclusive = self._exclusive
        if any(exclusive.get(ino, session) != session for ino in inos):
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

    def unleased(self, session: int, inos: Iterable[int]) -> tuple[int, ...]:
        """Those that the session has no lease on, and could have one."""
        held, owed, exclusive = self._held.get(session, {}), self._owed, self._exclusive
        return tuple(
            [ino for ino in dict.fromkeys(inos) if ino not in held and ino not in owed and ino not in exclusive]
        )

    def own(self, session: int, inos: Iterable[int], now_s: float) -> tuple[int, ...]:
        """Make leases exclusive that were just granted; return those that cannot be."""
        assert self._fencing
        shared = []
        for ino in inos:
            if self._exclusive.get(ino) == session:
                continue
            if (
                len(self._holders[ino]) > 1
                or any(other != session for other in self._pending.get(ino, ()))
                or self._unsettled.get(ino, (session, 0))[0] != session
                or (self._cool.get(ino, now_s) > now_s and self._gave.get(ino) != session)
            ):
                shared.append(ino)
            else:
                self._possess(session, ino)
        return tuple(shared)

    def _possess(self, session: int, ino: int) -> None:
        self._exclusive[ino] = session
        self._owned[session] = self._owned.get(session, 0) + 1

    def _hold_alone(self, session: int, ino: int) -> None:
        """Put an exclusive lease into the table, where nobody holds one."""
        self._held.setdefault(session, {})[ino] = None
        self._holders.setdefault(ino, set()).add(session)
        self._possess(session, ino)

    def _dispossess(self, session: int, ino: int) -> bool:
        if self._exclusive.get(ino) != session:
            return False
        del self._exclusive[ino]
        self._owned[session] -= 1
        if not self._owned[session]:
            del self._owned[session]
        return True

    def prolong(self, session: int, now_s: float) -> None:
        """A grant or renewal is answered now: all leases of the session last that much longer."""
        self._silent.discard(session)
        self._until_s[session] = now_s + self._lease_s + self._margin_s

    def surplus(self, session: int) -> tuple[int, ...]:
        """Inodes to recall because the session holds too many: the least recently granted."""
        held = self._held.get(session, {})
        if len(held) <= self._max:
            return ()
        return tuple(list(held)[: len(held) - self._max + self._max // 16])

    def may_hold(self, session: int) -> bool:
        """Whether the session may hold leases, so that what it owes ends by time or by a fence."""
        return session in self._until_s or session in self._silent

    def held(self, session: int) -> int:
        """How many leases a session holds."""
        return len(self._held.get(session, ()))

    # --- recalls ----------------------------------------------------------------------------------------------

    def change(
        self, inos: tuple[int, ...], by: int, sequence: int, *, journal: bool = False, settled: Collection[int] = ()
    ) -> list[Recall]:
        """Request ``sequence`` of session ``by`` changed these inodes. Return the recalls to send to others.
        ``journal``: the session knew that before. Of those that are ``settled`` it shows no old view."""
        affected: dict[int, list[int]] = {}
        for ino in inos:
            for session in self._holders.get(ino, ()):
                if session != by:
                    affected.setdefault(session, []).append(ino)
            last = self._unsettled.get(ino)
            if last is not None and last[0] != by and ino not in affected.get(last[0], ()):
                affected.setdefault(last[0], []).append(ino)
        recalls = [self.recall(session, tuple(mine)) for session, mine in affected.items()]
        if by in self._until_s and not journal:  # one that holds nothing serves no old view
            for ino in inos:
                if ino in settled and (ino not in self._unsettled or ino in self._blank):
                    self._blank.add(ino)
                else:
                    self._blank.discard(ino)
                self._unsettled[ino] = (by, sequence)
            self._changes.setdefault(by, deque()).append((sequence, inos))
        return recalls

    def _settle(self, session: int, sequence: int, inos: Iterable[int]) -> None:
        for ino in inos:
            if self._unsettled.get(ino) == (session, sequence):
                del self._unsettled[ino]
                self._blank.discard(ino)

    def settle(self, session: int, lowest_unacked: int) -> None:
        """The session has the answers to all its requests below ``lowest_unacked``."""
        changes = self._changes.get(session)
        while changes and changes[0][0] < lowest_unacked:
            self._settle(session, *changes.popleft())

    def demand(self, inos: Iterable[int], asking: int) -> list[Recall]:
        """``asking`` wants to see these inodes: recall what others changed and may not know to be changed."""
        if not self._unsettled:
            return []
        affected: dict[int, list[int]] = {}
        for ino in inos:
            last = self._unsettled.get(ino)
            if last is not None and last[0] != asking and ino not in self._blank:
                affected.setdefault(last[0], []).append(ino)
        return [self.recall(session, tuple(dict.fromkeys(mine))) for session, mine in affected.items()]

    def recall(self, session: int, inos: tuple[int, ...]) -> Recall:
        """Take leases from a session: it owes an acknowledgement."""
        self._number += 1
        debt = (session, self._number)
        self._recalls[debt] = inos
        for ino in inos:
            if self._release(session, ino):
                self._unsaid.setdefault(ino, set()).add(debt)
            self._owed.setdefault(ino, set()).add(debt)
            if self._unsettled.get(ino, (0, 0))[0] == session:
                del self._unsettled[ino]
                self._blank.discard(ino)
        self.counts["recalls"] += 1
        return session, self._number, inos

    def give(self, session: int, inos: tuple[int, ...], now_s: float) -> Recall:
        """The session gives leases back with what it brings now: it owes that this is executed. Nobody else has them
        exclusively for a while, because it may look again."""
        self._cool_down(inos, self._cool_s * READING_COOLS, now_s)
        self._gave.update(dict.fromkeys(inos, session))
        self.counts["given"] += 1
        return self.recall(session, inos)

    def _cool_down(self, inos: Iterable[int], for_s: float, now_s: float) -> None:
        """Nobody has these exclusively for so long."""
        for ino in inos:
            self._cool[ino] = now_s + for_s
            self._gave.pop(ino, None)
        if len(self._cool) > COOL_MAX:
            self._cool = {ino: until_s for ino, until_s in self._cool.items() if until_s > now_s}
            self._gave = {ino: session for ino, session in self._gave.items() if ino in self._cool}

    def given(self, session: int, number: int, inos: Collection[int]) -> None:
        """It was executed. Recalls of the same that were on their way need no other answer."""
        for debt, recalled in list(self._recalls.items()):
            if debt[0] == session and (debt[1] == number or all(ino in inos for ino in recalled)):
                self.acknowledge(*debt)

    def _release(self, session: int, ino: int) -> bool:
        """Take a lease from the table; return whether it was exclusive."""
        self._held.get(session, {}).pop(ino, None)
        holders = self._holders.get(ino)
        if holders is not None:
            holders.discard(session)
            if not holders:
                del self._holders[ino]
        return self._dispossess(session, ino)

    def seize(self, inos: Iterable[int], asking: int, now_s: float, *, reading: bool = False) -> list[Recall]:
        """``asking`` is about to see or to change these inodes: recall what others may change by themselves. Who only
        looks keeps them from it for a shorter while: they wait for the service with each write meanwhile."""
        if not self._exclusive:
            return []
        affected: dict[int, list[int]] = {}
        for ino in dict.fromkeys(inos):
            owner = self._exclusive.get(ino)
            if owner is not None and owner != asking:
                affected.setdefault(owner, []).append(ino)
        seized = [ino for mine in affected.values() for ino in mine]
        self._cool_down(seized, self._cool_s * READING_COOLS if reading else self._cool_s, now_s)
        self.counts["seized"] += len(affected)
        return [self.recall(owner, tuple(mine)) for owner, mine in affected.items()]

    def unsaid(self, inos: Iterable[int], asking: int) -> set[Debt]:
        """What must be acknowledged before ``asking`` may change these inodes."""
        if not self._unsaid:
            return set()
        found: set[Debt] = set()
        for ino in inos:
            found |= self._unsaid.get(ino, set())
        return {debt for debt in found if debt[0] != asking}

    # --- mutations under way ----------------------------------------------------------------------------------

    def pend(self, session: int, inos: Iterable[int]) -> None:
        """A mutation of these inodes is proposed now."""
        for ino in inos:
            self._pending.setdefault(ino, []).append(session)

    def unpend(self, session: int, inos: Iterable[int]) -> None:
        """It was applied, or never will be."""
        for ino in inos:
            pending = self._pending.get(ino)
            if pending is None or session not in pending:
                continue  # of an earlier leadership
            pending.remove(session)
            if not pending:
                del self._pending[ino]
                for fire in self._applying.pop(ino, ()):
                    fire()

    def applying(self, inos: Iterable[int]) -> int:
        """One of the inodes with a mutation under way; 0: there is none."""
        if not self._pending:
            return 0
        return next((ino for ino in inos if ino in self._pending), 0)

    def wait_applied(self, ino: int, fire: Fire) -> None:
        """Call ``fire`` when nothing is under way on this inode."""
        self._applying.setdefault(ino, []).append(fire)

    def others_own(self, session: int) -> bool:
        """Whether anybody else may change anything by itself, or had to say so and has not."""
        return bool(self._unsaid) or len(self._owned) > (session in self._owned)

    def acknowledge(self, session: int, number: int) -> None:
        """The session has dropped what a recall named. Unknown ones are ignored."""
        debt = (session, number)
        self._again.pop(debt, None)
        for ino in self._recalls.pop(debt, ()):
            debts = self._owed[ino]
            debts.discard(debt)
            if not debts:
                del self._owed[ino]
            unsaid = self._unsaid.get(ino)
            if unsaid is not None:
                unsaid.discard(debt)
                if not unsaid:
                    del self._unsaid[ino]
        for waiter in self._waiting.pop(debt, ()):
            waiter.debts.discard(debt)
            if not waiter.debts:
                self.counts["released"] += 1
                waiter.fire()

    def outstanding(self, session: int) -> list[Recall]:
        """What the session has not acknowledged, to be sent again on another connection."""
        return [(*debt, inos) for debt, inos in self._recalls.items() if debt[0] == session]

    def unanswered(self, now_s: float) -> list[Recall]:
        """Recalls to be sent once more, because they may have been lost. To be asked often: a pause counts from when
        a recall was first found here."""
        found: list[Recall] = []
        for debt, inos in self._recalls.items():
            at_s, pause_s = self._again.get(debt, (now_s + AGAIN_S_MIN, AGAIN_S_MIN))
            if debt[0] in self._silent:
                continue  # its leases have ended, and a fence is on its way
            if now_s >= at_s:
                found.append((*debt, inos))
                pause_s = min(2 * pause_s, AGAIN_S_MAX)
                at_s = now_s + pause_s
            self._again[debt] = at_s, pause_s
        self.counts["recalled_again"] += len(found)
        return found

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
            self._late = True
            if not self._fencing:
                self._doubtful.clear()
                self._end_grace()
        broken = []
        for session in list(self._until_s):
            # Looked up each time: dropping one session answers others, and a grant in that answer counts.
            if now_s < self._until_s.get(session, now_s + 1):
                continue
            if any(debt[0] == session for debt in self._recalls):
                broken.append(session)
            self._silence(session)
        self.counts["broken"] += len(broken)
        return broken

    def _silence(self, session: int) -> None:
        """The session's time is over. Its exclusive leases stand, and what it owes of such, until it is fenced."""
        mine = [ino for ino in self._held.get(session, ()) if self._exclusive.get(ino) == session]
        owed = {debt for debts in self._unsaid.values() for debt in debts if debt[0] == session}
        if not mine and not owed:
            self.drop(session)
            return
        kept = {debt: self._recalls.pop(debt) for debt in owed}
        for ino in mine:
            self._dispossess(session, ino)
        self.drop(session)
        self._recalls.update(kept)
        for ino in mine:
            self._hold_alone(session, ino)
        self._silent.add(session)

    def unfenced(self) -> list[int]:
        """Sessions that must be fenced in the log, and then be reported by ``fenced``, before others can go on."""
        owing = {debt[0] for debt in self._recalls}
        return sorted(self._silent & owing | (self._doubtful if self._late else set()))

    def fenced(self, session: int) -> None:
        """What the session brings from now on is refused: its leases of this and of earlier leaders are over."""
        self.counts["fenced"] += 1
        self.drop(session)
        self.clear(session)

    def drop(self, session: int) -> None:
        """The session's leases are over: they ended by time, or it said so by ending."""
        self._silent.discard(session)
        for ino in list(self._held.get(session, ())):
            self._release(session, ino)
        self._held.pop(session, None)
        self._until_s.pop(session, None)
        for sequence, inos in self._changes.pop(session, ()):
            self._settle(session, sequence, inos)
        for debt in [debt for debt in self._recalls if debt[0] == session]:
            self.acknowledge(*debt)

    def statistics(self) -> dict[str, float]:
        """Counters and gauges."""
        leases = sum(len(held) for held in self._held.values())
        return {
            "leases": leases,
            "exclusive": len(self._exclusive),
            "owed": len(self._recalls),
            "doubtful": len(self._doubtful),
            **self.counts,
        }


class _Waiter:
    __slots__ = ("debts", "fire")

    def __init__(self, debts: set[Debt], fire: Fire) -> None:
        self.debts = debts
        self.fire = fire
