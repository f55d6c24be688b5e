"""A group of members in memory whose messages the test delivers by hand, or all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from metadata.raft.core import Config, RawNode, Ready, ReadState, StorageAppend, StorageApply
from metadata.raft.membership import ConfChangeInvalid, decode_change
from metadata.raft.messages import ConfState, Entry, EntryKind, Kind, Message, SnapshotMeta
from metadata.raft.storage import MemoryStorage


class Member:
    """One member with its disk, its state machine (a list) and, in asynchronous mode, its workers' queues.

    ``durable`` is what a crash leaves: a copy made at each sync.
    """

    def __init__(self, config: Config, storage: MemoryStorage, random: Callable[[int], int]) -> None:
        self.config = config
        self.random = random
        self.storage = storage
        self.durable = storage.copy()
        self.applied: list[Entry] = []
        self.conf = storage.conf
        self.reads: list[ReadState] = []
        self.appends: list[StorageAppend] = []
        self.applies: list[StorageApply] = []
        storage.fresh = self.snapshot
        self.node = RawNode(config, storage, random)

    def snapshot(self) -> SnapshotMeta:
        """The applied state of this moment."""
        applied = self.node.log.applied
        return SnapshotMeta(applied, self.node.log.term(applied), self.conf)

    def write(self, ready: Ready | StorageAppend) -> None:
        if ready.snapshot is not None:
            self.storage.install(ready.snapshot)
            self.conf = ready.snapshot.conf
            self.applied = [Entry(ready.snapshot.index, ready.snapshot.term)]
        self.storage.append(ready.entries)
        if ready.hard_state is not None:
            self.storage.set_hard_state(ready.hard_state)
        if ready.must_sync:
            self.durable = self.storage.copy()

    def apply(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.applied.append(entry)
            if entry.kind == EntryKind.CONF:
                try:
                    self.conf = self.node.apply_conf(decode_change(entry.data))
                except ConfChangeInvalid:
                    continue

    def ready(self) -> list[Message]:
        """Take one Ready. Synchronous: do all of it. Asynchronous: queue the work. Returns what goes to peers."""
        ready = self.node.ready()
        out = list(ready.messages)
        self.reads += ready.read_states
        if self.config.async_storage:
            if ready.append is not None:
                self.appends.append(ready.append)
            if ready.apply is not None:
                self.applies.append(ready.apply)
            return out
        self.write(ready)
        out += ready.messages_after_append
        self.apply(ready.committed)
        self.node.advance()
        return out

    def append_one(self) -> list[Message]:
        """The log's writer does one piece of work. Returns the responses that go to peers."""
        work = self.appends.pop(0)
        self.write(work)
        return self._respond(work.responses)

    def apply_one(self) -> list[Message]:
        work = self.applies.pop(0)
        self.apply(work.entries)
        return self._respond(work.responses)

    def _respond(self, responses: list[Message]) -> list[Message]:
        out = []
        for message in responses:
            if message.to == self.node.id:
                self.node.step(message)
            else:
                out.append(message)
        return out

    def settle(self) -> list[Message]:
        """Everything that can be done here without hearing from others."""
        out: list[Message] = []
        while True:
            if self.node.has_ready():
                out += self.ready()
            elif self.appends:
                out += self.append_one()
            elif self.applies:
                out += self.apply_one()
            else:
                return out

    def data(self) -> list[bytes]:
        return [entry.data for entry in self.applied if entry.data and entry.kind == EntryKind.NORMAL]

    def restart(self, lose_unsynced: bool = True, applied: int | None = None) -> None:
        """Crash and start again from what is durable; the state machine keeps what it applied, or ``applied``."""
        if lose_unsynced:
            self.storage = self.durable.copy()
            self.storage.fresh = self.snapshot
        self.appends, self.applies, self.reads = [], [], []
        base = self.storage.snap.index
        upto = base if applied is None else applied
        self.applied = [entry for entry in self.applied if entry.index <= upto]
        self.config.applied = upto
        self.node = RawNode(self.config, self.storage, self.random)


class Group:
    """Members 1..n and the messages between them. ``cut`` names directed links that lose everything."""

    def __init__(
        self, voters: int | Iterable[int] = 3, learners: Iterable[int] = (), random: Callable[[int], int] | None = None,
        conf: ConfState | None = None, index: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        ids = tuple(range(1, voters + 1)) if isinstance(voters, int) else tuple(voters)
        self.conf = conf or ConfState(ids, tuple(learners))
        self.random = random or Random(7).randrange  # time-outs differ, in every run alike
        self.options = options
        self.index = index
        self.members: dict[int, Member] = {}
        self.network: list[Message] = []
        self.lost: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        for member in sorted({*self.conf.voters, *self.conf.learners, *self.conf.outgoing}):
            self.add(member)

    def add(self, member: int, storage: MemoryStorage | None = None) -> Member:
        if storage is None:
            storage = MemoryStorage(self.conf, self.index, 1 if self.index else 0)
        config = Config(member, applied=storage.snap.index)
        for name, value in self.options.items():
            setattr(config, name, value)
        config.__post_init__()
        self.members[member] = Member(config, storage, self.random)
        return self.members[member]

    def __getitem__(self, member: int) -> RawNode:
        return self.members[member].node

    def isolate(self, member: int) -> None:
        for other in self.members:
            self.cut |= {(member, other), (other, member)}

    def heal(self) -> None:
        self.cut.clear()

    def collect(self) -> None:
        """Let every member do its own work and put what it says on the network."""
        for member in self.members.values():
            self.send(member.settle())

    def collect_one(self, member: int) -> None:
        """As ``collect``, of one member, and only until its configuration changes."""
        one = self.members[member]
        before = one.node.conf
        while one.node.conf == before and (one.node.has_ready() or one.appends or one.applies):
            if one.node.has_ready():
                self.send(one.ready())
            elif one.appends:
                self.send(one.append_one())
            else:
                self.send(one.apply_one())

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if (message.sender, message.to) in self.cut or message.to not in self.members:
                self.lose(message)
            else:
                self.network.append(message)

    def lose(self, message: Message) -> None:
        """A message is lost; of a snapshot the sender's driver notices."""
        self.lost.append(message)
        if message.kind == Kind.SNAPSHOT:
            self[message.sender].report_snapshot(message.to, False)

    def deliver(self, keep: Callable[[Message], bool] = lambda message: True) -> int:
        """Deliver what is on the network now. Messages for which ``keep`` is false are lost."""
        batch, self.network = self.network, []
        for message in batch:
            if (message.sender, message.to) in self.cut or not keep(message):
                self.lose(message)
            else:
                self[message.to].step(message)
        return len(batch)

    def stabilize(self, keep: Callable[[Message], bool] = lambda message: True) -> None:
        for _ in range(10_000):
            self.collect()
            if not self.network:
                return
            self.deliver(keep)
        raise AssertionError("the group does not come to rest")

    def take(self, kind: Kind, to: int | None = None) -> list[Message]:
        """Remove messages of a kind from the network and return them."""
        taken = [m for m in self.network if m.kind == kind and to in (None, m.to)]
        self.network = [m for m in self.network if m not in taken]
        return taken

    def elect(self, member: int) -> None:
        self[member].campaign()
        self.stabilize()
        assert self.leader() == member

    def leader(self) -> int:
        """The leader of the highest term, 0 where there is none."""
        leaders = [(m.node.term, m.node.id) for m in self.members.values() if m.node.leader == m.node.id]
        return max(leaders)[1] if leaders else 0

    def propose(self, data: bytes) -> tuple[int, int]:
        return self[self.leader()].propose(data)

    def tick(self, count: int = 1, members: Iterable[int] | None = None, stabilize: bool = True) -> None:
        for _ in range(count):
            for member in members if members is not None else list(self.members):
                self[member].tick()
            if stabilize:
                self.stabilize()
