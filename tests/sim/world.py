"""A group of members on a fake clock, network and disk, in one thread, and everything they do looked at."""

from __future__ import annotations

import heapq
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any, Optional

import msgspec

import metadata.server.node
import metadata.server.snapshots
import metadata.server.stable
from metadata.raft.core import Role
from metadata.raft.log import LogDamaged
from metadata.raft.messages import ConfState, Kind, Message
from metadata.raft.storage import Compacted
from metadata.server.node import Hooks
from metadata.server.wire import SnapshotPosition
from metadata.state.command import CommandKind, Format, encode_command
from metadata.store.disk import FatalDiskError
from node.wire.errors import Code, FsError
from tests.sim.checkers import Safety, Violation
from tests.sim.disk import PowerCut
from tests.sim.member import CLUSTER, Member, SimNode
from tests.sim.network import Network, Stream
from tests.sim.profile import Profile, Report

ROOM = 1 << 40
LEADER = Role.LEADER


class _Quiet:
    """A logger that says nothing, or says it into the trace."""

    def __init__(self, say: Optional[Callable[[str], None]]) -> None:
        self._say = say

    def _log(self, event: str, **fields: object) -> None:
        if self._say is not None:
            self._say(f"    {event} {fields}")

    debug = info = warning = error = exception = _log


@contextmanager
def quiet(say: Optional[Callable[[str], None]]) -> Iterator[None]:
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
    """The members. ``say`` is told everything that happens, where it is given."""

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
        self.fingerprint = 0
        self.random = Random(seed)
        self.network = Network(self, Random(self.random.getrandbits(64)), replace(profile.weather))
        founders = ConfState(tuple(range(1, profile.members + 1)))
        self.members: dict[int, Member] = {}
        self.clocks: dict[int, tuple[float, float]] = {}  # local = offset + rate * now
        self.walls: dict[int, float] = {}
        self._turning: set[int] = set()
        self._working: set[int] = set()
        self._streams: dict[tuple[int, int, int], Stream] = {}
        self._counted = 0
        for ident in founders.voters:
            self._make(ident, founders)

    # --- time -------------------------------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._numbers, action, args))

    def step(self) -> None:
        self.now, _, action, args = heapq.heappop(self._queue)
        action(*args)

    def say(self, text: str) -> None:
        if self._say is not None:
            self._say(f"{self.now:9.4f} {text}")

    def leader(self) -> int:
        """A member that believes to lead, 0 where there is none."""
        return next((ident for ident, member in self.members.items() if member.leads), 0)

    def happens(self, *what: object) -> None:
        """Count an event."""
        self.report.events += 1
        self.fingerprint = zlib.crc32(repr((round(self.now, 6), what)).encode(), self.fingerprint)

    def local(self, member: Member) -> float:
        offset, rate = self.clocks[member.id]
        return offset + rate * self.now

    def wall_ns(self, member: int) -> int:
        return int((1_700_000_000 + self.now + self.walls[member]) * 1e9)

    # --- members ----------------------------------------------------------------------------------------------

    def _make(self, ident: int, conf: Optional[ConfState]) -> Member:
        drift = self.profile.drift
        random = self.random
        self.clocks[ident] = (random.random() * 100, 1 + drift * (2 * random.random() - 1))
        self.walls[ident] = random.random()
        settings = self.profile.settings
        member = Member(ident, settings, self, Random(random.getrandbits(64)), conf, self._hooks, self.local)
        self.members[ident] = member
        self.start(member, member.life)
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
                data = encode_command(CommandKind.FORMAT, self.wall_ns(member.id), body)
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
            data = encode_command(CommandKind.FORMAT, self.wall_ns(member.id), Format(CLUSTER, 1))
            with self.guard(member):
                try:
                    node.propose(data, lambda outcome, error: None)
                except FsError:
                    self.later(0.05, self._format_again, member, life)
            self.wake(member)

    def start(self, member: Member, life: int) -> None:
        if member.life != life or member.gone or member.node is not None:
            return
        try:
            member.start()
        except PowerCut:
            self.down(member, power=True)
            return
        except FsError as error:
            if not member.weak and error.code != Code.NO_SPACE:
                raise Violation("restart", f"{member.id} refuses to start: {error!r}") from error
            if error.code == Code.NO_SPACE:
                member.disk.capacity_bytes = ROOM
                member.stop()
                self.later(0.1, self.start, member, member.life)
                return
            self.say(f"m{member.id} refuses to start: {error}")
            self.lose(member)
            return
        node = member.running()
        node.on_work = lambda: self._work(member)
        if member.weak and not node.stable.store.damaged:
            member.weak = False
        if node.stable.store.damaged:  # it tells everybody, again and again until they have heard
            for other in self.members:
                self.later(self.random.random() * 0.5, self._hears_of_loss, other, member.id)
        damage = " damaged" if node.stable.store.damaged else ""
        self.say(f"m{member.id} starts: applied {node.stable.applied} last {node.stable.store.last_index()}{damage}")
        self._tick_later(member)

    def _hears_of_loss(self, ident: int, lost: int) -> None:
        member = self.members[ident]
        if member.up and member.node is not None:
            with self.guard(member):
                member.node.entries_lost(lost)
            self.wake(member)

    def down(self, member: Member, *, power: bool) -> None:
        """End a life, and begin another some time later."""
        member.stop()
        if power:
            member.disk.crash(self.random)
        else:
            member.disk.kill()
        delay_s = 0.01 if self.healing else self.random.expovariate(1 / self.profile.down_s)
        if self.random.random() < 0.05:
            delay_s *= 8
        self.later(delay_s, self.start, member, member.life)

    def lose(self, member: Member) -> None:
        """A member and its disk are gone for ever."""
        if member.node is not None:
            member.stop()
        member.life += 1
        member.gone = True
        self.count("lost")

    def count(self, what: str) -> None:
        self.report.counts[what] = self.report.counts.get(what, 0) + 1

    # --- what a member does -----------------------------------------------------------------------------------

    @contextmanager
    def guard(self, member: Member) -> Iterator[None]:
        """Run a member's code: its crashes are its own, its defects are violations, and it is looked at afterwards."""
        try:
            yield
        except PowerCut:
            self.say(f"m{member.id} loses power in the middle")
            self.down(member, power=True)
        except FatalDiskError as error:
            self.say(f"m{member.id} ends: {error}")
            self.down(member, power=False)
        except Violation:
            raise
        except LogDamaged as error:
            if not member.weak:
                raise Violation("assertion", f"{member.id}: {error}\n{traceback.format_exc()}") from error
            self.say(f"m{member.id} stops: {error}")
            self.lose(member)
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
        if core.role == LEADER:
            if safety.leaders.get(core.term) != member.id:
                self._new_leader(member, node)
            else:
                safety.leads(member.id, core.term, safety.top + 1, lambda index: -1)
        if log.committed > member.commit_seen:
            try:
                entries = log.entries(max(member.commit_seen + 1, log.first_index()), log.committed + 1, 1 << 30)
            except Compacted:
                entries = []
            safety.commits(member.id, core.term, core.role == LEADER, entries)
            member.commit_seen = log.committed
            if entries and core.role == LEADER and log.committed > self._counted + 7:
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
        self.count("disks counted")

    def wake(self, member: Member) -> None:
        """Let a member take a turn soon."""
        if member.id not in self._turning and member.node is not None:
            self._turning.add(member.id)
            self.later(self.random.random() * self.profile.turn_s, self.turn, member, member.life)

    def turn(self, member: Member, life: int) -> None:
        self._turning.discard(member.id)
        node = member.node
        if member.life != life or node is None or member.paused:
            return
        with self.guard(member):
            node.turn(self.local(member))
        if member.node is node and node.core.has_ready() and node._stuck is None:
            self.wake(member)

    def _tick_later(self, member: Member) -> None:
        node = member.node
        assert node is not None
        offset, rate = self.clocks[member.id]
        due_s = (node.ticker.next_s - offset) / rate
        self.later(max(due_s - self.now, 0.0001), self._tick, member, member.life)

    def _tick(self, member: Member, life: int) -> None:
        if member.life != life or member.node is None:
            return
        if member.paused:
            self.later(0.05, self._tick, member, life)
            return
        self.happens("tick", member.id)
        self.turn(member, life)
        if member.life == life and member.node is not None:
            self._tick_later(member)

    def _work(self, member: Member) -> None:
        """The log worker has something to do."""
        if member.id not in self._working:
            self._working.add(member.id)
            self.later(self.random.random() * self.profile.disk_s, self._write, member, member.life)

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
        with self.guard(member):
            due = node.write()
        if due and member.node is node:
            self._working.add(member.id)
            self.later(self.random.random() * self.profile.disk_s, self._sync, member, life)

    def _sync(self, member: Member, life: int) -> None:
        self._working.discard(member.id)
        node = member.node
        if member.life != life or node is None:
            return
        if member.paused:
            self._working.add(member.id)
            self.later(0.02, self._sync, member, life)
            return
        with self.guard(member):
            node.sync()
        if member.node is node:
            if node.work:
                self._work(member)
            self.wake(member)

    # --- messages ---------------------------------------------------------------------------------------------

    def _send(self, member: Member, life: int, message: Message) -> None:
        self.safety.sends(member.id, message)
        if self._say is not None:
            self.say(f"m{member.id} -> m{message.to} {_show(message)}")
        if message.kind == Kind.SNAPSHOT:
            self._stream(member, life, message)
        elif not self.network.post(member.id, message.to, self._deliver, message):
            if message.kind == Kind.APPEND and member.node is not None and self.random.random() < 0.3:
                member.node.unreachable(message.to)

    def _deliver(self, message: Message) -> None:
        member = self.members.get(message.to)
        if member is None or member.node is None:
            return
        if member.paused:
            if len(member.inbox) < 1000:
                member.inbox.append((self._deliver, (message,)))
            return
        self.happens(message.kind, message.sender, message.to, message.term, message.index)
        if not member.may_step(message):
            return
        with self.guard(member):
            member.node.step(message)
        self.wake(member)

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
        self.count("streams")
        nonce = self.random.randbytes(16)
        self._streams[key] = Stream(
            self.network, _End(self, member), life, peer, current, message, meta, view, nonce
        )

    def snapshot_request(self, member: Member, request: msgspec.Struct, data: bytes) -> SnapshotPosition:
        self.happens("snapshot", member.id)
        answer: Optional[SnapshotPosition] = None
        refused: Optional[FsError] = None
        with self.guard(member):
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
        with self.guard(member):
            member.node.snapshot_sent(to, ok)
        self.wake(member)


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
