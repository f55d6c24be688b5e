"""Two mounts under leases against the truth: answers and recalls late and in any order, leaders that come and go.

Both mounts and the leader's leases are the real ones. Every read must show a state at least as new as every change and
every read that had ended before it began, on whichever mount.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusefs.client import codec
from fusefs.client.facts import ABSENT
from fusefs.client.exclusive import Exclusive
from fusefs.client.journal import Journal
from fusefs.client.leases import Change, Leases
from fusefs.client.options import ClientOptions
from fusefs.client.volume import Volume
from metadata import api
from metadata.leases import LeaseTable
from metadata.raft.core import Role
from metadata.server.leasing import Leasing
from metadata.server.service import Service
from metadata.state.command import CommandKind, FenceSession, encode_command
from metadata.state.machine import Outcome
from node.wire.codec import Codec
from node.wire.errors import Code, FsError
from node.wire.limits import RECLAIM_AFTER_S
from node.wire.types import ROOT_INO
from tests.harness import LONG

from .world import Reply, World, _reply_of, _roundtrip

META = Codec(api.CATALOGUE)
NAMES = [b"a", b"b", b"c"]
TASKS = 2  # of each mount
STEPS = 25
SHORT_S = (0.0, 0.001, 0.01, 0.1)


class Node:
    """What the service asks of a node. What is proposed is applied in order, a little later."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.core = self
        self.term = 1
        self.role = Role.LEADER
        self.waiting = 0
        self.full = False
        self.readable_now = True
        self.proposals: deque[tuple[bytes, Callable[[Outcome | None, FsError | None], None]]] = deque()

    @property
    def running_s(self) -> float:
        return trio.current_time()

    def not_leader(self) -> FsError:
        return FsError(Code.NOT_LEADER, "not any more")

    def propose(self, data: bytes, done: Callable[[Outcome | None, FsError | None], None]) -> None:
        self.proposals.append((data, done))
        self.truth.nursery.start_soon(self.apply_one, self.term)

    async def apply_one(self, term: int) -> None:
        await trio.sleep(self.truth.rng.choice(SHORT_S) * self.truth.rng.random())
        if term == self.term:  # each proposal has one of these, whichever comes first takes the oldest
            data, done = self.proposals.popleft()
            done(self.truth.apply(data), None)

    def elect(self) -> None:
        """Some of what was proposed is in the log of the next leader, and whoever waits is told nothing of it."""
        proposals, self.proposals = self.proposals, deque()
        kept = self.truth.rng.randint(0, len(proposals))
        for number, (data, done) in enumerate(proposals):
            done(None, self.not_leader())
            if number < kept:
                self.truth.apply(data)
        self.term += 1


class Duties:
    """What the service asks of a leader's duties."""

    def __init__(self, world: World) -> None:
        self._world = world

    def log_room_bytes(self) -> int:
        return self._world.machine.logged_room_bytes if self._world.log_data else 0

    def heard_session(self, session: int) -> None:
        pass

    def room_bytes(self) -> int:
        return 1 << 30


class Call:
    """One request at the leader."""

    def __init__(self, request: Any, peer: bytes) -> None:
        self.request, self.peer = request, peer
        self.done = trio.Event()
        self.body: Any = None
        self.error: FsError | None = None

    def reply(self, body: Any) -> None:
        assert not self.done.is_set()
        self.body = body
        self.done.set()

    def fail(self, error: FsError) -> None:
        self.error = error
        self.done.set()


class Link:
    """One mount's connection to the leader: what the leader sends arrives in order, and is looked at some time later,
    but for recalls, which are looked at on arrival."""

    def __init__(self, truth: Truth, number: int) -> None:
        self.truth = truth
        self.peer = b"%d" % number
        self.volume: Volume | None = None
        self.arrives_s = 0.0
        self.connected = True

    def lag_s(self) -> float:
        return self.truth.rng.choice(SHORT_S) * self.truth.rng.random()

    def arrival_s(self) -> float:
        self.arrives_s = max(self.arrives_s, trio.current_time() + self.lag_s())
        return self.arrives_s

    def close(self) -> None:
        pass

    async def call(self, request: Any, data: Sequence[Any] = (), *, timeout_s: float) -> Reply:
        request = _roundtrip(META, request)
        await trio.sleep(self.lag_s())
        if not self.connected:
            await trio.sleep(0.05)
            raise FsError(Code.UNREACHABLE, "cut off")
        call = Call(request, self.peer)
        self.truth.serve(call)
        with trio.move_on_after(timeout_s):
            await call.done.wait()
            await trio.sleep_until(self.arrival_s())
            await trio.sleep(self.lag_s())
            return self.answer_to(call)
        raise FsError(Code.TIMEOUT, "no answer")

    def answer_to(self, call: Call) -> Reply:
        """What the mount gets to hear when the answer has arrived. Raises what was answered, or UNREACHABLE."""
        if call.error is not None:
            raise call.error
        if self.truth.rng.random() < self.truth.loss:
            raise FsError(Code.UNREACHABLE, "the answer was lost")
        return Reply(_reply_of(META, call.request, call.body), [])

    async def push(self, recall: api.Recall, at_s: float) -> None:
        await trio.sleep_until(at_s)
        if not self.connected:
            return
        assert self.volume is not None
        self.volume.pushed(1, recall)


class Truth:
    """The leader, what was ever true, and what everybody must see by now."""

    def __init__(self, rng: random.Random, nursery: trio.Nursery, loss: float) -> None:
        self.rng, self.nursery, self.loss = rng, nursery, loss
        self.world = World(servers=1, log_data=rng.random() < 0.5)
        nursery.start_soon(self.world.mover.run)
        self.node = Node(self)
        self.leasing = Leasing(self.node, self.world.machine, self._notify)  # type: ignore[arg-type]
        self.leasing.table._cool_s = rng.choice((0.0, 0.0, 0.1, 1.0))
        self.leasing.begin()
        self.leasing.fences(self.fence)
        self.service = Service(
            self.node,  # type: ignore[arg-type]
            self.world.machine,
            Duties(self.world),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            self.leasing,
            wall_ns=self.world.clock,
            change_members=lambda call: None,
        )
        self.links = [Link(self, number) for number in (0, 1)]
        self.names: list[dict[bytes, int]] = [{}]  # of the root, after each change of them
        self.times: dict[int, list[int]] = {}  # inode -> its atimes, each one once
        self.seen: dict[int, int] = {}  # inode (the root: names) -> the newest place in the list that was shown
        self.next = 1
        self.fencing: set[int] = set()
        self.local = 0  # changes that the mounts made by themselves
        self.lose_recall: Callable[[], bool] = lambda: False  # then answers overtake it, and what is shown may be old
        self.recalls_lost = 0

    def elect(self) -> None:
        """Another leader, who knows nothing of leases."""
        self.leasing.end()
        self.node.elect()
        self.leasing.begin()

    def fence(self, session: int) -> None:
        if session not in self.fencing:
            self.fencing.add(session)
            data = encode_command(CommandKind.FENCE_SESSION, self.world.clock(), FenceSession(session))
            self.node.propose(data, lambda outcome, error: self.fencing.discard(session))

    def _notify(self, peer: bytes, recall: api.Recall) -> bool:
        link = self.links[int(peer)]
        if self.lose_recall():
            self.recalls_lost += 1
        else:
            self.nursery.start_soon(link.push, recall, link.arrival_s())
        return True

    def serve(self, call: Call) -> None:
        try:
            self._serve(call)
        except FsError as error:
            call.fail(error)

    def _serve(self, call: Any) -> None:
        self.leasing.look_after()
        if isinstance(call.request, (api.Recalled, api.Read, api.Submit, api.RenewSession)):
            self.service.handle(call)
        else:
            call.reply(self.world.serve(call.request))

    def apply(self, data: bytes) -> Outcome:
        machine = self.world.machine
        outcome = machine.apply(machine.applied + 1, 1, data)
        self.leasing.applied(outcome)
        if outcome.journal:
            self.check_journal(outcome)
        else:
            self._note(outcome.touched)
        return outcome

    def check_journal(self, outcome: Outcome) -> None:
        """What was foretold happened: no operation fails, and the names are as they were at some time."""
        if isinstance(outcome.reply, FsError):
            assert outcome.reply.code in (Code.FENCED, Code.UNKNOWN_SESSION), outcome.reply
            return
        failed = [result for result in outcome.reply.results if isinstance(result, api.Failed)]  # type: ignore
        assert not failed, failed
        assert self.names_now() in self.names

    def names_now(self) -> dict[bytes, int]:
        (page,) = self.world.machine.query([api.ReadDir(ROOT_INO, b"", 1000, True)])
        assert isinstance(page, api.Entries)
        return {entry.name: entry.ino for entry in page.entries}

    def changed_here(self, op: Any, result: Any) -> None:
        """A mount has answered a change by itself: from now on everybody must see it."""
        self.local += 1
        names = dict(self.names[-1])
        if isinstance(op, api.Make):
            names[op.name] = result.attr.ino
            self.times[result.attr.ino] = [result.attr.atime_ns]
        elif isinstance(op, api.Remove):
            assert names.pop(op.name) == result.ino
        elif isinstance(op, api.Rename) and op.name != op.new_name:
            names[op.new_name] = names.pop(op.name)
        elif isinstance(op, api.SetAttr):
            self.times[op.ino].append(result.attr.atime_ns)
        if names != self.names[-1]:
            self.names.append(names)

    def _note(self, touched: Sequence[int]) -> None:
        machine = self.world.machine
        names = self.names_now()
        if ROOT_INO in touched and names != self.names[-1]:
            self.names.append(names)
        for ino in touched:
            (result,) = machine.query([api.GetAttr(ino)])
            if ino != ROOT_INO and isinstance(result, api.AttrResult):
                times = self.times.setdefault(ino, [])
                if result.attr.atime_ns not in times:
                    times.append(result.attr.atime_ns)

    # --- the checks ---------------------------------------------------------------------------------------------

    def saw_names(self, floor: int, fits: Callable[[dict[bytes, int]], bool], what: object) -> None:
        for place in range(floor, len(self.names)):
            if fits(self.names[place]):
                self.seen[ROOT_INO] = max(self.seen.get(ROOT_INO, 0), place)
                return
        raise AssertionError(f"{what}: not as it was at any time since {self.names[floor:]}")

    def saw_time(self, ino: int, floor: int, atime_ns: int) -> None:
        place = self.times[ino].index(atime_ns)
        assert place >= floor, f"inode {ino}: {atime_ns} was read though {self.times[ino][floor:]} had been shown"
        self.seen[ino] = max(self.seen.get(ino, 0), place)

    # --- the workload -------------------------------------------------------------------------------------------

    async def work(self, volume: Volume) -> None:
        for _ in range(STEPS):
            if self.rng.random() < 0.5:  # else a burst goes on
                await trio.sleep(self.rng.expovariate(5.0))
            name = self.rng.choice(NAMES)
            act = self.rng.choice(
                [self.look, self.look, self.look, self.stat, self.stat, self.list, self.make, self.remove, self.move,
                 self.set, self.set]
            )  # fmt: skip
            try:
                await act(volume, name)
            except FsError as error:
                assert error.code in (Code.NOT_FOUND, Code.EXISTS, Code.STALE, Code.TIMEOUT), error

    async def look(self, volume: Volume, name: bytes) -> int:
        floor = self.seen.get(ROOT_INO, 0)
        try:
            ino = (await volume.lookup(ROOT_INO, name)).ino
        except FsError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            ino = 0
        self.saw_names(floor, lambda names: names.get(name, 0) == ino, (name, ino))
        return ino

    async def stat(self, volume: Volume, name: bytes) -> None:
        ino = await self.look(volume, name)
        if ino:
            floor = self.seen.get(ino, 0)
            self.saw_time(ino, floor, (await volume.getattr(ino)).atime_ns)

    async def list(self, volume: Volume, _name: bytes) -> None:
        floor = self.seen.get(ROOT_INO, 0)
        handle = await volume.opendir(ROOT_INO)
        found, offset = {}, 0
        while page := await volume.readdir(handle, offset):
            found.update({name: attr.ino for name, attr, _ in page})
            offset = page[-1][2]
        self.saw_names(floor, lambda names: names == found, found)

    async def make(self, volume: Volume, name: bytes) -> None:
        floor = self.seen.get(ROOT_INO, 0)
        attr = await volume.mknod(ROOT_INO, name, 0o100644, 0, 0, 0)
        self.saw_names(floor, lambda names: names.get(name) == attr.ino, ("made", name))

    async def remove(self, volume: Volume, name: bytes) -> None:
        floor = self.seen.get(ROOT_INO, 0)
        await volume.unlink(ROOT_INO, name)
        self.saw_names(floor, lambda names: name not in names, ("removed", name))

    async def move(self, volume: Volume, name: bytes) -> None:
        floor = self.seen.get(ROOT_INO, 0)
        other = self.rng.choice(NAMES)
        await volume.rename(ROOT_INO, name, ROOT_INO, other)
        if other != name:
            self.saw_names(floor, lambda names: name not in names and other in names, ("moved", name, other))

    async def set(self, volume: Volume, name: bytes) -> None:
        ino = await self.look(volume, name)
        if not ino:
            return
        floor = self.seen.get(ino, 0)
        self.next += 1
        attr = await volume.setattr(ino, atime_ns=self.next)
        self.saw_time(ino, floor, attr.atime_ns)


def watch(volume: Volume, truth: Truth) -> None:
    """Have the truth told what a volume changes by itself, when it happens."""
    local = volume._local
    for name in ("make", "remove", "rename", "link", "set_attr"):

        def told(op: Any, execute: Callable[[Any], Any]) -> Any:
            done = local.done
            result = execute(op)
            if local.done > done:
                truth.changed_here(op, result)
            return result

        setattr(local, name, partial(told, execute=getattr(local, name)))


async def play(seed: int, *, elections: int = 0, loss: float = 0.0, local: bool = True) -> dict[str, int]:
    """Play one schedule; return what the caches did."""
    rng = random.Random(seed)
    counts = {"hits": 0, "recalls": 0, "drops": 0}
    async with trio.open_nursery() as nursery:
        truth = Truth(rng, nursery, loss)
        volumes = []
        for link in truth.links:
            link.volume = Volume(
                nursery,
                {1: link},
                truth.world.dial,
                mount="/m",
                options=ClientOptions(local_names=local),
                now_ns=truth.world.clock,
                random_bytes=truth.world.random_bytes,
            )
            await link.volume.start()
            watch(link.volume, truth)
            link.volume._session.journal.delay_s = rng.choice((0.001, 0.01, 0.5, 5.0))
            link.volume._session.exclusive.reclaim_after_s = rng.choice((0.0, 0.0, RECLAIM_AFTER_S))
            volumes.append(link.volume)
        async with trio.open_nursery() as workers:
            for volume in volumes * TASKS:
                workers.start_soon(truth.work, volume)
            for _ in range(elections):
                await trio.sleep(rng.uniform(0.1, 1.5))
                truth.elect()
        for volume in volumes:
            await volume.syncfs()
        assert truth.names_now() == truth.names[-1]
        counts["local"] = truth.local
        for volume in volumes:
            leases = volume.statistics()["leases"]
            for key in ("hits", "recalls", "drops"):
                counts[key] += leases[key]
        nursery.cancel_scope.cancel()
    return counts


def run(seed: int, **options: Any) -> dict[str, int]:
    """The order of tasks is the seed's too: what one sees the next run sees."""
    runner = trio._core._run  # type: ignore[attr-defined]
    with mock.patch.object(runner, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        runner._r.seed(seed)
        return trio.run(lambda: play(seed, **options), clock=trio.testing.MockClock(autojump_threshold=0))


def fails(seed: int, **options: Any) -> bool:
    """Whether somebody sees what was before."""
    seen = False
    try:
        run(seed, **options)
    except* (AssertionError, KeyError):  # a name that should be there is missing
        seen = True
    return seen


SETTINGS = settings(max_examples=100 if LONG else 25, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(st.integers(0, 1 << 32))
def test_nobody_sees_what_was_before(seed: int) -> None:
    counts = run(seed)
    assert counts["hits"] > 0 and counts["recalls"] > 0


@SETTINGS
@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.1]))
def test_nobody_sees_what_was_before_another_leader(seed: int, loss: float) -> None:
    run(seed, elections=3, loss=loss)


def end_without_bars(self: Leases, change: Change, touched: Iterable[int], *, trusted: bool = True) -> set[int]:
    """As if nothing else had been asked for while the change was under way."""
    self._uncount(change)
    return set(change.inos)


async def nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


WEAKENINGS = {
    "bring before the acknowledgement": lambda patch: patch.setattr(Exclusive, "recalled", nothing),
    "bring before going on": lambda patch: patch.setattr(Journal, "drain", nothing),
    "recall before showing": lambda patch: patch.setattr(LeaseTable, "seize", lambda *_, **__: []),
    "wait before proposing": lambda patch: patch.setattr(LeaseTable, "unsaid", lambda *_: set()),
    "late answers": lambda patch: patch.setattr(Leases, "fresh", lambda self, ticket, ino: True),
    "recalls": lambda patch: patch.setattr(Leases, "recall", lambda *_: None),
    "own changes": lambda patch: patch.setattr(Leases, "end", end_without_bars),
}


@pytest.mark.parametrize("without", WEAKENINGS)
def test_each_rule_is_needed(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WEAKENINGS[without](monkeypatch)
    assert any(fails(seed) for seed in range(300))


def test_a_new_leader_has_to_hear_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaseTable, "reclaim", lambda *_: True)
    assert any(fails(seed, elections=10) for seed in range(1000)), "one in two hundred sees it"


# --- mounts that are cut off ----------------------------------------------------------------------------------------


async def two_mounts(nursery: trio.Nursery) -> tuple[Truth, Volume, Volume]:
    truth = Truth(random.Random(1), nursery, 0.0)
    truth.leasing.table._cool_s = 0.0
    for link in truth.links:
        link.volume = Volume(
            nursery,
            {1: link},
            truth.world.dial,
            mount="/m",
            options=ClientOptions(request_timeout_s=25.0),
            now_ns=truth.world.clock,
            random_bytes=truth.world.random_bytes,
        )
        await link.volume.start()
        watch(link.volume, truth)
    first, second = (link.volume for link in truth.links)
    assert first is not None and second is not None
    return truth, first, second


async def change_here(volume: Volume, name: bytes) -> None:
    """Make a name without asking; the service will hear of it when somebody wants to know."""
    for number in range(4):  # the first ones have inode numbers fetched
        if number == 3:
            await volume.syncfs()
            volume._session.journal.delay_s = 1000.0
        done = volume._local.done
        made = name if number == 3 else b"%d" % number
        with pytest.raises(FsError):
            await volume.lookup(ROOT_INO, made)  # as the kernel does first
        await volume.mknod(ROOT_INO, made, 0o100644, 0, 0, 0)
        await trio.sleep(1.0)
    assert volume._session.journal and volume._local.done == done + 1


async def names_of(volume: Volume) -> list[bytes]:
    handle = await volume.opendir(ROOT_INO)
    return [name for name, _, _ in await volume.readdir(handle, 0)]


def with_two_mounts(scene: Callable[[Truth, Volume, Volume], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await scene(*await two_mounts(nursery))
            nursery.cancel_scope.cancel()

    with mock.patch.object(codec, "THREAD_BYTES_MIN", 1 << 30):  # the clock would jump ahead of a thread
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_change_made_here_is_seen_there_at_once() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        await change_here(first, b"a")
        assert b"a" in await names_of(second)
        assert not first._session.journal

    with_two_mounts(scene)


def test_a_mount_that_was_asleep_loses_nothing_that_nobody_wanted() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        await change_here(first, b"a")
        session = first._session.id
        truth.links[0].connected = False
        await trio.sleep(40.0)
        truth.links[0].connected = True
        await first.syncfs()
        assert first._session.id == session and b"a" in truth.names_now()

    with_two_mounts(scene)


def test_who_lost_nothing_goes_on_after_a_fence() -> None:
    """A mount that had changed nothing by itself keeps its session and its open files."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, attr = await first.create(ROOT_INO, b"a", 0o600, os.O_RDWR, 0, 0)
        await first.syncfs()
        session = first._session.id
        truth.links[0].connected = False
        await second.getattr(attr.ino)
        await second.setattr(attr.ino, mode=0o640)
        truth.links[0].connected = True
        await trio.sleep(5.0)
        assert (await first.getattr(attr.ino)).mode & 0o777 == 0o640
        await first.setattr(attr.ino, mode=0o644)
        assert first._session.id == session and handle.file.dead is None

    with_two_mounts(scene)


# --- single facts ---------------------------------------------------------------------------------------------------


def attr_of(ino: int, version: int = 1) -> api.Attr:
    return api.Attr(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, version, 1)


@pytest.fixture
def leases() -> Leases:
    made = Leases(on=True, lease_s=9.5, bytes_max=1 << 20)
    made.adopt(1)
    return made


def test_leases_end_by_the_clock(leases: Leases) -> None:
    dropped: list[int] = []
    leases.on_drop = lambda: dropped.append(1)
    assert leases.granted(leases.ask(100.0), 1, 101.0)
    leases.facts.put_attr(attr_of(5))
    assert leases.attr(5, 109.4) is not None
    assert leases.left_s(109.0) == pytest.approx(0.5), "from when it was asked, not from when it was answered"
    leases.prolonged(leases.ask(109.0), 1, 109.2)
    assert leases.attr(5, 118.4) is not None
    assert leases.attr(5, 118.5) is None and dropped == [1]
    leases.prolonged(leases.ask(118.0), 1, 118.6)
    assert not leases.held(118.6), "what has ended is not prolonged"


def test_an_answer_later_than_its_lease_grants_nothing(leases: Leases) -> None:
    assert not leases.granted(leases.ask(100.0), 1, 109.5)


def test_a_grant_of_another_term_is_not_taken(leases: Leases) -> None:
    ticket = leases.ask(1.0)
    assert not leases.granted(ticket, 2, 1.0) and not leases.granted(ticket, 0, 1.0)
    leases.adopt(2)
    assert not leases.granted(ticket, 2, 1.0), "asked before everything was dropped"
    assert leases.granted(leases.ask(1.0), 2, 1.0)
    leases.adopt(1)
    assert leases.term == 2


def test_what_is_in_doubt_is_not_remembered_until_it_cannot_happen(leases: Leases) -> None:
    change = leases.begin([5], [(1, b"n")], 0.0)
    leases.doubt(change, 7)
    leases.certain(7)
    assert not leases.fresh(leases.ask(0.0), 5)
    leases.certain(8)
    assert leases.fresh(leases.ask(0.0), 5)


def test_memory_is_bounded() -> None:
    leases = Leases(on=True, lease_s=9.5, bytes_max=50_000)
    leases.adopt(1)
    assert leases.granted(leases.ask(0.0), 1, 0.0)
    for ino in range(2, 1000):
        leases.facts.put_attr(attr_of(ino))
        leases.facts.put_name(1, b"%d" % ino, ino)
        leases.facts.put_xattr(ino, b"user.x", b"v" * 100)
    assert leases.facts.bytes <= 50_000 and leases.facts.evicted
    leases.drop_all()
    assert leases.facts.bytes == 0


def test_a_directory_of_size_0_is_known(leases: Leases) -> None:
    assert leases.granted(leases.ask(0.0), 1, 0.0)
    facts = leases.facts

    def directory(version: int, size: int, nlink: int = 2) -> api.Attr:
        return msgspec.structs.replace(attr_of(5, version), mode=0o40755, size=size, nlink=nlink)

    facts.put_attr(directory(3, 1))
    facts.put_name(5, b"old", 7)
    assert leases.name(5, b"x", 0.0) is None
    facts.put_attr(directory(2, 0))
    assert leases.name(5, b"old", 0.0) == 7 and leases.name(5, b"x", 0.0) is None, "an older answer"
    facts.put_attr(directory(4, 0))
    assert leases.name(5, b"x", 0.0) == leases.name(5, b"old", 0.0) == ABSENT
    before = facts.bytes
    facts.put_name(5, b"new", 8)
    facts.put_attr(directory(5, 1))
    assert leases.name(5, b"new", 0.0) == 8 and leases.name(5, b"x", 0.0) == ABSENT and facts.bytes > before
    facts.drop(5)
    facts.put_attr(directory(9, 0, nlink=0))
    assert leases.name(5, b"x", 0.0) is None, "a removed directory has no names that could be made"


async def test_a_name_in_a_fresh_directory_costs_no_question() -> None:
    world = World(alone=True)
    async with world.mount() as volume:
        await volume.mkdir(ROOT_INO, b"d", 0o755, 0, 0)
        await volume.syncfs()
    async with world.mount() as volume:
        volume._session.journal.delay_s = 1000.0
        attr = await volume.lookup(ROOT_INO, b"d")
        await volume.mknod(attr.ino, b"first", 0o100644, 0, 0, 0)  # has inode numbers fetched
        with trio.fail_after(60):
            while not volume._session.journal.statistics()["inos"]:
                await trio.testing.wait_all_tasks_blocked()
        world.member.requests.clear()
        with pytest.raises(FsError):
            await volume.lookup(attr.ino, b"n")
        made = await volume.mknod(attr.ino, b"n", 0o100644, 0, 0, 0)
        handle = await volume.opendir(attr.ino)
        assert [name for name, *_ in await volume.readdir(handle, 0)] == [b"first", b"n"]
        assert (await volume.lookup(attr.ino, b"n")).ino == made.ino
        opened, _ = await volume.create(attr.ino, b"o", 0o644, os.O_WRONLY, 0, 0)
        await volume.flush(opened)  # nothing is dirty: it does not wait for the journal
        await volume.release(opened)
        assert volume._session.journal
        assert not [request for request in world.member.requests if isinstance(request, api.Read)]
    world.check()


def test_a_listing_with_a_gap_is_not_complete(leases: Leases) -> None:
    assert leases.granted(leases.ask(0.0), 1, 0.0)
    facts = leases.facts
    facts.listed(1, b"", b"c", end=False)
    facts.listed(1, b"d", b"f", end=True)
    assert leases.name(1, b"x", 0.0) is None
    facts.listed(1, b"c", b"f", end=True)
    assert leases.name(1, b"x", 0.0) == ABSENT
    facts.drop_name(1, b"y")
    assert leases.name(1, b"x", 0.0) is None
