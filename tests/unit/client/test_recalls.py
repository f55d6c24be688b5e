"""Recalls that get lost, are heard twice, or cannot be acknowledged: nobody hangs for it."""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest
import trio

from fusefs.client.volume import Volume
from metadata import api
from metadata.leases import AGAIN_S_MAX, AGAIN_S_MIN, LeaseTable
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO

from .test_leases import Call, Reply, Truth, change_here, names_of, with_two_mounts
from .world import World, always

A, B = 1, 2
INO = 7


async def look_after(truth: Truth) -> None:
    """The leader's ticks."""
    while True:
        await trio.sleep(0.05)
        truth.leasing.look_after()


@pytest.mark.parametrize("lost", [1, 3])
def test_a_recall_that_was_lost_while_the_connection_stands_is_sent_again(lost: int) -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        await change_here(first, b"a")
        session = first._session.id
        truth.lose_recall = lambda: truth.recalls_lost < lost
        truth.nursery.start_soon(look_after, truth)
        begin = trio.current_time()
        assert b"a" in await names_of(second)
        waited_s = trio.current_time() - begin
        assert truth.recalls_lost == lost and AGAIN_S_MIN <= waited_s < AGAIN_S_MIN * 2**lost
        assert first._session.id == session, "nothing is taken from who never heard that he was asked"

    with_two_mounts(scene)


def test_a_repeated_change_is_not_answered_before_others_have_forgotten_what_was_before() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        truth.leasing.table._cool_s = 100.0
        _, attr = await first.create(ROOT_INO, b"a", 0o600, os.O_RDWR, 0, 0)
        await first.syncfs()
        for volume in (second, first):
            await volume.getattr(attr.ino)  # so nobody has it exclusively
        session = first._session
        changes = (api.SetAttr(attr.ino, mode=0o640),)
        number = session._sequence + 1
        request = api.Submit(session.id, number, number, changes, fence=session._fence, lease=True, lease_term=1)
        truth.lose_recall = lambda: True
        calls = [Call(request, truth.links[0].peer) for _ in range(2)]
        for call in calls:
            truth.serve(call)
            await trio.sleep(1.0)
        assert truth.world.machine.query([api.GetAttr(attr.ino)])[0].attr.mode & 0o777 == 0o640  # type: ignore
        assert not any(call.done.is_set() for call in calls)
        truth.lose_recall = lambda: False
        truth.nursery.start_soon(look_after, truth)
        with trio.fail_after(2 * AGAIN_S_MAX):
            for call in calls:
                await call.done.wait()
        assert (await second.getattr(attr.ino)).mode & 0o777 == 0o640

    with_two_mounts(scene)


class Kernel:
    """One that takes its time to forget."""

    def __init__(self) -> None:
        self.asked = 0
        self.forgotten = trio.Event()

    async def forget(self, inos: Collection[int]) -> None:
        self.asked += 1
        await self.forgotten.wait()

    async def forget_all(self) -> None:
        await trio.lowlevel.checkpoint()

    def yields(self, ino: int) -> bool:
        return False

    def expire(self, inos: Collection[int], names: Collection[tuple[int, bytes]] = ()) -> bool:
        return False


class Slow(Kernel):
    """One that takes a second each time."""

    at_work = 0

    async def forget(self, inos: Collection[int]) -> None:
        await self.forget_all()

    async def forget_all(self) -> None:
        self.at_work += 1
        await trio.sleep(1.0)
        self.at_work -= 1


async def test_a_recall_that_is_heard_twice_is_served_once() -> None:
    world = World()
    acknowledged: list[object] = []

    def hear(request: object) -> None:
        if isinstance(request, api.Recalled):
            acknowledged.append(request)
            raise FsError(Code.UNREACHABLE, "and nobody knows")

    world.member.before.append(hear)
    async with world.mount() as volume:
        kernel = Kernel()
        volume.caches(kernel)
        recall = api.Recall(volume._session.id, 5, (INO,))
        for _ in range(3):
            volume.pushed(1, recall)
            await trio.testing.wait_all_tasks_blocked()
        assert kernel.asked == 1 and not acknowledged
        kernel.forgotten.set()
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged == [api.Recalled(volume._session.id, 5)]
        volume.pushed(1, recall)  # the leader has not heard of it
        await trio.testing.wait_all_tasks_blocked()
        assert len(acknowledged) == 2


@pytest.mark.parametrize("changing", [False, True])
async def test_who_asks_waits_also_for_what_came_while_he_waited(changing: bool, autojump_clock: object) -> None:
    """A new term was named while the kernel still believed what the old leader had granted."""
    world = World()
    world.member.before.append(always(api.Recalled, Code.UNREACHABLE))
    async with world.mount() as volume:
        kernel = Slow()
        volume.caches(kernel)
        session = volume._session
        volume.pushed(1, api.Recall(session.id, 5, (INO,)))  # takes 1 s
        asked = session.recalls.quiet if changing else session.recalls.forgotten
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, session.deadline())
            await trio.sleep(0.5)
            session.recalls._dropped()  # as when a new leader is heard of
        assert trio.current_time() - begin == pytest.approx(1.5) and not kernel.at_work


async def test_who_asks_again_after_the_leases_ran_out_waits_until_nothing_is_shown(autojump_clock: object) -> None:
    """Nothing else may have noticed that they did: the machine was asleep. Leases that come with the answer would hold
    for what the kernel shows still."""
    world, kernel = World(alone=True), Slow()
    async with world.mount() as volume:
        volume.caches(kernel)
        _, attr = await volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await volume.syncfs()
        await trio.sleep(0.01)
        leases = volume._session.leases

        def sleep(request: object) -> None:
            if isinstance(request, api.Read):
                at_work.append(kernel.at_work)
                if len(at_work) == 1:
                    leases.until_s = trio.current_time()
                    raise FsError(Code.FENCED, "meanwhile leases were broken", hint=1)

        at_work: list[int] = []
        world.member.before.append(sleep)
        begin = trio.current_time()
        await volume._session.read(api.GetXattr(attr.ino, b"user.a"))
        assert at_work == [0, 0] and trio.current_time() >= begin + 1.0


def test_a_leader_that_does_not_hear_an_acknowledgement_holds_nothing_up() -> None:
    """It may have been stopped or cut off meanwhile, and another one leads."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        await change_here(first, b"a")
        call = truth.links[0].call

        async def deaf(request: object, data: object = (), *, timeout_s: float) -> Reply:
            if isinstance(request, api.Recalled):
                await trio.sleep(timeout_s)
                raise FsError(Code.TIMEOUT, "no answer")
            return await call(request, timeout_s=timeout_s)

        truth.links[0].call = deaf  # type: ignore[method-assign]
        truth.nursery.start_soon(look_after, truth)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names_of, second)
            await trio.sleep(1.0)
            begin = trio.current_time()
            await first.getattr(ROOT_INO)
            assert trio.current_time() - begin < 3.0
            truth.links[0].call = call  # type: ignore[method-assign]

    with_two_mounts(scene)


async def test_a_recall_of_a_member_that_was_removed_meanwhile_is_no_matter() -> None:
    world = World()
    async with world.mount() as volume:
        kernel = Kernel()
        volume.caches(kernel)
        kernel.forgotten.set()
        volume.pushed(9, api.Recall(volume._session.id, 5, (INO,)))
        await trio.testing.wait_all_tasks_blocked()
        assert (await volume.getattr(ROOT_INO)).ino == ROOT_INO


# --- the table ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> LeaseTable:
    made = LeaseTable(10.0, 0.5, 100, fencing=True)
    made.begin(1, [], 0.0)
    made.grant(A, [INO], 0.0)
    return made


def test_pauses_grow_until_the_acknowledgement(table: LeaseTable) -> None:
    (recall,) = table.change((INO,), B, 1)
    sent = []
    for tenths in range(600):
        table.prolong(A, tenths / 10)
        if table.unanswered(tenths / 10):
            sent.append(tenths / 10)
    gaps = [later - earlier for earlier, later in zip([0.0, *sent], sent)]
    assert gaps[:3] == pytest.approx([AGAIN_S_MIN, 2 * AGAIN_S_MIN, 4 * AGAIN_S_MIN])
    assert set(gaps[4:]) == {AGAIN_S_MAX}
    table.acknowledge(A, recall[1])
    assert not table.unanswered(1000.0)


def test_an_answer_that_others_have_overtaken_is_recalled_though_it_shows_nothing_old(table: LeaseTable) -> None:
    """Who has said that he shows no old view is not asked by who looks, but his answer is old after another change."""
    assert not table.change((INO,), A, 1, settled=(INO,))
    assert not table.demand((INO,), B)
    assert not table.change((INO,), A, 2, settled=(INO,)) and not table.demand((INO,), B)
    (recall,) = table.change((INO,), B, 1)
    assert recall[0] == A
    table.acknowledge(A, recall[1])
    assert not table.change((INO,), A, 3)
    assert not table.change((INO,), A, 4, settled=(INO,))
    assert [one[0] for one in table.demand((INO,), B)] == [A], "of the change before it he may show an old view"


def test_whose_leases_have_ended_is_not_asked_any_more(table: LeaseTable) -> None:
    assert table.own(A, [INO], 0.0) == ()
    assert table.seize([INO], B, 0.0) and not table.unanswered(0.0)
    table.lapse(11.0)
    assert table.unfenced() == [A] and not table.unanswered(11.0)


def test_no_two_recalls_of_different_leaders_have_one_number(table: LeaseTable) -> None:
    numbers = set()
    for term in (1, 2, 5):
        table.end()
        table.begin(term, [], 0.0)
        for _ in range(10):
            numbers.add(table.recall(A, (INO,))[1])
    assert len(numbers) == 30
    other = LeaseTable(10.0, 0.5, 100)  # a leader that has just been started
    other.begin(6, [], 0.0)
    assert other.recall(A, (INO,))[1] not in numbers
