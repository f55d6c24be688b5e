"""What clients and an operator do: mutations repeated until answered, reads anywhere, changes of membership."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Optional, Protocol

import msgspec

from metadata.api import (
    AttrResult,
    Commit,
    Committed,
    Extent,
    Failed,
    GetAttr,
    Lookup,
    Made,
    Make,
    Op,
    OpenSession,
    OpenSessionReply,
    Query,
    Remove,
    Removed,
    Rename,
    Renamed,
    Result,
    SetAttr,
    Submit,
    SubmitReply,
)
from metadata.raft.messages import ConfChange, ConfChangeItem, ConfChangeKind, ConfTransition
from metadata.state.command import CommandKind
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO
from storage.api import name_block
from tests.sim.checkers import Answers, Counter, Register, Violation, require
from tests.sim.member import Member, SimNode

NAMES = 4  # of each client
SHARED = b"shared"
_FILE = 0o100644
_TIMEOUT_S = 0.4
_AGAIN = frozenset(
    {Code.NOT_LEADER, Code.RETRY, Code.OVERLOADED, Code.NO_SPACE, Code.BUSY, Code.UNREACHABLE, Code.TIMEOUT}
)
_encode = msgspec.msgpack.Encoder().encode


def _untold(_: int) -> None:
    """Nobody wants to know."""


class Service(Protocol):
    """What a client needs of the world."""

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None: ...

    def members_to_ask(self) -> list[int]: ...

    def mutate(
        self, client: int, member: int, kind: CommandKind, body: msgspec.Struct,
        answer: Callable[[msgspec.Struct | FsError], None],
    ) -> None: ...

    def query(
        self, client: int, member: int, queries: tuple[Query, ...],
        answer: Callable[[tuple[Result, ...] | FsError], None],
    ) -> None: ...


@dataclass
class Facts:
    """What all clients together know. The oracle."""

    registers: dict[bytes, Register] = field(default_factory=dict)
    counter: Counter = field(default_factory=Counter)
    answers: Answers = field(default_factory=Answers)
    shared_ino: int = 0
    mutations: int = 0
    reads: int = 0
    repeats: int = 0
    stale_reads_refused: int = 0


@dataclass
class Request:
    """A mutation that is asked until it is answered."""

    sequence: int
    op: Op
    names: tuple[bytes, ...]
    done: Callable[[Result], None]
    submit: Optional[Submit] = None
    attempt: int = 0
    finished: bool = False


class Client:
    """One mount: a session, some names of its own, a few requests at a time."""

    def __init__(self, number: int, world: Service, facts: Facts, random: Random, depth: int) -> None:
        self.number = -number  # as an end of the network
        self.pending: dict[int, Request] = {}
        self.active = True  # begins new work
        self._world = world
        self._facts = facts
        self._random = random
        self._depth = depth
        self._session = 0
        self._sequence = 0
        self._value = number * 1_000_000
        self._nonce = b"%016d" % number
        self._names = [b"%d-%d" % (number, place) for place in range(NAMES)]
        for name in self._names:
            facts.registers[name] = Register(name)
        self._inos: dict[bytes, int] = {}
        self._hint = 0

    # --- a session --------------------------------------------------------------------------------------------

    def start(self) -> None:
        if not self._session:
            body = OpenSession(self._nonce, "host", "mnt", "1")
            self._world.mutate(self.number, self._target(), CommandKind.OPEN_SESSION, body, self._opened)
            self._world.later(_TIMEOUT_S * (0.5 + self._random.random()), self.start)

    def _opened(self, answer: msgspec.Struct | FsError) -> None:
        if isinstance(answer, FsError):
            self._refused(answer)
            return
        assert isinstance(answer, OpenSessionReply)
        require(self._session in (0, answer.session), "exactly once", f"client {self.number} has two sessions")
        if not self._session:
            self._session = answer.session
            self._shared()
            self._act()

    def _target(self) -> int:
        members = self._world.members_to_ask()
        if self._hint in members and self._random.random() < 0.9:
            return self._hint
        return self._random.choice(members)

    def _refused(self, error: FsError) -> None:
        if error.code not in _AGAIN:
            raise Violation("answers", f"client {self.number} is told {error!r}")
        hint = getattr(error, "hint", 0)
        self._hint = hint if isinstance(hint, int) else 0

    # --- mutations --------------------------------------------------------------------------------------------

    def _shared(self) -> None:
        def done(result: Result) -> None:
            require(isinstance(result, Made), "answers", result)
            assert isinstance(result, Made)
            require(self._facts.shared_ino in (0, result.attr.ino), "exactly once", "two files of one name")
            self._facts.shared_ino = result.attr.ino

        self._submit(Make(ROOT_INO, SHARED, _FILE, 0, 0, exclusive=False), (), done)

    def _act(self) -> None:
        """Begin something, and come again."""
        random = self._random
        if self.active:
            if len(self.pending) < self._depth and random.random() < 0.7:
                self._mutate()
            else:
                self._read()
        self._world.later(0.01 + random.expovariate(1 / 0.02), self._act)

    def _mutate(self) -> None:
        random, facts = self._random, self._facts
        busy = {name for request in self.pending.values() for name in request.names}
        free = [name for name in self._names if name not in busy]
        if facts.shared_ino and (not free or random.random() < 0.25):
            self._append()
            return
        if not free:
            return
        name = random.choice(free)
        register = facts.registers[name]
        value = register.values[-1]
        if value is None:
            self._make(name, register)
            return
        absent = [other for other in free if facts.registers[other].values[-1] is None]
        way = random.random()
        if way < 0.35:
            self._change(register, None, Remove(ROOT_INO, name), (name,), Removed)
        elif way < 0.6 and absent:
            self._rename(name, random.choice(absent), value)
        else:
            self._value += 1
            self._change(register, self._value, SetAttr(self._inos[name], gid=self._value), (name,), AttrResult)

    def _make(self, name: bytes, register: Register) -> None:
        self._value += 1
        value = self._value
        register.begin(value)

        def done(result: Result) -> None:
            require(isinstance(result, Made) and not result.existed, "exactly once", f"make {name!r}: {result}")
            assert isinstance(result, Made)
            require(result.attr.gid == value, "exactly once", f"make {name!r}: {result}")
            self._inos[name] = result.attr.ino
            register.end()

        self._submit(Make(ROOT_INO, name, _FILE, 0, value), (name,), done)

    def _change(
        self, register: Register, value: Optional[int], op: Op, names: tuple[bytes, ...], kind: type[Any]
    ) -> None:
        register.begin(value)

        def done(result: Result) -> None:
            require(isinstance(result, kind), "exactly once", f"{op}: {result}")
            register.end()

        self._submit(op, names, done)

    def _rename(self, name: bytes, other: bytes, value: int) -> None:
        source, target = self._facts.registers[name], self._facts.registers[other]
        source.begin(None)
        target.begin(value)

        def done(result: Result) -> None:
            require(isinstance(result, Renamed), "exactly once", f"rename {name!r}: {result}")
            source.end()
            target.end()
            self._inos[other] = self._inos.pop(name)

        self._submit(Rename(ROOT_INO, name, ROOT_INO, other), (name, other), done)

    def _append(self) -> None:
        counter = self._facts.counter
        counter.begin()

        def done(result: Result) -> None:
            require(isinstance(result, Committed), "answers", result)
            assert isinstance(result, Committed)
            counter.end(result.offset)

        self._submit(Commit(self._facts.shared_ino, (), 1, 0, 0, append=True), (), done)

    def _submit(self, op: Op, names: tuple[bytes, ...], done: Callable[[Result], None]) -> None:
        self._sequence += 1
        request = Request(self._sequence, op, names, done)
        after = request.sequence - 1 if self._random.random() < 0.3 else 0
        lowest = min(self.pending, default=self._sequence)
        request.submit = Submit(self._session, self._sequence, lowest, (op, *_data_along(op)), after)
        self.pending[request.sequence] = request
        self._facts.mutations += 1
        self._try(request, 0)

    def _try(self, request: Request, attempt: int) -> None:
        if request.finished or attempt != request.attempt:
            return
        request.attempt += 1
        self._facts.repeats += attempt > 0
        assert request.submit is not None
        targets = [self._target()]
        if self._random.random() < 0.05:
            targets.append(self._target())
        for target in targets:
            self._world.mutate(
                self.number, target, CommandKind.SUBMIT, request.submit, lambda answer: self._answered(request, answer)
            )
        self._world.later(_TIMEOUT_S * (0.5 + self._random.random()), self._try, request, request.attempt)

    def _answered(self, request: Request, answer: msgspec.Struct | FsError) -> None:
        if isinstance(answer, FsError):
            if answer.code == Code.STALE_SEQUENCE and request.finished:
                return
            self._refused(answer)
            if not request.finished:
                attempt = request.attempt
                self._world.later(0.02 + self._random.random() * 0.05, self._try, request, attempt)
            return
        assert isinstance(answer, SubmitReply)
        self._facts.answers.answered(self._session, request.sequence, _encode(answer.results))
        if not request.finished:
            request.finished = True
            del self.pending[request.sequence]
            assert request.submit is not None
            require(len(answer.results) == len(request.submit.ops), "answers", answer)
            require(not any(isinstance(result, Failed) for result in answer.results[1:]), "answers", answer)
            request.done(answer.results[0])

    # --- reads ------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        facts, random = self._facts, self._random
        members = self._world.members_to_ask()
        target = self._target() if random.random() < 0.6 else random.choice(members)
        if facts.shared_ino and random.random() < 0.3:
            self.read_counter(target)
        else:
            self.read_name(random.choice(list(facts.registers.values())), target)

    def read_name(self, register: Register, target: int, told: Callable[[bool], None] = _untold) -> None:
        oldest = register.reading()

        def answer(results: tuple[Result, ...] | FsError) -> None:
            if isinstance(results, FsError):
                self._refused(results)
                told(False)
                return
            result = results[0]
            if isinstance(result, Failed):
                require(result.code == Code.NOT_FOUND, "answers", result)
                register.read(oldest, None)
            else:
                assert isinstance(result, AttrResult)
                register.read(oldest, result.attr.gid)
            self._facts.reads += 1
            told(True)

        self._world.query(self.number, target, (Lookup(ROOT_INO, register.name),), answer)

    def read_counter(self, target: int, told: Callable[[int], None] = _untold) -> None:
        counter = self._facts.counter
        oldest = counter.seen

        def answer(results: tuple[Result, ...] | FsError) -> None:
            if isinstance(results, FsError):
                self._refused(results)
                told(-1)
                return
            result = results[0]
            require(isinstance(result, AttrResult), "answers", result)
            assert isinstance(result, AttrResult)
            counter.read(oldest, result.attr.size)
            self._facts.reads += 1
            told(result.attr.size)

        self._world.query(self.number, target, (GetAttr(self._facts.shared_ino),), answer)


def _data_along(op: Op) -> tuple[Op, ...]:
    """Some files are written in the same step, and the bytes are in the log entry: in the state of all members then."""
    if not isinstance(op, SetAttr) or op.gid is None or op.gid % 2:
        return ()
    data = b"%08d" % op.gid * (1 + op.gid % 50)
    extent = Extent(op.gid % 3 * 1000, len(data), name_block(data), 0, len(data))
    return (Commit(op.ino, (extent,), 0, 0, 0, data=data),)


class Cluster(Protocol):
    """What the operator sees."""

    members: dict[int, Member]

    def add_member(self) -> int: ...


@dataclass
class Operator:
    """Changes who takes part, one change at a time, never more at once than the group can bear to lose."""

    world: Cluster
    random: Random
    smallest: int
    largest: int
    proposed: int = 0
    applied: int = 0
    overlapping: int = 0

    def act(self, node: SimNode) -> Optional[str]:
        """Ask a leader for one change; say which."""
        conf = node.core.conf
        if conf.joint:
            return None if conf.auto_leave else self._propose(node, ConfChange())
        change = self._draw(conf.voters, conf.learners)
        asked = self._propose(node, change) if change is not None else None
        if asked is not None and self.random.random() < 0.2:
            another = self._draw(conf.voters, conf.learners)
            if another is not None and self._propose(node, another) is not None:
                self.overlapping += 1
        return asked

    def _draw(self, voters: frozenset[int], learners: frozenset[int]) -> Optional[ConfChange]:
        random, members = self.random, self.world.members
        lost = [member for member in sorted(voters | learners) if members[member].gone]
        ready = [member for member in sorted(learners) if not members[member].gone]
        spare = [member for member in sorted(members) if member not in voters | learners and not members[member].gone]
        way = random.random()
        if lost and (len(voters) > 1 or lost[0] in learners) and way < 0.4:
            return _change(random, ((ConfChangeKind.REMOVE, lost[0]),))
        if ready and len(voters) < self.largest and way < 0.6:
            return _change(random, ((ConfChangeKind.ADD_VOTER, ready[0]),))
        if len(voters) + len(learners) < self.largest and way < 0.8:
            new = random.choice(spare) if spare and random.random() < 0.3 else self.world.add_member()
            kind = ConfChangeKind.ADD_LEARNER if random.random() < 0.7 else ConfChangeKind.ADD_VOTER
            return _change(random, ((kind, new),))
        alive = [member for member in sorted(voters) if not members[member].gone]
        weak = any(member.weak for member in members.values())
        if len(voters) > self.smallest and len(alive) > 1 and not lost and not weak:
            going = random.choice(alive)
            items = [(ConfChangeKind.REMOVE if random.random() < 0.7 else ConfChangeKind.ADD_LEARNER, going)]
            coming = ready if random.random() < 0.7 else []
            items += [(ConfChangeKind.ADD_VOTER, member) for member in coming[: self.largest - len(voters) + 1]]
            return _change(random, tuple(items))
        return None

    def _propose(self, node: SimNode, change: ConfChange) -> Optional[str]:
        def done(outcome: object, error: Optional[FsError]) -> None:
            self.applied += error is None

        try:
            node.propose_conf(change, done)
        except FsError:
            return None
        self.proposed += 1
        return repr(change.items)


def _change(random: Random, items: tuple[tuple[ConfChangeKind, int], ...]) -> ConfChange:
    ways = [ConfTransition.JOINT_AUTO_LEAVE, ConfTransition.JOINT_EXPLICIT, ConfTransition.AUTO, ConfTransition.AUTO]
    return ConfChange(tuple(ConfChangeItem(kind, member) for kind, member in items), random.choice(ways))
