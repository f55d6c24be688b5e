"""Exhaustive exploration of the real Raft core at small scope, breadth first.

A state is three members with their disks, the messages on the network and what is known to be committed. From each
state every possible next event is tried: a message is delivered, lost or delivered and kept (duplicated); a disk
completes one piece of work; a clock ticks; a leader takes a proposal or a read; a member crashes and restarts without
what its disk had not completed. Each new state is checked:

election safety        no term ever has two leaders, also across crashes
log matching           two logs that have an entry of the same index and term in common are equal up to there
leader completeness    a leader has every entry that was committed in an earlier term
linearizable reads     a read is answered from a state that has all that was committed when it began
state-machine safety   what one member committed or applied at an index, no other member ever contradicts
durability             what is committed is on the disks of a majority

What an event does to a member depends on that member alone, so it is computed once for each (member state, event)
and remembered: most of the exploration is table look-ups.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from metadata.raft.core import Config, RawNode, Role, StorageAppend
from metadata.raft.messages import ConfState, HardState, Kind, Message
from metadata.raft.storage import Compacted, MemoryStorage, Unavailable

MEMBERS = (1, 2, 3)
Fact = tuple[int, bytes]  # an entry: (term, data)


class Budget(NamedTuple):
    """How often each kind of event may still happen."""

    ticks: int = 6
    proposals: int = 1
    crashes: int = 1
    duplicates: int = 1
    losses: int = 1
    reads: int = 0


@dataclass(slots=True)
class Scope:
    """What is explored. ``prelude`` events are played first, on a network that loses nothing, to begin deeper."""

    budget: Budget = field(default_factory=Budget)
    max_term: int = 3
    max_messages: int = 6
    pre_vote: bool = False
    check_quorum: bool = False
    coalesce: bool = True
    max_message_bytes: int = 1 << 20
    stride: int = 2  # ticks in one tick event: with 2 every one of a follower is a time-out
    prelude: tuple[tuple[str, int], ...] = ()


class Violation(AssertionError):
    """A property does not hold; the message tells which, and the events that led there."""


class Member:
    """One member's state: its core, its disk, and the work its disk has not completed."""

    __slots__ = ("node", "storage", "synced", "work")

    def __init__(self, node: RawNode, storage: MemoryStorage, synced: HardState, work: list[StorageAppend]) -> None:
        self.node = node
        self.storage = storage
        self.synced = synced  # the hard state that a crash leaves: the commit index may be older
        self.work = work

    def copy(self) -> Member:
        storage = self.storage.copy()
        return Member(self.node.clone(storage), storage, self.synced, self.work.copy())

    def key(self) -> tuple[object, ...]:
        work = tuple((tuple(w.entries), w.hard_state, tuple(w.responses), w.must_sync) for w in self.work)
        return (self.node.snapshot_key(), tuple(self.storage.log), self.storage.hard, self.synced, work)

    def settle(self) -> list[Message]:
        """Do all that needs no disk. Returns what goes out."""
        out: list[Message] = []
        node = self.node
        while node.has_ready():
            ready = node.ready()
            out += ready.messages
            for answer in ready.read_states:
                if answer.index < answer.context:
                    raise Violation(f"linearizable reads: {node.id} reads at {answer.index}, not {answer.context}")
            if ready.append is not None:
                self.work.append(ready.append)
            if ready.apply is not None:
                for response in ready.apply.responses:
                    node.step(response)
        return out

    def complete(self) -> list[Message]:
        """The disk completes its oldest piece of work."""
        work = self.work.pop(0)
        self.storage.append(work.entries)
        if work.hard_state is not None:
            self.storage.set_hard_state(work.hard_state)
        if work.must_sync:
            self.synced = self.storage.hard
        out = []
        for message in work.responses:
            if message.to == self.node.id:
                self.node.step(message)
            else:
                out.append(message)
        return out + self.settle()


@dataclass(slots=True)
class Facts:
    """What the checks need to know of a member's state."""

    leader: bool
    term: int
    log: tuple[Fact, ...]
    durable: tuple[Fact, ...]
    commit: int
    applied: int
    busy: bool  # its disk has work
    keeps: bool  # a crash would change something


class State(NamedTuple):
    members: tuple[int, ...]  # numbers of member states
    network: tuple[int, ...]  # numbers of messages, sorted; equal ones may occur twice
    budget: Budget
    leaders: tuple[int, ...]  # who led term 1, 2, ...; 0: nobody so far
    committed: tuple[Fact, ...]
    committed_in: tuple[int, ...]  # the term in which each was first known to be committed


Event = tuple[str, int]  # (kind, member or message number)


@dataclass(slots=True)
class Report:
    states: int = 0
    depth: int = 0
    transitions: int = 0
    seconds: float = 0.0
    exhausted: bool = False  # nothing is left within the scope
    deepest_commit: int = 0
    leaders: int = 0


class Explorer:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.member_numbers: dict[object, int] = {}
        self.members: list[Member] = []
        self.facts: list[Facts] = []
        self.message_numbers: dict[Message, int] = {}
        self.messages: list[Message] = []
        self.steps: dict[tuple[int, str, int], tuple[int, tuple[int, ...]]] = {}
        self.matching: set[tuple[int, int]] = set()

    # --- member states and messages as numbers --------------------------------------------------------------------

    def _intern(self, member: Member) -> int:
        key = member.key()
        number = self.member_numbers.get(key)
        if number is None:
            number = self.member_numbers[key] = len(self.members)
            self.members.append(member)
            self.facts.append(_facts(member))
        return number

    def _intern_message(self, message: Message) -> int:
        number = self.message_numbers.get(message)
        if number is None:
            number = self.message_numbers[message] = len(self.messages)
            self.messages.append(message)
        return number

    def _step(self, number: int, kind: str, argument: int) -> tuple[int, tuple[int, ...]]:
        """The member state that an event leads to, and what is sent."""
        key = (number, kind, argument)
        known = self.steps.get(key)
        if known is not None:
            return known
        try:
            member, out = self._perform(self.members[number], kind, argument)
            result = (self._intern(member), tuple(self._intern_message(message) for message in out))
        except (AssertionError, Compacted, Unavailable) as error:
            raise Violation(f"a member breaks at {kind}: {error!r}") from error
        self.steps[key] = result
        return result

    def _perform(self, before: Member, kind: str, argument: int) -> tuple[Member, list[Message]]:
        if kind == "crash":
            return self._restarted(before), []
        member = before.copy()
        if kind == "disk":
            return member, member.complete()
        if kind == "tick":
            for _ in range(self.scope.stride):
                member.node.tick()
        elif kind == "propose":
            member.node.propose(b"%d" % member.node.log.last)
        elif kind == "read":
            member.node.read_index(argument)
        else:
            member.node.step(self.messages[argument])
        return member, member.settle()

    def _config(self, member: int) -> Config:
        scope = self.scope
        return Config(
            member, election_ticks=2, heartbeat_ticks=1, pre_vote=scope.pre_vote, check_quorum=scope.check_quorum,
            coalesce=scope.coalesce, async_storage=True, max_message_bytes=scope.max_message_bytes,
        )  # fmt: skip

    def _restarted(self, member: Member) -> Member:
        storage = member.storage.copy()
        storage.hard = member.synced
        fresh = Member(RawNode(self._config(member.node.id), storage, _zero), storage, storage.hard, [])
        fresh.settle()
        return fresh

    def initial(self) -> State:
        numbers = []
        for member in MEMBERS:
            storage = MemoryStorage(ConfState(MEMBERS))
            numbers.append(
                self._intern(Member(RawNode(self._config(member), storage, _zero), storage, storage.hard, []))
            )
        return State(tuple(numbers), (), self.scope.budget, (), (), ())

    # --- exploring ------------------------------------------------------------------------------------------------

    def successors(self, state: State) -> Iterator[tuple[Event, State]]:
        """Every event that may happen next, and where it leads."""
        budget = state.budget
        network = state.network
        previous = -1
        for position, message in enumerate(network):
            if message == previous:
                continue
            previous = message
            rest = network[:position] + network[position + 1 :]
            to = self.messages[message].to
            yield from self._moved(state, to, "deliver", message, rest, budget)
            if budget.duplicates:
                spent = budget._replace(duplicates=budget.duplicates - 1)
                yield from self._moved(state, to, "deliver", message, network, spent)
            if budget.losses:
                yield ("lose", message), state._replace(network=rest, budget=budget._replace(losses=budget.losses - 1))
        for member in MEMBERS:
            facts = self.facts[state.members[member - 1]]
            if facts.busy:
                yield from self._moved(state, member, "disk", member, network, budget)
            if budget.ticks:
                spent = budget._replace(ticks=budget.ticks - 1)
                yield from self._moved(state, member, "tick", member, network, spent)
            if budget.proposals and facts.leader:
                spent = budget._replace(proposals=budget.proposals - 1)
                yield from self._moved(state, member, "propose", member, network, spent)
            if budget.reads and facts.leader:
                # The number of the read is what it must see.
                spent = budget._replace(reads=budget.reads - 1)
                yield from self._moved(state, member, "read", len(state.committed), network, spent)
            if budget.crashes and facts.keeps:
                spent = budget._replace(crashes=budget.crashes - 1)
                yield from self._moved(state, member, "crash", member, network, spent)

    def _moved(
        self, state: State, member: int, kind: str, argument: int, network: tuple[int, ...], budget: Budget
    ) -> Iterator[tuple[Event, State]]:
        before = state.members[member - 1]
        after, sent = self._step(before, kind, argument)
        if len(network) + len(sent) > self.scope.max_messages or self.facts[after].term > self.scope.max_term:
            return
        members = state.members
        if after != before:
            members = members[: member - 1] + (after,) + members[member:]
        if sent:
            network = tuple(sorted(network + sent))
        event = (kind, argument if kind == "deliver" else member)
        moved = State(members, network, budget, state.leaders, state.committed, state.committed_in)
        yield event, self._record(moved, after, member)

    def _record(self, state: State, number: int, member: int) -> State:
        """Take down what the member's new state shows: that it leads, and what it knows to be committed."""
        facts = self.facts[number]
        leaders, committed, committed_in = state.leaders, state.committed, state.committed_in
        if facts.leader:
            if len(leaders) < facts.term:
                leaders += (0,) * (facts.term - len(leaders))
            known = leaders[facts.term - 1]
            if known not in (0, member):
                raise Violation(f"election safety: {known} and {member} both lead term {facts.term}")
            leaders = leaders[: facts.term - 1] + (member,) + leaders[facts.term :]
        if facts.commit > len(committed):
            new = facts.log[len(committed) : facts.commit]
            committed_in += (facts.term,) * len(new)
            committed += new
        if leaders is state.leaders and committed is state.committed:
            return state
        return state._replace(leaders=leaders, committed=committed, committed_in=committed_in)

    def check(self, state: State) -> None:
        """Raise Violation where a property does not hold."""
        facts = [self.facts[number] for number in state.members]
        committed = state.committed
        for member, fact in enumerate(facts, 1):
            if fact.log[: fact.commit] != committed[: fact.commit]:
                raise Violation(f"state-machine safety: {member} committed {fact.log[:fact.commit]}, not {committed}")
            if fact.leader:
                for index, (entry, term) in enumerate(zip(committed, state.committed_in, strict=True)):
                    if term < fact.term and fact.log[index : index + 1] != (entry,):
                        raise Violation(f"leader completeness: {member} leads {fact.term} without {entry}")
        for index, entry in enumerate(committed):
            copies = sum(fact.durable[index : index + 1] == (entry,) for fact in facts)
            if copies * 2 <= len(facts):
                raise Violation(f"durability: committed entry {index + 1} {entry} is on {copies} disks")
        for one, other in itertools.combinations(state.members, 2):
            if (one, other) not in self.matching:
                _check_matching(self.facts[one].log, self.facts[other].log)
                self.matching.add((one, other))

    def run(self, max_states: int, max_seconds: float = 1e9) -> Report:
        """Explore until nothing is left, or a bound is reached. Raises Violation with the shortest schedule."""
        try:
            return self._run(max_states, max_seconds, {})
        except Violation as violation:
            parents: dict[int, tuple[int, Event]] = {-1: (-1, ("", 0))}
            try:
                Explorer(self.scope)._run(max_states, 1e9, parents)
            except Violation as again:
                raise again from None
            raise violation

    def _run(self, max_states: int, max_seconds: float, parents: dict[int, tuple[int, Event]]) -> Report:
        started = time.monotonic()
        report = Report()
        first = self._prelude()
        seen = {hash(first)}
        level = [first]
        self.check(first)
        while level and len(seen) < max_states and time.monotonic() - started < max_seconds:
            following: list[State] = []
            for state in level:
                for event, state_after in self._checked(state, parents):
                    report.transitions += 1
                    number = hash(state_after)
                    if number in seen:
                        continue
                    seen.add(number)
                    if parents:
                        parents[number] = (hash(state), event)
                    try:
                        self.check(state_after)
                    except Violation as violation:
                        raise Violation(f"{violation}\n{self._schedule(number, parents)}") from None
                    following.append(state_after)
                    report.deepest_commit = max(report.deepest_commit, len(state_after.committed))
                    report.leaders = max(report.leaders, sum(leader > 0 for leader in state_after.leaders))
                if len(seen) >= max_states:
                    break
            report.depth += 1
            level = following
        report.states = len(seen)
        report.exhausted = not level
        report.seconds = time.monotonic() - started
        return report

    def _checked(self, state: State, parents: dict[int, tuple[int, Event]]) -> Iterator[tuple[Event, State]]:
        try:
            yield from self.successors(state)
        except Violation as violation:
            raise Violation(f"{violation}\n{self._schedule(hash(state), parents)}") from None

    def _prelude(self) -> State:
        """Begin deeper: play the scope's prelude. ``rest`` lets everything settle, ``hand`` delivers all that waits
        for a member, ``forget`` loses it; the others are events."""
        state = self.initial()
        for kind, member in self.scope.prelude:
            if kind == "rest":
                while state.network or any(self.facts[number].busy for number in state.members):
                    state = next(iter(self.successors(state._replace(budget=_NOTHING))))[1]
            elif kind == "forget":
                state = state._replace(network=tuple(m for m in state.network if self.messages[m].to != member))
            elif kind == "hand":
                for message in [m for m in state.network if self.messages[m].to == member]:
                    position = state.network.index(message)
                    rest = state.network[:position] + state.network[position + 1 :]
                    state = self._only(state, member, "deliver", message, rest)
            else:
                state = self._only(state, member, kind, member, state.network)
        return state._replace(budget=self.scope.budget)

    def _only(self, state: State, member: int, kind: str, argument: int, network: tuple[int, ...]) -> State:
        moved = list(self._moved(state, member, kind, argument, network, state.budget))
        assert moved, "the prelude leaves the scope"
        return moved[0][1]

    def _schedule(self, number: int, parents: dict[int, tuple[int, Event]]) -> str:
        """The events that led to a state."""
        events: list[str] = []
        while number in parents and number != -1:
            number, (kind, argument) = parents[number]
            events.append(f"{kind} {_short(self.messages[argument]) if kind in ('deliver', 'lose') else argument}")
        return "\n".join(reversed(events))


_NOTHING = Budget(0, 0, 0, 0, 0, 0)


def _short(message: Message) -> str:
    text = f"{Kind(message.kind).name} {message.sender}->{message.to} term {message.term}"
    return f"{text} log {message.log_term}/{message.index} entries {[(e.term, e.data) for e in message.entries]}"


def _zero(n: int) -> int:
    return 0


def _facts(member: Member) -> Facts:
    node = member.node
    log = node.log
    entries = log.entries(1, log.last + 1, 1 << 30)
    return Facts(
        node.role == Role.LEADER,
        node.term,
        tuple((entry.term, entry.data) for entry in entries),
        tuple((entry.term, entry.data) for entry in member.storage.log),
        log.committed,
        log.applied,
        bool(member.work),
        node.term > 0,
    )


def _check_matching(one: tuple[Fact, ...], other: tuple[Fact, ...]) -> None:
    for index in range(min(len(one), len(other)) - 1, -1, -1):
        if one[index][0] == other[index][0]:
            if one[: index + 1] != other[: index + 1]:
                raise Violation(f"log matching: {one} and {other} share entry {index + 1} but not all before")
            return
