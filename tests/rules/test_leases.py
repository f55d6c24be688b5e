"""Rules of the lease protocol, with the real service and two real mounts in memory: 1, 2, 3, 4 and 7."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.client.leases import Leases
from fusefs.client.session import Session
from fusefs.client.volume import Volume
from metadata import api
from metadata.leases import LeaseTable
from metadata.server.leasing import Leasing
from metadata.server.service import Service
from metadata.state.records import Session as SessionRecord
from metadata.state.sessions import Sessions
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO
from tests.rules import violated
from tests.unit.client.test_leases import (
    Duties, Link, Node, Reply, Truth, change_here, names_of, with_two_mounts
)  # fmt: skip

FILE = 0o100644


async def is_there(volume: Volume, name: bytes) -> bool:
    try:
        await volume.lookup(ROOT_INO, name)
    except FsError as error:
        assert error.code is Code.NOT_FOUND, error
        return False
    return True


# --- rule 1 ---------------------------------------------------------------------------------------------------------


async def cut_off_with_attributes(truth: Truth, first: Volume, second: Volume) -> None:
    """B changes a file by itself and is cut off; the lease is broken, A changes it, the leader goes; B comes back."""
    ino = (await first.mknod(ROOT_INO, b"f", FILE, 0, 0, 0)).ino
    await change_here(first, b"other")
    done = first._local.done
    await first.setattr(ino, atime_ns=111)
    assert first._local.done == done + 1
    lost = first._session.id
    truth.links[0].connected = False
    begin = trio.current_time()
    assert (await second.setattr(ino, atime_ns=222)).atime_ns == 222
    assert 9.0 < trio.current_time() - begin < 13.0, "nobody waits longer than a lease for it"
    truth.elect()
    truth.links[0].connected = True
    await trio.sleep(20.0)
    assert (await second.getattr(ino)).atime_ns == 222, "what was brought late has overwritten it"
    assert (await first.getattr(ino)).atime_ns == 222
    assert first._session.id != lost, "who has lost changes is told: its session has ended"


async def cut_off_with_names(truth: Truth, first: Volume, second: Volume) -> None:
    await change_here(first, b"a")
    lost = first._session.id
    truth.links[0].connected = False
    begin = trio.current_time()
    before = [name for name in truth.names_now()]
    assert await names_of(second) == before, "what was not brought has not happened"
    assert 9.0 < trio.current_time() - begin < 13.0
    await second.mknod(ROOT_INO, b"b", FILE, 0, 0, 0)
    truth.links[0].connected = True
    await trio.sleep(5.0)
    assert sorted(await names_of(first)) == sorted([*before, b"b"])
    await trio.sleep(5.0)
    assert first._session.id != lost, "who has lost changes is told: its session has ended"
    assert sorted(truth.names_now()) == sorted([*before, b"b"])


@pytest.mark.parametrize("scene", [cut_off_with_attributes, cut_off_with_names], ids=["attributes", "names"])
def test_rule_01_a_mount_that_was_cut_off_does_not_write_over_others(
    monkeypatch: pytest.MonkeyPatch, scene: Callable[[Truth, Volume, Volume], Awaitable[None]]
) -> None:
    """Breaking a lease is a log entry that raises the session's fence; apply refuses what carries the old one."""
    with_two_mounts(scene)

    def raise_no_fence(self: Sessions, ident: int) -> SessionRecord:
        return self.get(ident)

    monkeypatch.setattr(Sessions, "raise_fence", raise_no_fence)
    assert violated(partial(with_two_mounts, scene))


# --- rule 2 ---------------------------------------------------------------------------------------------------------


async def elected(truth: Truth, first: Volume, second: Volume) -> None:
    """A has made a file and nobody knows; the leader dies, and B looks at the next one."""
    await change_here(first, b"a")
    begin = trio.current_time()
    truth.elect()
    assert b"a" in await names_of(second), "a file is missing whose creation had returned"
    assert trio.current_time() - begin < 5.0, "grace ends as soon as everybody has brought what he has"


async def elected_while_cut_off(truth: Truth, first: Volume, second: Volume) -> None:
    """Whoever does not come is fenced, and what he has brought in vain is not there later either."""
    await change_here(first, b"a")
    truth.links[0].connected = False
    truth.elect()
    before = sorted(truth.names_now())
    assert sorted(await names_of(second)) == before
    await second.mknod(ROOT_INO, b"b", FILE, 0, 0, 0)
    truth.links[0].connected = True
    await trio.sleep(5.0)
    assert sorted(await names_of(first)) == sorted([*before, b"b"])


async def still_believed(truth: Truth, first: Volume, second: Volume) -> None:
    """B believes under a lease of the leader that dies, and cannot be told; A changes that at the next one."""
    await first.syncfs()
    assert not await is_there(second, b"n") and not await is_there(second, b"n")
    truth.links[1].connected = False
    truth.elect()
    await first.mknod(ROOT_INO, b"n", FILE, 0, 0, 0)
    assert await is_there_now(second, b"n") is not False, "B shows what is not true any more"


async def is_there_now(volume: Volume, name: bytes) -> bool | None:
    """What a mount answers at once; None: it asks."""
    found = None
    with trio.move_on_after(0.001):
        found = await is_there(volume, name)
    return found


@pytest.mark.parametrize("scene", [elected, still_believed], ids=["changed here", "believed there"])
def test_rule_02_a_new_leader_waits_for_what_the_old_one_let_others_change(
    monkeypatch: pytest.MonkeyPatch, scene: Callable[[Truth, Volume, Volume], Awaitable[None]]
) -> None:
    with_two_mounts(scene)
    monkeypatch.setattr(LeaseTable, "in_grace", property(lambda self: False))
    assert violated(partial(with_two_mounts, scene))


def test_rule_02_a_new_leader_fences_who_does_not_come() -> None:
    with_two_mounts(elected_while_cut_off)


# --- rule 3 ---------------------------------------------------------------------------------------------------------


class Isolated(Link):
    """Reaches a leader that reaches nobody else, and is replaced without knowing it."""

    def __init__(self, link: Link, service: Service, leasing: Leasing) -> None:
        super().__init__(link.truth, int(link.peer))
        self.volume = link.volume
        self.service, self.leasing = service, leasing

    async def call(self, request: Any, data: Any = (), *, timeout_s: float) -> Reply:
        there = copy.copy(self.truth)
        there.service, there.leasing = self.service, self.leasing
        self.truth, here = there, self.truth
        try:
            return await super().call(request, data, timeout_s=timeout_s)
        finally:
            self.truth = here


class Lonely(Node):
    """A leader that has lost the others: no quorum round of its will ever end."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.readable_now = False

    def read(self, done: Callable[[FsError | None], None]) -> None:
        """Nobody answers."""

    def propose(self, data: bytes, done: Any) -> None:
        """Nobody takes it."""


async def isolated(truth: Truth, first: Volume, second: Volume) -> None:
    """B goes on asking the old leader, which is alone; A changes at the new one what B believes."""
    await first.syncfs()
    assert not await is_there(second, b"n") and not await is_there(second, b"n")
    old = truth.node
    lonely = Lonely(truth)
    truth.leasing._node = lonely  # type: ignore[assignment]
    truth.service.node = lonely  # type: ignore[assignment]
    link = Isolated(truth.links[1], truth.service, truth.leasing)
    second._session._leader._members[1] = link  # type: ignore[index]
    second._session.recalls._members[1] = link  # type: ignore[index]
    truth.links[1].connected = False
    truth.node = node = Node(truth)
    node.term = old.term + 1
    truth.leasing = Leasing(node, truth.world.machine, truth._notify)  # type: ignore[arg-type]
    truth.leasing.begin()
    truth.leasing.fences(truth.fence)
    truth.service = Service(
        node,  # type: ignore[arg-type]
        truth.world.machine,
        Duties(truth.world),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        truth.leasing,
        wall_ns=truth.world.clock,
        change_members=lambda call: None,
    )
    begin = trio.current_time()
    await first.mknod(ROOT_INO, b"n", FILE, 0, 0, 0)
    assert trio.current_time() - begin > 9.0, "it must have waited for the end of B's lease"
    for _ in range(5):
        assert await is_there_now(second, b"n") is not False, "an old leader has prolonged what is not true any more"
        await trio.sleep(0.7)


def test_rule_03_an_isolated_leader_grants_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal, like any grant, needs a quorum round that was begun after its request."""
    with_two_mounts(isolated)

    def read(self: Service, call: Call, then: Callable[[Call], None]) -> None:
        then(call)

    monkeypatch.setattr(Service, "_read", read)
    assert violated(partial(with_two_mounts, isolated))


# --- rule 4 ---------------------------------------------------------------------------------------------------------


class Slow(Link):
    """Its answers to look-ups of a name are late: whatever the leader sends after them is there before."""

    def __init__(self, link: Link, name: bytes) -> None:
        super().__init__(link.truth, int(link.peer))
        self.volume = link.volume
        self.name = name
        self.answered, self.go_on = trio.Event(), trio.Event()

    async def call(self, request: Any, data: Any = (), *, timeout_s: float) -> Reply:
        reply = await super().call(request, data, timeout_s=timeout_s)
        if isinstance(request, api.Read) and any(getattr(query, "name", b"") == self.name for query in request.queries):
            self.answered.set()
            await self.go_on.wait()
        return reply


async def overtaken(truth: Truth, first: Volume, second: Volume) -> None:
    """B asks for a name; the answer, with a lease, is under way when A makes the name; the recall is there first."""
    await first.syncfs()
    link = Slow(truth.links[1], b"n")
    second._session._leader._members[1] = link  # type: ignore[index]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(is_there, second, b"n")
        await link.answered.wait()
        await first.mknod(ROOT_INO, b"n", FILE, 0, 0, 0)  # B has acknowledged that it holds nothing
        link.go_on.set()
    assert await is_there(second, b"n"), "a grant was taken that had been recalled"


def test_rule_04_an_answer_that_a_recall_overtook_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_mounts(overtaken)
    monkeypatch.setattr(Leases, "fresh", lambda self, ticket, ino: True)
    assert violated(partial(with_two_mounts, overtaken))


# --- rule 7 ---------------------------------------------------------------------------------------------------------


async def asleep(truth: Truth, first: Volume, second: Volume) -> None:
    """B's machine sleeps for longer than its leases last, and its CLOCK_MONOTONIC with it; A changes what B knows."""
    slept_s = [0.0]  # by how much the world went on while B slept: trio's clock is B's own
    for volume in (first, second):
        volume._session._clock_s = lambda: trio.current_time() + slept_s[0]  # CLOCK_BOOTTIME
    truth.leasing._node = Awake(truth, slept_s)  # type: ignore[assignment]
    await first.syncfs()
    assert not await is_there(second, b"n") and not await is_there(second, b"n")
    truth.links[1].connected = False
    async with trio.open_nursery() as nursery:
        slept_s[0] = 15.0
        nursery.start_soon(look_after, truth)
        begin = trio.current_time()
        await first.mknod(ROOT_INO, b"n", FILE, 0, 0, 0)
        assert trio.current_time() - begin < 0.2, "B's lease has ended while it slept"
        assert await is_there_now(second, b"n") is not False, "B wakes up and believes what it knew when it fell asleep"
        nursery.cancel_scope.cancel()


async def look_after(truth: Truth) -> None:
    """A duty of the leader."""
    while True:
        truth.leasing.look_after()
        await trio.sleep(0.01)


class Awake(Node):
    """The time of a leader that did not sleep."""

    def __init__(self, truth: Truth, slept_s: list[float]) -> None:
        super().__init__(truth)
        self.slept_s = slept_s

    @property
    def running_s(self) -> float:
        return trio.current_time() + self.slept_s[0]


def test_rule_07_the_clock_of_leases_goes_on_in_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    with_two_mounts(asleep)
    monkeypatch.setattr(Session, "now_s", lambda self: trio.current_time())
    assert violated(partial(with_two_mounts, asleep))
