"""One member in the simulator: production core, log store, state machine and Ready loop on a fake clock and disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, Optional, Protocol, cast

import blake3
import msgspec

from metadata.raft.core import Config, RawNode, ReadMode, ReadState, Ready, Role, StorageAppend
from metadata.raft.messages import ConfState, Entry, HardState, Kind, Message, SnapshotMeta
from metadata.server.node import Hooks, Node
from metadata.server.snapshots import Receiver, wanted
from metadata.server.stable import Stable
from metadata.server.wire import OfferSnapshot, SnapshotPosition
from metadata.state.keys import APPLIED_KEY
from metadata.state.machine import Machine, Outcome
from metadata.state.records import decode_applied
from metadata.state.tables import SnapshotView
from metadata.store.engine_memory import MemoryEngine
from metadata.store.log import LogStore
from metadata.store.replay import replay
from metadata.store.scan import segment_numbers, segment_path, stable_end
from node.wire.errors import FsError
from node.wire.limits import READ_ROUNDS_MAX
from tests.sim.checkers import Safety
from tests.sim.disk import FaultDisk, PowerCut, _Directory, _Node

CLUSTER = bytes(range(16))
LOG = "/log"
_FOREIGN = 1 << 40  # numbers of reads that followers ask, apart from the node's own
_encode = msgspec.msgpack.Encoder().encode


class SimDisk(FaultDisk):
    """A FaultDisk that can also lose its process only, and can be looked at as the medium has it."""

    def kill(self) -> None:
        """The process dies: files close, locks go, what was written stays visible and unsynced."""
        self.life += 1
        self.cut_at = self.fail_sync_at = None
        self._locks.clear()

    def medium(self) -> FaultDisk:
        """A disk that shows what would surely be left after a loss of power. Only to be read."""
        view = FaultDisk()
        view._directories = {
            path: _Directory(shown={name: _Node(node.durable, node.durable) for name, node in held.durable.items()})
            for path, held in self._directories.items()
        }
        return view

    def flip_vouched(self, random: Random) -> bool:
        """Flip one bit that some later record vouches for. False where there is none."""
        numbers = segment_numbers(self, LOG)
        random.shuffle(numbers)
        for number in numbers:
            path = segment_path(LOG, number)
            end = stable_end(memoryview(self.read(path)), number)
            if end > 64:
                self.flip(path, random.randrange(48, end), random.randrange(8))
                return True
        return False


class SimEngine(MemoryEngine):
    """A MemoryEngine on which the power may fail at a commit."""

    def __init__(self, disk: SimDisk) -> None:
        super().__init__()
        self._disk = disk

    def commit(self) -> None:
        cut = self._disk.step()
        if not cut or self._disk.random.random() < 0.5:
            super().commit()
        if cut:
            raise PowerCut

    def crash(self) -> None:
        super().crash()
        self._loaded = (0, {})


class Watcher(Protocol):
    """Who is told what a member does."""

    safety: Safety

    def looked_at(self, member: Member) -> None: ...


class WatchedStable(Stable):
    """Stable, and everything that reaches it is checked."""

    owner: Member

    def append(self, hard: Optional[HardState], entries: Sequence[Entry], must_sync: bool) -> None:
        safety = self.owner.watcher.safety
        if entries and entries[0].index >= self.store.first_index():
            safety.writes(self.owner.id, self.store.term(entries[0].index - 1), entries)
        super().append(hard, entries, must_sync)
        if must_sync:
            safety.synced(self.owner.id, self.store.initial_state()[0])

    def commit(self) -> None:
        super().commit()
        self.owner.watcher.safety.state(self.owner.id, self.applied, self.owner.digest())


class WatchedMachine(Machine):
    """Machine, and every outcome is checked."""

    owner: Member

    def apply(self, index: int, term: int, data: bytes) -> Outcome:
        owner = self.owner
        owner.watcher.looked_at(owner)
        outcome = super().apply(index, term, data)
        reply = outcome.reply
        said = repr(reply).encode() if isinstance(reply, FsError) else _encode(reply)
        seen = blake3.blake3(said + repr((outcome.freed, outcome.ended, outcome.touched)).encode()).digest()
        owner.watcher.safety.applies(owner.id, index, term, data, seen)
        return outcome


class SimNode(Node):
    """Node, with reads at followers; and, with ``worker``, a log worker that writes now and syncs later, while the
    loop goes on, as the core's manual allows."""

    worker = False
    on_work: Callable[[], None]

    def begin(self) -> None:
        self.work: list[StorageAppend] = []
        self._written: list[StorageAppend] = []
        self._foreign: dict[int, Callable[[Optional[FsError]], None]] = {}
        self._ready_reads: list[tuple[int, Callable[[Optional[FsError]], None]]] = []
        self._numbers = _FOREIGN

    # --- the log worker ---------------------------------------------------------------------------------------

    def _append(self, work: StorageAppend) -> None:
        if not self.worker:
            super()._append(work)
            return
        self.work.append(work)
        self.on_work()

    def write(self) -> bool:
        """Write what waits, without syncing. Returns whether there is something to sync."""
        if self._stuck is None and not self._written:
            self._written, self.work = self.work, []
            for work in self._written:
                if work.snapshot is not None:
                    self._install(work.snapshot)
                self.stable.append(work.hard_state, work.entries, False)
        return bool(self._written)

    def sync(self) -> None:
        """Make durable what was written, then deliver."""
        written, self._written = self._written, []
        responses = [message for work in written for message in work.responses]
        super()._append(StorageAppend([], None, None, responses, any(work.must_sync for work in written)))

    # --- reads at followers -----------------------------------------------------------------------------------

    def read_here(self, done: Callable[[Optional[FsError]], None]) -> None:
        """Read at whatever member this is, by asking the leader for the index."""
        self._numbers += 1
        self._foreign[self._numbers] = done
        if not self.core.read_index(self._numbers):
            del self._foreign[self._numbers]
            raise self.not_leader()
        self.wake()

    def _handle(self, ready: Ready) -> None:
        own: list[ReadState] = []
        for state in ready.read_states:
            done = self._foreign.pop(state.context, None)
            if done is not None:
                self._ready_reads.append((state.index, done))
            elif state.context < _FOREIGN:
                own.append(state)
        ready.read_states = own
        super()._handle(ready)
        if self._ready_reads:
            applied = self.stable.applied
            due = [done for index, done in self._ready_reads if index <= applied]
            self._ready_reads = [(index, done) for index, done in self._ready_reads if index > applied]
            for done in due:
                done(None)


@dataclass
class Settings:
    """How all members of a run are made."""

    election_ticks: int = 5
    heartbeat_ticks: int = 1
    max_message_bytes: int = 1 << 20
    max_inflight_messages: int = 256
    pre_vote: bool = True
    check_quorum: bool = True
    lease: bool = False
    coalesce: bool = True
    worker: bool = False
    commit_entries: int = 32
    commit_s: float = 0.5
    trailing: int = 20
    segment_bytes: int = 16384


class Member:
    """A member through all its lives."""

    def __init__(
        self, ident: int, settings: Settings, watcher: Watcher, random: Random, conf: Optional[ConfState],
        hooks: Callable[[Member], Hooks], clock: Callable[[Member], float],
    ) -> None:
        self.id = ident
        self.watcher = watcher
        self.disk = SimDisk()
        self.disk.random = Random(random.getrandbits(32))
        self.engine = SimEngine(self.disk)
        self.node: Optional[SimNode] = None
        self.receiver: Optional[Receiver] = None
        self.life = 0
        self.gone = False  # lost for ever
        self.weak = False  # its disk has lost what was acknowledged, and it knows
        self.paused = False
        self.inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []  # while it is paused
        self.commit_seen = self.applied_seen = 0
        self.term_seen = 0
        self.conf_seen: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
        self._settings = settings
        self._random = random
        self._hooks = hooks
        self._clock = clock
        LogStore.create(self.disk, LOG, cluster_id=CLUSTER, conf=conf)

    def running(self) -> SimNode:
        """Its node, of a member that has one."""
        assert self.node is not None
        return self.node

    @property
    def up(self) -> bool:
        return self.node is not None and not self.paused

    def start(self) -> None:
        """Begin a life. Raises what a process that refuses to start would."""
        assert self.node is None and not self.gone
        settings = self._settings
        store = LogStore.open(
            self.disk, LOG, cluster_id=CLUSTER, sole_voter=False, segment_bytes=settings.segment_bytes,
            cache_bytes=4096,
        )
        stable = WatchedStable(
            store, self.engine, commit_entries=settings.commit_entries, commit_s=settings.commit_s,
            trailing=settings.trailing,
        )
        stable.owner = self
        machine = WatchedMachine(self.engine)
        machine.owner = self
        config = Config(
            self.id, applied=stable.applied, async_storage=True, forward_proposals=False,
            election_ticks=settings.election_ticks, heartbeat_ticks=settings.heartbeat_ticks,
            max_message_bytes=settings.max_message_bytes, max_inflight_messages=settings.max_inflight_messages,
            max_inflight_bytes=0, pre_vote=settings.pre_vote, check_quorum=settings.check_quorum,
            read_mode=ReadMode.LEASE if settings.lease else ReadMode.READ_INDEX, coalesce=settings.coalesce,
            read_rounds=READ_ROUNDS_MAX,
        )
        core = RawNode(config, store, self._random.randrange)
        self.receiver = Receiver(
            self.disk, "/spool", wants=lambda meta: wanted(core.log, meta), load=self.engine.load
        )
        node = SimNode(core, stable, machine, self._hooks(self), clock=lambda: self._clock(self))
        node.worker = settings.worker
        node.begin()
        if not self.weak:
            self.watcher.safety.restarts(self.id, store.initial_state()[0])
        self.node = node
        self.commit_seen, self.applied_seen, self.term_seen = core.log.committed, stable.applied, core.term
        self.watcher.looked_at(self)

    def stop(self) -> None:
        """End the life; the caller has decided what becomes of the disk."""
        self.life += 1
        self.node = self.receiver = None
        self.paused = False
        self.inbox.clear()
        self.engine.crash()

    def digest(self) -> bytes:
        assert self.node is not None
        return self.node.machine.digest()

    # --- snapshots --------------------------------------------------------------------------------------------

    def view(self) -> tuple[SnapshotMeta, SnapshotView]:
        assert self.node is not None
        with self.node.stable.view() as (meta, view):
            return meta, view

    def snapshot_request(self, request: msgspec.Struct, data: bytes) -> SnapshotPosition:
        receiver = self.receiver
        assert receiver is not None
        answers: list[SnapshotPosition] = []
        call = cast(Any, SimpleNamespace(request=request, data=[data], reply=answers.append))
        if isinstance(request, OfferSnapshot):
            receiver.offer(call)
        else:
            receiver.piece(call)
        self._load(receiver)
        return answers[0]

    @staticmethod
    def _load(receiver: Receiver) -> None:
        """What the receiver's own task would do, in a thread."""
        spool = receiver._spool
        if spool is not None and spool.complete and receiver._loaded is None:
            receiver._loaded = receiver._load(spool.items())

    def may_step(self, message: Message) -> bool:
        """What the driver asks before it steps a message from the network."""
        if message.kind == Kind.SNAPSHOT:
            return self.receiver is not None and self.receiver.ready == message.snapshot
        return message.kind < Kind.APPEND_DONE

    # --- the disk, as it is -----------------------------------------------------------------------------------

    def holds(self, index: int, term: int) -> bool:
        """Whether a loss of power now would leave the entry, in the log or in the state."""
        if self.gone or self.weak:
            return True  # its loss is one that the group has to bear
        medium = replay(self.disk.medium(), LOG, CLUSTER)
        if index <= medium.index.last and (index < medium.index.first or medium.index.term(index) == term):
            return True
        raw = self.committed_applied()
        return raw >= index

    def committed_applied(self) -> int:
        """The applied index that the engine holds durably."""
        with self.engine.snapshot() as view:
            raw = view.get(APPLIED_KEY)
            return decode_applied(raw).index if raw is not None else 0

    @property
    def leads(self) -> bool:
        return self.node is not None and self.node.core.role is Role.LEADER
