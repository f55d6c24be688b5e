"""Leases in a member's process: who is connected where, what is recalled, whose answer has to wait.

The rules are in ``metadata.leases``; this is their shell. It lives as long as the process and works while this
member leads and is settled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Optional

from metadata import api
from metadata.leases import LeaseTable
from metadata.server.node import Node
from metadata.state.machine import Machine, Outcome
from node.host.logging import get_logger
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.limits import LEASE_MARGIN_S, LEASES_PER_SESSION_MAX, SESSION_LEASE_S

log = get_logger(__name__)

Then = Callable[[Call, Optional[Outcome], Optional[FsError]], None]
Notify = Callable[[bytes, api.Recall | api.LocksGranted], bool]


class Grant(NamedTuple):
    """What an answer grants: ``lease_term``, ``shared`` and ``locked`` of ReadReply."""

    term: int
    shared: Optional[tuple[int, ...]]
    locked: tuple[int, ...] = ()


NOTHING = Grant(0, None)


class Leasing:
    """Leases of the sessions that this leader serves."""

    def __init__(self, node: Node, machine: Machine, notify: Notify) -> None:
        self.table = LeaseTable(SESSION_LEASE_S, LEASE_MARGIN_S, LEASES_PER_SESSION_MAX, fencing=True)
        self._fence: Callable[[int], None] = lambda session: None
        self._node = node
        self._machine = machine
        self._notify = notify
        self._peers: dict[int, bytes] = {}  # session -> the connection that its last request came by
        self._parked: dict[int, Call] = {}  # answers that wait
        self._numbers = 0

    # --- leadership -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """This member leads and holds all that earlier leaders acknowledged."""
        sessions = [session.id for session in self._machine.sessions()]
        self.table.begin(self._node.core.term, sessions, self._node.running_s)

    def end(self) -> None:
        """This member leads no longer: whoever waits has to ask the next leader."""
        self.table.end()
        self._peers.clear()
        parked, self._parked = self._parked, {}
        for call in parked.values():
            call.fail(self._node.not_leader())

    def fences(self, fence: Callable[[int], None]) -> None:
        """``fence`` has a session fenced in the log."""
        self._fence = fence

    def look_after(self) -> None:
        """End what has ended by time, and recall again what is not answered."""
        for session in self.table.lapse(self._node.running_s):
            log.warning("leases ended without an acknowledgement", session=session)
        for session in self.table.unfenced():
            self._fence(session)
        for recall in self.table.unanswered(self._node.running_s):
            log.info("recall is not acknowledged, and is sent again", session=recall[0], number=recall[1])
            self._send(*recall)

    # --- what sessions say ------------------------------------------------------------------------------------

    def hear(self, call: Call, session: int, lease_term: int) -> None:
        """A session asks. Raises LEASES_GONE while it holds leases of an earlier leader."""
        if self._peers.get(session) != call.peer:
            self._peers[session] = call.peer
            for recall in self.table.outstanding(session):  # lost with the connection that it was sent by, perhaps
                self._send(*recall)
        term = self.table.term
        if not term or not lease_term:
            return
        if lease_term != term:
            raise FsError(Code.LEASES_GONE, f"leases of term {lease_term} ended with it, this is {term}", hint=term)
        self.table.clear(session)

    def reclaimed(self, session: int, lease_term: int, inos: Sequence[int]) -> None:
        """A session is about to name a term, and has changed these inodes under exclusive leases of an earlier one."""
        if self.table.term and lease_term == self.table.term:
            if not self.table.reclaim(session, inos, self._node.running_s):
                log.info("what a session keeps was reclaimed already", session=session)

    def renewed(self, session: int, lease_term: int) -> int:
        """A renewal is answered now; returns the term of this leadership, for the session to adopt."""
        if lease_term and lease_term == self.table.term:
            self.table.prolong(session, self._node.running_s)
        return self.table.term

    def recalled(self, call: Call) -> None:
        """Handle Recalled."""
        request: api.Recalled = call.request
        self.table.acknowledge(request.session, request.number)
        call.reply(api.RecalledReply())

    # --- changes and answers ----------------------------------------------------------------------------------

    def applied(self, outcome: Outcome) -> None:
        """Recall what an entry changed from everybody else."""
        table = self.table
        if not table.term:
            return
        if outcome.touched:
            for recall in table.change(
                outcome.touched, outcome.session, outcome.sequence, journal=outcome.journal, settled=outcome.settled
            ):
                self._send(*recall)
        for session in outcome.fenced:
            log.warning("leases broken: what the session changed and did not bring is lost", session=session)
            table.fenced(session)
        for session in outcome.ended:
            table.drop(session)
            table.clear(session)
            self._peers.pop(session, None)

    def _send(self, session: int, number: int, inos: tuple[int, ...]) -> None:
        peer = self._peers.get(session)
        # One that cannot be reached loses its leases by time.
        if peer is None or not self._notify(peer, api.Recall(session, number, inos)):
            log.info("recall could not be sent", session=session, inodes=len(inos))

    def push(self, session: int, message: api.LocksGranted) -> bool:
        """Send something to a session by the connection that its last request came by; whether there is one."""
        peer = self._peers.get(session)
        return peer is not None and self._notify(peer, message)

    def grant(self, session: int, inos: Sequence[int], *, journal: bool = False) -> Grant:
        """Lease inodes to a session that is answered now; in a ``journal`` it has changed them by itself."""
        table, now_s = self.table, self._node.running_s
        if session not in self._peers or not table.grant(session, inos, now_s):
            # It has shown its programs what it has made, and its kernel believes that: where it cannot have a lease on
            # that, because another of these inodes is being recalled, nobody may see it change before it is recalled.
            made = table.unleased(session, inos) if journal else ()
            if made and table.grant(session, made, now_s):
                self._send(*table.recall(session, made))
            return NOTHING
        # A full member takes no journal beyond what was promised
        shared = None if self._node.full else table.own(session, inos, now_s)
        surplus = table.surplus(session)
        if surplus:
            self._send(*table.recall(session, surplus))
        return Grant(table.term, shared, self._machine.locked(inos))

    def given(self, call: Call, then: Then) -> Then:
        """A journal gives leases back along with what it brings. Returns what is to be called with what became of it,
        instead of ``then``: nobody sees these inodes sooner."""
        request: api.Submit = call.request
        table = self.table
        term = table.term
        if not request.gives or not term or not table.may_hold(request.session):
            return then
        recall = session, number, inos = table.give(request.session, request.gives, self._node.running_s)

        def became(call: Call, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
            if table.term == term:
                reply = None if outcome is None else outcome.reply
                results = reply.results if isinstance(reply, api.SubmitReply) else None
                if results is not None and not any(isinstance(result, api.Failed) for result in results):
                    table.given(session, number, inos)
                else:
                    self._send(*recall)
            then(call, outcome, error)

        return became

    # --- before a mutation ------------------------------------------------------------------------------------

    def withholds(self, call: Call, concerned: Concerned, session: int, then: Callable[..., None]) -> bool:
        """Whether a mutation must not be proposed yet; then ``then(call)`` is called when it may be tried again, with
        ``told=True`` when what is ``written`` need not be looked at again.

        Others may have changed by themselves what it is about. And what a name means can only be told while nobody
        else is changing the directory. Who owes an acknowledgement for a file may have taken bytes from its programs
        since it was recalled, which it brings before it acknowledges: they came before a change that begins now. (Those
        that others are asked for later, while this one waits, are of the same time, and in any order: so nobody is
        kept waiting for ever.)
        """
        table = self.table
        if table.in_grace:
            table.wait_grace(self._park(call, then))
            return True
        debts = table.debts(concerned.written, session)
        if table.others_own(session):
            busy = table.applying(concerned.guessed)
            if busy:
                table.wait_applied(busy, self._park(call, then))
                return True
            for recall in table.seize(concerned.inos, session, self._node.running_s):
                self._send(*recall)
            debts |= table.unsaid(concerned.inos, session)
        if debts:
            table.wait(debts, self._park(call, partial(then, told=True)))
            return True
        return False

    def waits(self, call: Call, inos: Sequence[int], session: int, then: Callable[[Call], None]) -> bool:
        """Whether an answer about ``inos`` has to wait; then ``then(call)`` is called when it need not any more."""
        table = self.table
        if not table.term:
            return False
        if table.in_grace:
            table.wait_grace(self._park(call, then))
            return True
        seized = table.seize(inos, session, self._node.running_s, reading=True)
        for recall in [*table.demand(inos, session), *seized]:
            self._send(*recall)
        debts = table.debts(inos, session)
        if debts:
            table.wait(debts, self._park(call, then))
            return True
        return False

    def _park(self, call: Call, then: Callable[[Call], None]) -> Callable[[], None]:
        self._numbers += 1
        self._parked[self._numbers] = call
        return partial(self._unpark, self._numbers, then)

    def _unpark(self, number: int, then: Callable[[Call], None]) -> None:
        call = self._parked.pop(number, None)
        if call is None:
            return
        try:
            then(call)
        except FsError as error:
            call.fail(error)

    def held(self, session: int) -> int:
        """How many leases a session holds."""
        return self.table.held(session)

    def statistics(self) -> dict[str, float]:
        return {**self.table.statistics(), "parked": len(self._parked)}


class Concerned(NamedTuple):
    """What a mutation is about. ``guessed``: directories in which it depends on what a name means now. ``written``:
    files whose bytes it changes, or copies, or their size or time."""

    inos: tuple[int, ...]
    guessed: tuple[int, ...]
    written: tuple[int, ...] = ()


def concerned(ops: Sequence[api.Op], child: Callable[[int, bytes], int]) -> Concerned:
    """The inodes that operations are about, in the state as it is. ``child`` tells what a name means."""
    inos: dict[int, None] = {}
    guessed: dict[int, None] = {}
    written: dict[int, None] = {}
    names: dict[tuple[int, bytes], int] = {}  # as these operations leave them

    def look(parent: int, name: bytes) -> int:
        inos[parent] = None
        guessed[parent] = None
        ino = names.get((parent, name))
        if ino is None:
            ino = child(parent, name)
        if ino:
            inos[ino] = None
        return ino

    for op in ops:
        if isinstance(op, api.Make):
            if op.exclusive:
                inos[op.parent] = None
            else:
                look(op.parent, op.name)
        elif isinstance(op, api.Remove):
            look(op.parent, op.name)
        elif isinstance(op, api.Rename):
            moved, other = look(op.parent, op.name), look(op.new_parent, op.new_name)
            names[op.new_parent, op.new_name] = moved
            names[op.parent, op.name] = other
        elif isinstance(op, api.CloneRange):
            both = {op.source: None, op.target: None}
            inos.update(both)
            written.update(both)
        else:
            inos.update({ino: None for field in ("ino", "parent") if (ino := getattr(op, field, 0))})
            if isinstance(op, (api.Commit, api.PunchHole)) or (
                isinstance(op, api.SetAttr) and (op.size is not None or op.mtime_ns is not None)
            ):
                written[op.ino] = None
    return Concerned(tuple(inos), tuple(guessed), tuple(written))


def spoken_of(queries: Sequence[api.Query], results: Sequence[api.Result]) -> list[int]:
    """The inodes that answers to queries depend on."""
    inos: list[int] = []
    for query, result in zip(queries, results, strict=True):
        kind = type(query)
        if kind is api.Lookup:
            inos.append(query.parent)  # type: ignore[union-attr]
        elif kind is api.Walk:
            inos.append(query.parent)  # type: ignore[union-attr]
        elif kind is api.GetLock:
            if not (isinstance(result, api.LockState) and (result.taken or result.held or result.waiting)):
                inos.append(query.ino)  # type: ignore[union-attr]  # somebody may be deciding about its locks alone
        elif kind is api.GetExtents and query.ino == api.FOUND:  # type: ignore[union-attr]
            pass  # what a Lookup before it has found
        elif kind is not api.StatVolume and kind is not api.GetBlock:
            inos.append(query.ino)  # type: ignore[union-attr]
        if type(result) is api.AttrResult:
            inos.append(result.attr.ino)
        elif type(result) is api.Entries:
            inos.extend([entry.ino for entry in result.entries if entry.attr is not None])
    return inos


def leasable(queries: Sequence[api.Query]) -> bool:
    """Whether answers to these may be cached: a walk passes directories that its answer does not name."""
    return not any(type(query) in (api.Walk, api.StatVolume, api.GetBlock, api.GetLock) for query in queries)
