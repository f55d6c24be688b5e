"""A whole group in one thread on a fake clock: every schedule is a function of its seed.

First ``events`` events of trouble: members crash, pause, lose power, disks and clocks; the network parts and heals;
an operator changes the membership; clients go on all the while. Then everything heals, and within bounded time every
request must be answered, every member must have everything, and every client must find what it was promised, also
after one more loss of power of all at once. An event is something that happens to a member: a message, a tick, a request, a fault; what
the member does about it is not counted.
"""

from __future__ import annotations

import heapq
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Optional

import msgspec

import metadata.server.node
import metadata.server.snapshots
import metadata.server.stable
from metadata.api import Query, Result
from metadata.raft.log import LogDamaged
from metadata.raft.messages import ConfState, EntryKind, Kind, Message
from metadata.raft.storage import Compacted
from metadata.server.node import Hooks
from metadata.server.wire import SnapshotPosition
from metadata.state.command import CommandKind, Format, encode_command
from metadata.state.machine import Outcome
from metadata.store.disk import FatalDiskError
from node.wire.errors import Code, FsError
from node.wire.limits import LOG_RESERVE_BYTES
from tests.sim.checkers import Register, Safety, Violation, require
from tests.sim.disk import PowerCut
from tests.sim.member import CLUSTER, Member, Settings, SimNode
from tests.sim.network import Network, Stream, Weather, partition
from tests.sim.workload import Client, Facts, Operator

EVENTS = 3000
HEAL_S = 60.0  # simulated: until then everything must be as it should be
_HEAL_EVENTS = 60_000
_ROOM = 1 << 40
_QUIET = ("metadata.server.node", "metadata.server.stable", "metadata.server.snapshots")


@dataclass
class Profile:
    """What kind of run a seed is: drawn from it, some of it, so that seeds differ in kind and not only in detail."""

    members: int = 3
    largest: int = 7
    clients: int = 3
    depth: int = 3
    events: int = EVENTS
    settings: Settings = field(default_factory=Settings)
    weather: Weather = field(default_factory=Weather)
    faults: dict[str, float] = field(default_factory=dict)  # by name: how often, relative to others
    fault_s: float = 0.2  # mean time between faults
    turn_s: float = 0.002  # how late a woken member takes its turn
    disk_s: float = 0.005  # how long the log worker takes
    down_s: float = 0.6
    drift: float = 0.02
    change_cut: float = 0.2  # how many changes of membership are followed by a partition at once


FAULTS = {
    "kill": 1.0, "power": 1.0, "power_all": 0.5, "cut": 1.0, "sync": 0.5, "full": 1.0, "flip": 1.0, "lose": 1.0,
    "pause": 1.0, "jump": 0.5, "wall": 0.3, "partition": 1.5, "heal": 1.0, "weather": 0.7, "forget": 0.7,
    "member": 3.0, "transfer": 1.5, "campaign": 0.3,
}  # fmt: skip


def draw(seed: int, members: int = 0, events: int = EVENTS) -> Profile:
    """The profile of a seed."""
    random = Random(f"profile {seed}")
    lease = random.random() < 0.15
    election = random.choice((3, 4, 5, 5, 8, 10)) if not lease else random.choice((5, 6, 10))
    settings = Settings(
        election_ticks=election,
        heartbeat_ticks=random.choice((1, 1, 2)),
        max_message_bytes=random.choice((1 << 20, 1 << 20, 2000, 1)),
        max_inflight_messages=random.choice((256, 256, 4, 1)),
        pre_vote=lease or random.random() < 0.85,
        check_quorum=lease or random.random() < 0.9,
        lease=lease,
        coalesce=random.random() < 0.8,
        worker=random.random() < 0.5,
        commit_entries=random.choice((1, 8, 32, 128)),
        commit_s=random.choice((0.05, 0.3, 1.0)),
        trailing=random.choice((0, 5, 20, 100)),
        segment_bytes=random.choice((2048, 8192, 65536)),
    )
    weather = Weather(
        loss=random.choice((0.0, 0.0, 0.02, 0.1, 0.25)),
        repeat=random.choice((0.0, 0.02, 0.2)),
        delay_s=random.choice((0.0005, 0.002, 0.01, 0.03)),
        slow=random.choice((0.0, 0.0, 0.05, 0.2)),
        slow_s=random.choice((0.1, 0.5, 2.0)),
    )
    faults = {name: usual * random.choice((0.0, 0.5, 1.0, 3.0)) for name, usual in FAULTS.items()}
    if lease:  # a lease is kept by clocks: what breaks them is excluded by its contract
        faults["pause"] = faults["jump"] = 0.0
        weather = replace(weather, slow_s=0.5)
    return Profile(
        members=members or random.choice((3, 3, 3, 4, 5, 5, 7)),
        clients=random.choice((2, 3, 4)),
        depth=random.choice((1, 3, 6)),
        events=events,
        settings=settings,
        weather=weather,
        faults=faults,
        fault_s=random.choice((0.08, 0.25, 0.8)),
        turn_s=random.choice((0.0, 0.002, 0.02)) if not lease else 0.002,
        disk_s=random.choice((0.0, 0.005, 0.05, 0.2)),
        down_s=random.choice((0.2, 0.6, 2.0)),
        drift=0.0 if lease else random.choice((0.0, 0.02, 0.1)),
    )


@dataclass
class Report:
    """What a run was."""

    seed: int
    events: int = 0
    simulated_s: float = 0.0
    heal_s: float = 0.0
    terms: int = 0
    committed: int = 0
    mutations: int = 0
    reads: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: int = 0


class _Quiet:
    """A logger that says nothing, or says it into the trace."""

    def __init__(self, say: Optional[Callable[[str], None]]) -> None:
        self._say = say

    def _log(self, event: str, **fields: object) -> None:
        if self._say is not None:
            self._say(f"    {event} {fields}")

    debug = info = warning = error = exception = _log


@contextmanager
def _quiet(say: Optional[Callable[[str], None]]) -> Iterator[None]:
    modules: list[Any] = [metadata.server.node, metadata.server.stable, metadata.server.snapshots]
    kept = [module.log for module in modules]
    for module in modules:
        module.log = _Quiet(say)
    try:
        yield
    finally:
        for module, logger in zip(modules, kept):
            module.log = logger


class World:
    """One run. ``say`` is told everything that happens, where it is given."""

    def __init__(self, seed: int, profile: Profile, say: Optional[Callable[[str], None]] = None) -> None:
        self.seed = seed
        self.profile = profile
        self.now = 0.0
        self.safety = Safety()
        self.report = Report(seed)
        self.healing = False
        self._say = say
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = 0
        self._fingerprint = 0
        self._random = Random(seed)
        self.network = Network(self, Random(self._random.getrandbits(64)), replace(profile.weather))
        self._founders = ConfState(tuple(range(1, profile.members + 1)))
        self.members: dict[int, Member] = {}
        self._clocks: dict[int, tuple[float, float]] = {}  # local = offset + rate * now
        self._walls: dict[int, float] = {}
        self._turning: set[int] = set()
        self._working: set[int] = set()
        self._streams: dict[tuple[int, int, int], Stream] = {}
        self._counted = 0
        for ident in self._founders.voters:
            self._make(ident, self._founders)
        self.facts = Facts()
        self.clients = [
            Client(number + 1, self, self.facts, Random(self._random.getrandbits(64)), profile.depth)
            for number in range(profile.clients)
        ]
        self.operator = Operator(self, Random(self._random.getrandbits(64)), min(profile.members, 3), profile.largest)

    # --- time -------------------------------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._numbers, action, args))

    def _next(self) -> None:
        self.now, _, action, args = heapq.heappop(self._queue)
        action(*args)

    def say(self, text: str) -> None:
        if self._say is not None:
            self._say(f"{self.now:9.4f} {text}")

    def _happens(self, *what: object) -> None:
        """Count an event."""
        self.report.events += 1
        self._fingerprint = zlib.crc32(repr((round(self.now, 6), what)).encode(), self._fingerprint)

    def _local(self, member: Member) -> float:
        offset, rate = self._clocks[member.id]
        return offset + rate * self.now

    def _wall_ns(self, member: int) -> int:
        return int((1_700_000_000 + self.now + self._walls[member]) * 1e9)

    # --- members ----------------------------------------------------------------------------------------------

    def _make(self, ident: int, conf: Optional[ConfState]) -> Member:
        drift = self.profile.drift
        random = self._random
        self._clocks[ident] = (random.random() * 100, 1 + drift * (2 * random.random() - 1))
        self._walls[ident] = random.random()
        settings = self.profile.settings
        member = Member(ident, settings, self, Random(random.getrandbits(64)), conf, self._hooks, self._local)
        self.members[ident] = member
        self._start(member, member.life)
        return member

    def add_member(self) -> int:
        """Prepare a new member, with an empty log and no membership."""
        ident = max(self.members) + 1
        self.say(f"m{ident} is made")
        self._make(ident, None)
        return ident

    def _hooks(self, member: Member) -> Hooks:
        life = member.life

        def send(messages: Sequence[Message]) -> None:
            for message in messages:
                self._send(member, life, message)

        def lead() -> None:
            node = member.node
            assert node is not None
            self.say(f"m{member.id} leads term {node.core.term} and is settled")
            if not node.machine.formatted:
                body = Format(CLUSTER, 1)
                data = encode_command(CommandKind.FORMAT, self._wall_ns(member.id), body)
                try:
                    node.propose(data, lambda outcome, error: None)
                except FsError as error:
                    self.later(0.05, self._format_again, member, member.life)
                    self.say(f"format: {error!r}")

        receiver = member.receiver
        assert receiver is not None
        return Hooks(send=send, lead=lead, loaded=receiver.take, installed=receiver.discard)

    def _format_again(self, member: Member, life: int) -> None:
        node = member.node
        if member.life == life and node is not None and node.settled and not node.machine.formatted:
            data = encode_command(CommandKind.FORMAT, self._wall_ns(member.id), Format(CLUSTER, 1))
            with self._guard(member):
                try:
                    node.propose(data, lambda outcome, error: None)
                except FsError:
                    self.later(0.05, self._format_again, member, life)
            self._wake(member)

    def _start(self, member: Member, life: int) -> None:
        if member.life != life or member.gone or member.node is not None:
            return
        try:
            member.start()
        except PowerCut:
            self._down(member, power=True)
            return
        except FsError as error:
            if not member.weak and error.code != Code.NO_SPACE:
                raise Violation("restart", f"{member.id} refuses to start: {error!r}") from error
            if error.code == Code.NO_SPACE:
                member.disk.capacity_bytes = _ROOM
                member.stop()
                self.later(0.1, self._start, member, member.life)
                return
            self.say(f"m{member.id} refuses to start: {error}")
            self._lose(member)
            return
        node = member.node
        assert node is not None
        node.on_work = lambda: self._work(member)
        if member.weak and not node.stable.store.damaged:
            member.weak = False
        if node.stable.store.damaged:  # it tells everybody, again and again until they have heard
            for other in self.members:
                self.later(self._random.random() * 0.5, self._hears_of_loss, other, member.id)
        damage = " damaged" if node.stable.store.damaged else ""
        self.say(f"m{member.id} starts: applied {node.stable.applied} last {node.stable.store.last_index()}{damage}")
        self._tick_later(member)

    def _hears_of_loss(self, ident: int, lost: int) -> None:
        member = self.members[ident]
        if member.up and member.node is not None:
            with self._guard(member):
                member.node.entries_lost(lost)
            self._wake(member)

    def _down(self, member: Member, *, power: bool) -> None:
        """End a life, and begin another some time later."""
        member.stop()
        if power:
            member.disk.crash(self._random)
        else:
            member.disk.kill()
        delay_s = 0.01 if self.healing else self._random.expovariate(1 / self.profile.down_s)
        if self._random.random() < 0.05:
            delay_s *= 8
        self.later(delay_s, self._start, member, member.life)

    def _lose(self, member: Member) -> None:
        """A member and its disk are gone for ever."""
        if member.node is not None:
            member.stop()
        member.life += 1
        member.gone = True
        self._count("lost")

    def _count(self, what: str) -> None:
        self.report.counts[what] = self.report.counts.get(what, 0) + 1

    # --- what a member does -----------------------------------------------------------------------------------

    @contextmanager
    def _guard(self, member: Member) -> Iterator[None]:
        """Run a member's code: its crashes are its own, its defects are violations, and it is looked at afterwards."""
        try:
            yield
        except PowerCut:
            self.say(f"m{member.id} loses power in the middle")
            self._down(member, power=True)
        except FatalDiskError as error:
            self.say(f"m{member.id} ends: {error}")
            self._down(member, power=False)
        except Violation:
            raise
        except LogDamaged as error:
            if not member.weak:
                raise Violation("assertion", f"{member.id}: {error}\n{traceback.format_exc()}") from error
            self.say(f"m{member.id} stops: {error}")
            self._lose(member)
        except FsError as error:
            raise Violation("unexpected error", f"{member.id}: {error!r}\n{traceback.format_exc()}") from error
        except AssertionError as error:
            raise Violation("assertion", f"{member.id}: {error}\n{traceback.format_exc()}") from error
        if member.node is not None:
            self.looked_at(member)

    def looked_at(self, member: Member) -> None:
        """Compare a member with what it was when last seen."""
        node = member.node
        if node is None:
            return
        core, safety = node.core, self.safety
        log = core.log
        safety.rises(member.id, "term", member.term_seen, core.term)
        safety.rises(member.id, "commit", member.commit_seen, log.committed)
        safety.rises(member.id, "applied", member.applied_seen, node.stable.applied)
        member.term_seen, member.applied_seen = core.term, node.stable.applied
        if core.role == 3:
            if safety.leaders.get(core.term) != member.id:
                self._new_leader(member, node)
            else:
                safety.leads(member.id, core.term, safety.top + 1, lambda index: -1)
        if log.committed > member.commit_seen:
            try:
                entries = log.entries(max(member.commit_seen + 1, log.first_index()), log.committed + 1, 1 << 30)
            except Compacted:
                entries = []
            safety.commits(member.id, core.term, core.role == 3, entries)
            member.commit_seen = log.committed
            if entries and core.role == 3 and log.committed > self._counted + 7:
                self._count_disks(member, log.committed, entries[-1].term)
        conf = core.conf
        member.conf_seen = (conf.voters, conf.outgoing)
        if member.weak and not node.stable.store.damaged:
            member.weak = False

    def _new_leader(self, member: Member, node: SimNode) -> None:
        log = node.core.log

        def term_at(index: int) -> int:
            return log.term(index) if index <= log.last else -1

        self.say(f"m{member.id} is elected in term {node.core.term}")
        self.safety.leads(member.id, node.core.term, log.first_index(), term_at)

    def _count_disks(self, member: Member, index: int, term: int) -> None:
        """Look at the disks for a committed entry. The configuration may have changed in the same breath."""
        assert member.node is not None
        self._counted = index
        conf = member.node.core.conf
        groups = [member.conf_seen, (conf.voters, conf.outgoing)]
        ids = {ident for pair in groups for group in pair for ident in group}
        holders = {ident for ident in ids if self.members[ident].holds(index, term)}
        try:
            self.safety.counted(index, holders, groups[0])
        except Violation:
            self.safety.counted(index, holders, groups[1])
        self._count("disks counted")

    def _wake(self, member: Member) -> None:
        """Let a member take a turn soon."""
        if member.id not in self._turning and member.node is not None:
            self._turning.add(member.id)
            self.later(self._random.random() * self.profile.turn_s, self._turn, member, member.life)

    def _turn(self, member: Member, life: int) -> None:
        self._turning.discard(member.id)
        node = member.node
        if member.life != life or node is None or member.paused:
            return
        with self._guard(member):
            node.turn(self._local(member))
        if member.node is node and node.core.has_ready() and node._stuck is None:
            self._wake(member)

    def _tick_later(self, member: Member) -> None:
        node = member.node
        assert node is not None
        offset, rate = self._clocks[member.id]
        due_s = (node.ticker.next_s - offset) / rate
        self.later(max(due_s - self.now, 0.0001), self._tick, member, member.life)

    def _tick(self, member: Member, life: int) -> None:
        if member.life != life or member.node is None:
            return
        if member.paused:
            self.later(0.05, self._tick, member, life)
            return
        self._happens("tick", member.id)
        self._turn(member, life)
        if member.life == life and member.node is not None:
            self._tick_later(member)

    def _work(self, member: Member) -> None:
        """The log worker has something to do."""
        if member.id not in self._working:
            self._working.add(member.id)
            self.later(self._random.random() * self.profile.disk_s, self._write, member, member.life)

    def _write(self, member: Member, life: int) -> None:
        self._working.discard(member.id)
        node = member.node
        if member.life != life or node is None:
            return
        if member.paused or node._stuck is not None:
            self._working.add(member.id)
            self.later(0.02, self._write, member, life)
            return
        due = False
        with self._guard(member):
            due = node.write()
        if due and member.node is node:
            self._working.add(member.id)
            self.later(self._random.random() * self.profile.disk_s, self._sync, member, life)

    def _sync(self, member: Member, life: int) -> None:
        self._working.discard(member.id)
        node = member.node
        if member.life != life or node is None:
            return
        if member.paused:
            self._working.add(member.id)
            self.later(0.02, self._sync, member, life)
            return
        with self._guard(member):
            node.sync()
        if member.node is node:
            if node.work:
                self._work(member)
            self._wake(member)

    # --- messages ---------------------------------------------------------------------------------------------

    def _send(self, member: Member, life: int, message: Message) -> None:
        self.safety.sends(member.id, message)
        if self._say is not None:
            self.say(f"m{member.id} -> m{message.to} {_show(message)}")
        if message.kind == Kind.SNAPSHOT:
            self._stream(member, life, message)
        elif not self.network.post(member.id, message.to, self._deliver, message):
            if message.kind == Kind.APPEND and member.node is not None and self._random.random() < 0.3:
                member.node.unreachable(message.to)

    def _deliver(self, message: Message) -> None:
        member = self.members.get(message.to)
        if member is None or member.node is None:
            return
        if member.paused:
            if len(member.inbox) < 1000:
                member.inbox.append((self._deliver, (message,)))
            return
        self._happens(message.kind, message.sender, message.to, message.term, message.index)
        if not member.may_step(message):
            return
        with self._guard(member):
            member.node.step(message)
        self._wake(member)

    def _stream(self, member: Member, life: int, message: Message) -> None:
        key = (member.id, life, message.to)
        under_way = self._streams.get(key)
        if under_way is not None and not under_way.ended:
            return

        def peer() -> Optional[_End]:
            other = self.members.get(message.to)
            return _End(self, other) if other is not None and other.up else None

        def current() -> bool:
            return member.life == life and member.node is not None and member.node.leads(message.term)

        meta, view = member.view()
        self._count("streams")
        nonce = self._random.randbytes(16)
        self._streams[key] = Stream(
            self.network, _End(self, member), life, peer, current, message, meta, view, nonce
        )

    def snapshot_request(self, member: Member, request: msgspec.Struct, data: bytes) -> SnapshotPosition:
        self._happens("snapshot", member.id)
        answer: Optional[SnapshotPosition] = None
        refused: Optional[FsError] = None
        with self._guard(member):
            try:
                answer = member.snapshot_request(request, data)
            except FsError as error:
                refused = error
        if refused is not None or answer is None:
            raise refused or FsError(Code.UNREACHABLE, "it crashed")
        return answer

    def snapshot_sent(self, member: Member, life: int, to: int, ok: bool, install: Optional[Message]) -> None:
        if member.life != life or member.node is None:
            return
        self.say(f"m{member.id} has streamed a snapshot to m{to}: {ok} {install.snapshot if install else None}")
        if install is not None:
            self.network.post(member.id, to, self._deliver, install)
        with self._guard(member):
            member.node.snapshot_sent(to, ok)
        self._wake(member)

    # --- what clients ask -------------------------------------------------------------------------------------

    def members_to_ask(self) -> list[int]:
        return [ident for ident, member in self.members.items() if not member.gone]

    def mutate(
        self, client: int, member: int, kind: CommandKind, body: msgspec.Struct,
        answer: Callable[[msgspec.Struct | FsError], None],
    ) -> None:
        self.network.post(client, member, self._asked, client, member, kind, body, answer)

    def _asked(
        self, client: int, ident: int, kind: CommandKind, body: msgspec.Struct,
        answer: Callable[[msgspec.Struct | FsError], None],
    ) -> None:
        member = self.members[ident]
        node = member.node
        if node is None:
            if self._random.random() < 0.5:
                self.network.post(ident, client, answer, FsError(Code.UNREACHABLE, ""))
            return
        if member.paused:
            member.inbox.append((self._asked, (client, ident, kind, body, answer)))
            return
        self._happens("submit", client, ident)

        def done(outcome: Optional[Outcome], error: Optional[FsError]) -> None:
            reply = error if outcome is None else outcome.reply
            assert reply is not None
            self.network.post(ident, client, answer, reply)

        with self._guard(member):
            try:
                if not node.machine.formatted:
                    raise FsError(Code.RETRY, "not formatted")
                if node.full:
                    raise FsError(Code.NO_SPACE, "full")
                node.propose(encode_command(kind, self._wall_ns(ident), body), done)
            except FsError as error:
                done(None, error)
        self._wake(member)

    def query(
        self, client: int, member: int, queries: tuple[Query, ...],
        answer: Callable[[tuple[Result, ...] | FsError], None],
    ) -> None:
        self.network.post(client, member, self._queried, client, member, queries, answer)

    def _queried(
        self, client: int, ident: int, queries: tuple[Query, ...],
        answer: Callable[[tuple[Result, ...] | FsError], None],
    ) -> None:
        member = self.members[ident]
        node = member.node
        if node is None:
            return
        if member.paused:
            member.inbox.append((self._queried, (client, ident, queries, answer)))
            return
        self._happens("read", client, ident)
        served: SimNode = node

        def done(error: Optional[FsError]) -> None:
            reply = error if error is not None else served.machine.query(queries)
            self.network.post(ident, client, answer, reply)

        with self._guard(member):
            try:
                if node.readable_now:
                    done(None)
                elif node.role == 3:
                    node.read(done)
                else:
                    node.read_here(done)
            except FsError as error:
                done(error)
        self._wake(member)

    # --- trouble ----------------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        if self.healing:
            return
        faults = self.profile.faults
        names = [name for name, weight in faults.items() if weight]
        if names:
            name = self._random.choices(names, [faults[name] for name in names])[0]
            if getattr(self, f"_fault_{name}")():
                self._happens("fault", name)
                self.report.faults[name] = self.report.faults.get(name, 0) + 1
                self.say(f"*** {name}")
        self.later(self._random.expovariate(1 / self.profile.fault_s), self._trouble)

    def _any(self, *, up: bool = True) -> Optional[Member]:
        found = [member for member in self.members.values() if not member.gone and (not up or member.node is not None)]
        leaders = [member for member in found if member.leads]
        if leaders and self._random.random() < 0.35:
            found = leaders
        return self._random.choice(found) if found else None

    def _fault_kill(self) -> bool:
        member = self._any()
        if member is not None:
            self.say(f"m{member.id} is killed")
            self._down(member, power=False)
        return member is not None

    def _fault_power(self) -> bool:
        member = self._any()
        if member is not None:
            self.say(f"m{member.id} loses power")
            self._down(member, power=True)
        return member is not None

    def _fault_power_all(self) -> bool:
        if self._random.random() < 0.7:
            return False
        for member in list(self.members.values()):
            if member.node is not None and self._random.random() < 0.9:
                self._down(member, power=True)
        return True

    def _fault_cut(self) -> bool:
        member = self._any()
        if member is not None:
            member.disk.cut_at = member.disk.operations + self._random.randrange(1, 25)
        return member is not None

    def _fault_sync(self) -> bool:
        member = self._any()
        if member is not None:
            member.disk.fail_sync_at = member.disk.syncs + self._random.randrange(1, 10)
        return member is not None

    def _fault_full(self) -> bool:
        member = self._any()
        if member is None:
            return False
        spare = 0 if self._random.random() < 0.5 else LOG_RESERVE_BYTES
        member.disk.capacity_bytes = member.disk.used_bytes() - spare + self._random.randrange(3000)
        self.later(self._random.random(), self._room, member)
        return True

    @staticmethod
    def _room(member: Member) -> None:
        member.disk.capacity_bytes = _ROOM

    def _fault_pause(self) -> bool:
        member = self._any()
        if member is None or member.paused:
            return False
        member.paused = True
        self.later(self._random.random() * 2, self._resume, member, member.life)
        return True

    def _resume(self, member: Member, life: int) -> None:
        if member.life != life or not member.paused:
            return
        member.paused = False
        waiting, member.inbox = member.inbox, []
        self._turn(member, life)  # a woken process may look at its clock before its sockets
        for action, args in waiting:
            action(*args)

    def _fault_jump(self) -> bool:
        member = self._any()
        if member is None:
            return False
        offset, rate = self._clocks[member.id]
        self._clocks[member.id] = (offset + self._random.choice((0.1, 1.0, 60.0)), rate)
        return True

    def _fault_wall(self) -> bool:
        self._walls[self._random.choice(list(self._walls))] += self._random.choice((-3600.0, -1.0, 1.0, 3600.0))
        return True

    def _fault_partition(self) -> bool:
        if self.healing:
            return False  # it was to come a little after something else
        members = [ident for ident, member in self.members.items() if not member.gone]
        if len(members) < 2:
            return False
        if self._random.random() < 0.7:
            self.network.heal()
        leader = next((ident for ident in members if self.members[ident].leads), 0)
        self.say(f"partition: {partition(self.network, self._random, members, leader)}")
        return True

    def _fault_heal(self) -> bool:
        self.network.heal()
        return True

    def _fault_weather(self) -> bool:
        random, usual = self._random, self.profile.weather
        self.network.weather = replace(usual, loss=random.choice((usual.loss, 0.0, 0.5)), slow=random.choice((0, 0.3)))
        return True

    def _fault_flip(self) -> bool:
        member = self._any()
        if member is None or not self._can_spare(member):
            return False
        self._down(member, power=self._random.random() < 0.5)
        if not member.disk.flip_vouched(self._random):
            return False
        member.weak = True
        return True

    def _fault_lose(self) -> bool:
        if self._random.random() < 0.6:
            return False
        member = self._any()
        if member is None or not self._can_spare(member):
            return False
        self._lose(member)
        return True

    def _can_spare(self, candidate: Member) -> bool:
        """Whether the group, in every configuration that may come, bears that one more disk loses data."""
        confs = []
        for member in self.members.values():
            if member.gone:
                continue
            if member.weak or member.node is None:
                return False
            log = member.node.core.log
            try:
                coming = log.entries(log.applied + 1, log.last + 1, 1 << 30)
            except Compacted:
                return False
            if log.snapshot is not None or any(entry.kind == EntryKind.CONF for entry in coming):
                return False
            confs.append(member.node.core.conf)
        gone = {member.id for member in self.members.values() if member.gone} | {candidate.id}
        return all(
            not conf.outgoing and len(conf.voters & gone) * 2 < len(conf.voters) for conf in confs if conf.voters
        )

    def _fault_member(self) -> bool:
        return self._operate()

    def _operate(self) -> bool:
        for member in list(self.members.values()):
            if member.up and member.leads:
                node = member.node
                assert node is not None
                asked: Optional[str] = None
                with self._guard(member):
                    asked = self.operator.act(node)
                self._wake(member)
                if asked is not None:
                    self.say(f"m{member.id} is asked for {asked}")
                    if not self.healing and self._random.random() < self.profile.change_cut:
                        self.later(self._random.random() * 0.1, self._fault_partition)
                    return True
        return False

    def _fault_transfer(self) -> bool:
        member = self._any()
        if member is None or member.node is None or member.paused:
            return False
        with self._guard(member):
            member.node.core.transfer_leader(self._random.choice(list(self.members)))
        self._wake(member)
        return True

    def _fault_campaign(self) -> bool:
        member = self._any()
        if member is None or member.node is None or member.paused:
            return False
        with self._guard(member):
            member.node.core.campaign()
        self._wake(member)
        return True

    def _fault_forget(self) -> bool:
        """A connection breaks, with or without reason."""
        member = self._any()
        if member is None or member.node is None or member.paused:
            return False
        with self._guard(member):
            member.node.peer_lost(member.node.leader)
        self._wake(member)
        return True

    # --- the run ----------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Play the whole schedule. Raises Violation."""
        with _quiet(self.say if self._say is not None else None):
            for client in self.clients:
                self.later(self._random.random() * 0.3, client.start)
            self.later(1.0 + self.profile.fault_s, self._trouble)
            while self.report.events < self.profile.events:
                self._next()
            self._heal()
            self._settle("after healing")
            self._power_cycle()
            self._settle("after the last loss of power")
            self._verify()
        report = self.report
        report.simulated_s = self.now
        report.terms = len(self.safety.leaders)
        report.committed = self.safety.top
        report.mutations, report.reads = self.facts.mutations, self.facts.reads
        report.counts["repeats"] = self.facts.repeats
        report.counts["changes"] = self.operator.applied
        report.fingerprint = self._fingerprint
        return report

    def _heal(self) -> None:
        self.say("*** everything heals")
        self.healing = True
        self.network.heal()
        self.network.weather = Weather()
        self.profile = replace(self.profile, turn_s=0.001, disk_s=min(self.profile.disk_s, 0.005))
        for ident, member in self.members.items():
            member.disk.capacity_bytes = _ROOM
            member.disk.cut_at = member.disk.fail_sync_at = None
            self._clocks[ident] = (self._local(member) - self.now, 1.0)
            if member.paused:
                self._resume(member, member.life)
            self._start(member, member.life)

    def _settle(self, when: str) -> None:
        """The liveness phase: clients finish what they began, members agree."""
        began_s, events = self.now, self.report.events
        for client in self.clients:
            client.active = False
        while not self._settled():
            require(
                self.now - began_s < HEAL_S and self.report.events - events < _HEAL_EVENTS, "liveness",
                f"{when}: {self._why()}",
            )  # fmt: skip
            checked = self.now + 0.1
            while self.now < checked:
                self._next()
            self._operate_joint()
        self.report.heal_s = max(self.report.heal_s, self.now - began_s)

    def _operate_joint(self) -> None:
        if any(member.leads and member.node is not None and member.node.core.conf.joint
               for member in self.members.values()):
            self._operate()

    def _leader(self) -> Optional[Member]:
        settled = [member for member in self.members.values() if member.node is not None and member.node.settled]
        return max(settled, key=lambda member: member.node.core.term if member.node else 0) if settled else None

    def _settled(self) -> bool:
        if any(client.pending for client in self.clients):
            return False
        leader = self._leader()
        if leader is None or leader.node is None or leader.node.core.conf.joint:
            return False
        log = leader.node.core.log
        for ident in leader.node.core.conf.members():
            member = self.members[ident]
            if not member.gone and (member.node is None or member.node.stable.applied < log.last):
                return False
        return True

    def _why(self) -> str:
        lines = [f"{sum(len(client.pending) for client in self.clients)} requests wait"]
        for member in self.members.values():
            node = member.node
            if node is None:
                lines.append(f"  m{member.id} gone={member.gone} weak={member.weak}")
                continue
            core = node.core
            lines.append(
                f"  m{member.id} {core.role.name} term {core.term} lead {core.leader} commit {core.log.committed} "
                f"last {core.log.last} applied {node.stable.applied} damaged={node.stable.store.damaged} "
                f"stuck={node._stuck is not None} {core.conf} progress "
                f"{ {ident: (p.state, p.match, p.next, p.paused) for ident, p in core.status().progress.items()} }"
            )
        return "\n".join(lines)

    def _power_cycle(self) -> None:
        self.say("*** everybody loses power")
        for member in self.members.values():
            if member.node is not None:
                self._down(member, power=True)
        for _ in range(5):
            self._next()

    def _verify(self) -> None:
        """Every client finds what it was promised, and the members are equal."""
        leader = self._leader()
        assert leader is not None
        left = [*self.facts.registers.values()]
        sizes: list[int] = []
        client = self.clients[0]

        def told(register: Register, ok: bool) -> None:
            if ok and register in left:
                left.remove(register)

        began_s = self.now
        while left or (self.facts.shared_ino and not sizes):
            require(self.now - began_s < HEAL_S, "liveness", "the last reads are not answered")
            for register in left:
                client.read_name(register, leader.id, partial(told, register))
            if self.facts.shared_ino and not sizes:
                client.read_counter(leader.id, lambda size: sizes.append(size) if size >= 0 else None)
            until = self.now + 0.5
            while self.now < until:
                self._next()
            leader = self._leader() or leader
        if sizes:
            self.facts.counter.settled(sizes[0])
        for member in self.members.values():
            if member.node is not None:
                self.safety.state(member.id, member.node.stable.applied, member.digest())


class _End:
    """A member as a stream of a snapshot sees it."""

    def __init__(self, world: World, member: Member) -> None:
        self.id = member.id
        self._world = world
        self._member = member

    def snapshot_request(self, request: msgspec.Struct, data: bytes) -> SnapshotPosition:
        return self._world.snapshot_request(self._member, request, data)

    def snapshot_sent(self, life: int, peer: int, ok: bool, install: Optional[Message]) -> None:
        self._world.snapshot_sent(self._member, life, peer, ok, install)


def _show(message: Message) -> str:
    parts = [f"{Kind(message.kind).name} t{message.term}"]
    for name in ("index", "log_term", "commit", "reject", "hint_index", "hint_term", "session", "context", "force"):
        value = getattr(message, name)
        if value:
            parts.append(f"{name}={value}")
    if message.entries:
        parts.append(f"entries={message.entries[0].index}..{message.entries[-1].index}")
    if message.snapshot is not None:
        parts.append(f"snapshot={message.snapshot.index}")
    return " ".join(parts)


def simulate(
    seed: int, *, members: int = 0, events: int = EVENTS, profile: Optional[Profile] = None,
    say: Optional[Callable[[str], None]] = None,
) -> Report:
    """Play one seed. Raises Violation, whose message ends with how to play it again."""
    try:
        return World(seed, profile or draw(seed, members, events), say).run()
    except Violation as violation:
        again = f"python -m tests.sim --seed {seed} --events {events}" + (f" --members {members}" if members else "")
        violation.args = (f"{violation.args[0]}\n  seed {seed}; play it again: {again}",)
        raise
