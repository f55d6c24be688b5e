"""The Ready loop of one member: Raft core, log store and state machine joined in one task.

Each turn takes what the core has ready and does it in the only order that is safe: messages that may go now go;
entries, term and vote are appended and fdatasynced, then (and only then) their attached responses are delivered;
committed entries are applied in order, answered, and their responses delivered. Responses are not interpreted here:
those for this member are stepped into the core, the others are sent.

Group commit comes by itself: every request that waits on the socket is proposed before the loop takes the next turn,
and the turn pays one fdatasync for all of them. The fdatasync runs inline. In a thread it would starve on the GIL
beside a busy loop (140 instead of 7,000 a second), and nothing that waits here could go on without it.

Durable when: ``Stable.append`` returned. Told when: responses and ``done`` callbacks run after it. State is committed
to the engine lazily; whatever a crash takes from it is replayed from the log.

A full disk stops the loop where it is, with everything kept, until there is room; a broken one ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import trio

from metadata.raft.core import ProposalDropped, RawNode, Ready, Role, StorageAppend, StorageApply
from metadata.raft.membership import ConfChangeInvalid, decode_change
from metadata.raft.messages import ConfChange, Entry, EntryKind, Kind, Message, SnapshotMeta
from metadata.raft.progress import State
from metadata.server.stable import Stable
from metadata.server.ticker import Ticker
from metadata.server.waiting import Done, Proposals, Reads
from metadata.state.machine import Machine, Outcome
from node.host.logging import get_logger
from node.wire.errors import Code, FsError
from node.wire.limits import RAFT_TICK_S, READ_ROUND_PATIENCE_S, READ_ROUNDS_MAX

log = get_logger(__name__)

READIES_PER_TURN_MAX = 16  # then the sockets get their turn
_NEEDS_MEMORY = frozenset({Kind.VOTE, Kind.PRE_VOTE, Kind.TIMEOUT_NOW})  # not for a member that lost acknowledged data


def _nothing() -> None:
    """A hook that does nothing."""


def _ignore(outcome: Outcome) -> None:
    """A hook that does nothing with what was applied."""


def _no_snapshot(meta: SnapshotMeta) -> int:
    raise AssertionError(f"no snapshot {meta} was received")


@dataclass(slots=True)
class Hooks:
    """What the node tells and asks the others of its process."""

    send: Callable[[Sequence[Message]], None]  # to peers; may lose them
    tick: Callable[[], None] = _nothing
    role: Callable[[], None] = _nothing  # role or leader changed
    lead: Callable[[], None] = _nothing  # this member leads and has applied all that earlier leaders committed
    loaded: Callable[[SnapshotMeta], int] = _no_snapshot  # what the engine made of a stepped snapshot
    installed: Callable[[], None] = _nothing
    members: Callable[[], None] = _nothing  # the membership changed
    audited: Callable[[], None] = _nothing  # a slice of the state was digested (``machine.audited``)
    applied: Callable[[Outcome], None] = _ignore  # on the leader, before whoever proposed it is answered


class Node:
    """One member's share in the group. Everything is synchronous but ``run``, the only task that takes turns.

    ``clock`` is monotonic, in seconds; ``turn`` is told the time by whoever drives it, from the same clock."""

    def __init__(
        self,
        core: RawNode,
        stable: Stable,
        machine: Machine,
        hooks: Hooks,
        *,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._clock = clock
        self.member = core.id
        self.core = core
        self.stable = stable
        self.machine = machine
        self.role = Role.FOLLOWER
        self.leader = 0
        self.settled = False  # leader, and an entry of its own term is applied here: it holds all earlier ones
        self.ticker = Ticker(RAFT_TICK_S, clock())
        self.turns = 0
        self.elections = 0
        self._hooks = hooks
        self._proposals: Proposals[Outcome] = Proposals()
        self._reads = Reads(READ_ROUND_PATIENCE_S, READ_ROUNDS_MAX)
        self._stuck: Optional[StorageAppend] = None  # written, but the disk is full: not durable yet
        self._held: dict[int, Message] = {}  # to each follower: an append that tells only the commit index
        self._campaign_in = 0  # ticks until this member campaigns for a leader that was lost, 0: it does not
        self._audited = machine.audited.index
        self._parked: Optional[trio.lowlevel.Task] = None
        self._woken = False

    # --- what others ask of a member -------------------------------------------------------------------------

    def propose(self, data: bytes, done: Done[Outcome]) -> None:
        """Put ``data`` into the log; ``done`` is called after it is durable on a quorum and applied here.

        Raises NOT_LEADER elsewhere than on the leader and OVERLOADED when too much is uncommitted; then ``done`` is
        not called. ``done`` may get NOT_LEADER or RETRY later: then the entry may or may not come to be applied.
        """
        self._check_proposal()
        try:
            index, term = self.core.propose(data)
        except ProposalDropped as dropped:
            raise FsError(Code.OVERLOADED, str(dropped)) from None
        self._proposals.add(index, term, done)
        self.wake()

    def propose_conf(self, change: ConfChange, done: Done[Outcome]) -> None:
        """Propose a change of membership; ``done`` as in ``propose``. BUSY while it is not possible."""
        self._check_proposal()
        try:
            index, term = self.core.propose_conf(change)
        except ProposalDropped as dropped:
            raise FsError(Code.BUSY, str(dropped)) from None
        self._proposals.add(index, term, done)
        self.wake()

    def _check_proposal(self) -> None:
        if self.role is not Role.LEADER or self.core.role is not Role.LEADER:
            raise self.not_leader()
        if self._stuck is not None:
            raise FsError(Code.NO_SPACE, f"the disk of member {self.member} is full")

    def read(self, done: Callable[[Optional[FsError]], None]) -> None:
        """Call ``done(None)`` when applied state is at least as new as everything acknowledged before this call."""
        if self.role is not Role.LEADER:
            raise self.not_leader()
        self._reads.add(done)
        self.wake()

    def leads(self, term: int) -> bool:
        """Whether this member leads in this very term."""
        return self.core.role is Role.LEADER and self.core.term == term

    @property
    def readable_now(self) -> bool:
        """Whether applied state is linearizable without asking anybody: a sole voter acknowledges nothing before it
        is applied, and nobody else can acknowledge anything."""
        conf = self.stable.conf
        return self.settled and len(conf.voters) == 1 and not conf.outgoing

    @property
    def full(self) -> bool:
        """Whether the disk ran full, so that only what frees space may go into the log."""
        return self._stuck is not None or self.stable.full or self.stable.store.full

    @property
    def waiting(self) -> int:
        """Requests that wait for this member."""
        return len(self._proposals) + len(self._reads)

    @property
    def running_s(self) -> float:
        """Seconds that this process has been running, without those in which it was stopped."""
        return self.ticker.running_s(self._clock())

    def not_leader(self) -> FsError:
        hint = 0 if self.leader == self.member else self.leader
        return FsError(Code.NOT_LEADER, f"member {self.member} does not lead", hint=hint)

    def wake(self) -> None:
        """Let the loop take a turn soon. Cheap; any number of calls make one turn."""
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)
        else:
            self._woken = True

    # --- what peers bring ------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message from a peer."""
        if message.kind in _NEEDS_MEMORY and self.stable.store.damaged:
            return  # what it acknowledged is lost here: it must not help to elect a leader without it
        self.core.step(message)
        self.wake()

    def unreachable(self, peer: int) -> None:
        """What was last sent to ``peer`` is lost."""
        self.core.report_unreachable(peer)

    def snapshot_sent(self, peer: int, ok: bool) -> None:
        """The stream that a SNAPSHOT message asked for has ended."""
        self.core.report_snapshot(peer, ok)
        self.wake()

    def entries_lost(self, peer: int) -> None:
        """``peer``'s disk lost entries that it had acknowledged: what it acknowledged counts for nothing from here on.

        It does not vote before it has them again, so that nobody is elected who lacks what it once confirmed.
        """
        if self.role is Role.LEADER and peer in self.core.progress:
            log.warning("a member lost entries: sending them again", member=peer)
            self.core.progress[peer] = self.core.new_progress(self.core.log.last + 1)

    def peer_lost(self, peer: int) -> None:
        """The connection to ``peer`` broke. A leader that died this visibly need not be waited for.

        Whoever still hears the leader rejects the pre-vote, so a broken cable elects nobody. Voters take turns, a
        little apart, so that they do not split the votes.
        """
        if peer != self.leader or self.role is not Role.FOLLOWER:
            return
        self.core.forget_leader()
        others = sorted(voter for voter in self.stable.conf.voters if voter != peer)
        if self.member in others:
            self._campaign_in = 1 + 2 * others.index(self.member)
        self.wake()

    # --- the loop --------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take turns until cancelled. An error of the disk ends it, and with it the process."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pulse)
            if self.stable.conf.voters == (self.member,) and not self.stable.conf.outgoing:
                self.core.campaign()  # nobody else to wait for
            task_status.started()
            while True:
                self.turn(self._clock())
                await self._pause()

    def turn(self, now_s: float) -> None:
        """Tick when due, then do everything that is ready."""
        self.turns += 1
        if self.ticker.due(now_s):
            self._tick()
        if self._stuck is not None and not self._retry():
            return
        if self.role is Role.LEADER and (context := self._reads.begin(now_s)) is not None:
            self.core.read_index(context)
        for _ in range(READIES_PER_TURN_MAX):
            if not self.core.has_ready():
                break
            self._handle(self.core.ready())
            if self._stuck is not None:
                return
        else:
            self._woken = True
        self.stable.maintain(now_s)

    def _tick(self) -> None:
        self._hooks.tick()
        self._flush_held()
        if self.stable.store.damaged and self.role is Role.FOLLOWER:
            return  # never campaigns; its leader's messages need no ticks
        self.core.tick()
        if self._campaign_in:
            self._campaign_in -= 1
            if not self._campaign_in and not self.leader:
                self.core.campaign()

    def _handle(self, ready: Ready) -> None:
        if ready.soft_state is not None:
            self._take_role(ready.soft_state.leader, ready.soft_state.role)
        if ready.messages:
            self._send(ready.messages)
        if ready.append is not None:
            self._append(ready.append)
        for state in ready.read_states:
            self._reads.confirmed(state.context, state.index)
        if ready.apply is not None:
            self._apply(ready.apply)
        self._reads.applied(self.stable.applied)

    # --- the disk --------------------------------------------------------------------------------------------

    def _append(self, work: StorageAppend) -> None:
        if work.snapshot is not None:
            self._install(work.snapshot)
        try:
            self.stable.append(work.hard_state, work.entries, work.must_sync)
        except FsError as error:
            if error.code != Code.NO_SPACE:
                raise
            log.error("disk full: this member waits for room", reason=error.detail)
            self._stuck = work
            return
        self._deliver(work.responses)

    def _retry(self) -> bool:
        """Try again to make durable what met a full disk; return whether it is."""
        work = self._stuck
        assert work is not None
        try:
            self.stable.store.sync()
        except FsError as error:
            if error.code != Code.NO_SPACE:
                raise
            return False
        log.info("there is room on the disk again")
        self._stuck = None
        self._deliver(work.responses)
        return True

    def _install(self, meta: SnapshotMeta) -> None:
        log.info("installing a snapshot", index=meta.index, term=meta.term)
        self.stable.install(meta, self._hooks.loaded(meta))
        self.machine.reload()
        assert self.machine.applied == self.stable.applied == meta.index
        self._audited = self.machine.audited.index
        self._hooks.installed()
        self._hooks.members()

    def _deliver(self, responses: Sequence[Message]) -> None:
        away = []
        for message in responses:
            if message.to == self.member:
                self.core.step(message)
            else:
                away.append(message)
        if away:
            self._send(away)

    # --- messages --------------------------------------------------------------------------------------------

    def _send(self, messages: Sequence[Message]) -> None:
        """Send, but let an append that only tells a follower the new commit index wait for the next one with entries,
        or for the tick: nobody waits for it, and it would cost as much as the append before it."""
        now = []
        for message in messages:
            if message.kind == Kind.APPEND:
                if not message.entries and self._tells_only_commit(message):
                    self._held[message.to] = message
                    continue
                self._held.pop(message.to, None)
            now.append(message)
        if now:
            self._hooks.send(now)

    def _tells_only_commit(self, message: Message) -> bool:
        """Whether the follower is known to have all that the leader has: then this is no probe and no repetition."""
        progress = self.core.progress.get(message.to)
        return progress is not None and progress.state == State.REPLICATE and progress.match == message.index

    def _flush_held(self) -> None:
        if self._held:
            held, self._held = list(self._held.values()), {}
            self._hooks.send(held)

    # --- the state machine -----------------------------------------------------------------------------------

    def _apply(self, work: StorageApply) -> None:
        apply, applied = self.machine.apply, self._proposals.applied
        for entry in work.entries:
            if entry.kind == EntryKind.CONF:
                self._change_conf(entry)
                outcome = apply(entry.index, entry.term, b"")
            else:
                outcome = apply(entry.index, entry.term, entry.data)
            if self.settled:
                self._hooks.applied(outcome)
            applied(entry.index, entry.term, outcome)
        if self.machine.audited.index != self._audited:
            self._audited = self.machine.audited.index
            self._hooks.audited()
        last = work.entries[-1]
        self.stable.applied_to(last.index, last.term, len(work.entries))
        if not self.settled and self.role is Role.LEADER and last.term == self.core.term:
            self.settled = True
            self._hooks.lead()
        self._deliver(work.responses)

    def _change_conf(self, entry: Entry) -> None:
        change = decode_change(entry.data)
        try:
            conf = self.core.apply_conf(change)
        except ConfChangeInvalid as invalid:  # on every member alike
            log.warning("a change of membership was not possible", index=entry.index, reason=str(invalid))
            return
        self.stable.set_conf(conf, change)
        log.info("membership changed", voters=conf.voters, learners=conf.learners, outgoing=conf.outgoing)
        self._hooks.members()

    # --- leadership ------------------------------------------------------------------------------------------

    def _take_role(self, leader: int, role: Role) -> None:
        led, self.role, self.leader = self.role is Role.LEADER, role, leader
        if leader:
            self._campaign_in = 0
        if role is Role.LEADER:
            self.elections += 1
        elif led:
            self.settled = False
            self._held.clear()
            self._proposals.fail(self.not_leader())
            self._reads.fail(self.not_leader())
        log.info("role", role=role.name.lower(), term=self.core.term, leader=leader)
        self._hooks.role()

    # --- waiting ---------------------------------------------------------------------------------------------

    async def _pulse(self) -> None:
        while True:
            await trio.sleep_until(self.ticker.next_s)
            self.wake()
            await trio.lowlevel.checkpoint()

    async def _pause(self) -> None:
        if self._woken:
            self._woken = False
            await trio.lowlevel.checkpoint()
            return
        self._parked = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def statistics(self) -> dict[str, float]:
        """Counters and gauges, for metrics and tests."""
        return {
            "turns": self.turns,
            "elections": self.elections,
            "term": self.core.term,
            "applied": self.stable.applied,
            "proposals": len(self._proposals),
            "reads": len(self._reads),
            "read_rounds": self._reads.rounds,
            **self.ticker.statistics(),
            **self.stable.statistics(),
        }
