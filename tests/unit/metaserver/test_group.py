"""Three members: leaders come and go, acknowledged operations stay, and are executed once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from metadata import api
from metadata.raft.core import Role
from metadata.server.peers import Wiped
from node.wire.errors import Code, FsError
from node.wire.limits import RAFT_ELECTION_TICKS, RAFT_TICK_S
from tests.unit.metaserver.world import Session, World, make, world

ELECTION_S = RAFT_ELECTION_TICKS * RAFT_TICK_S  # the shortest time-out


def node_of(made: World, number: int) -> Any:
    node = made[number].node
    assert node is not None
    return node


async def caught_up(made: World, *numbers: int) -> None:
    """Wait until members have applied the same."""
    await made.until(lambda: len({node_of(made, number).machine.applied for number in numbers}) == 1)


async def test_members_agree(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        for number in range(20):
            await session.do(make(b"%d" % number))
        await caught_up(made, 1, 2, 3)
        assert len({node_of(made, number).machine.digest() for number in (1, 2, 3)}) == 1


async def test_a_follower_names_the_leader(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        leader = await made.leader()
        follower = leader % 3 + 1
        await made.until(lambda: node_of(made, follower).leader == leader)
        for request in (api.GetClusterMap(), api.OpenSession(b"n" * 16, "h", "m", "v"), api.Read(1, (api.GetAttr(1),))):
            with pytest.raises(FsError) as caught:
                await made.call(follower, request)
            assert caught.value.code is Code.NOT_LEADER and caught.value.hint == leader
        report: api.StatusReply = await made.call(follower, api.GetStatus())
        assert report.status.role == "follower" and report.status.leader == leader and report.volume is None


async def test_nothing_acknowledged_is_lost_when_leaders_die(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        done = 0
        for _ in range(3):
            for _ in range(5):
                await session.do(make(b"%d" % done))
                done += 1
            leader = await made.leader()
            await made.running[leader].crash()
            await session.do(make(b"%d" % done))
            done += 1
            await made.start(leader)
        for number in range(done):
            assert isinstance(await session.look(b"%d" % number), api.AttrResult)
        await caught_up(made, 1, 2, 3)
        assert len({node_of(made, number).machine.digest() for number in (1, 2, 3)}) == 1


async def test_a_request_repeated_at_the_next_leader_is_executed_once(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        request = session.request(make(b"a"))
        first = await made.ask(request)
        leader = await made.leader()
        await made.running[leader].crash()
        assert await made.ask(request) == first
        assert not first.results[0].existed


async def test_a_dead_leader_is_noticed_by_its_connection(tmp_path: Path) -> None:
    took_s = []
    async with world(tmp_path, 3) as made:
        for _ in range(5):  # a busy machine may hold up any one of them
            leader = await made.leader()
            others = tuple(number for number in (1, 2, 3) if number != leader)
            await made.until(lambda: all(node_of(made, n).leader == leader for n in others))  # noqa: B023
            await made.running[leader].crash()
            began_s = trio.current_time()
            await made.leader(*others)
            took_s.append(trio.current_time() - began_s)
            if took_s[-1] < ELECTION_S:
                return
            await made.start(leader)
            await caught_up(made, 1, 2, 3)
    raise AssertionError(f"it took an election time-out each time: {took_s}")


async def test_a_leader_that_hears_nobody_steps_down_and_answers_no_reads(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        await session.do(make(b"a"))
        old = await made.leader()
        made.transport.cut(f"ipc://p{old}")
        with pytest.raises(FsError) as caught:
            await session.look(b"a", old)
        assert caught.value.code is Code.NOT_LEADER
        others = tuple(number for number in (1, 2, 3) if number != old)
        await made.leader(*others)
        await session.do(make(b"b"))
        assert node_of(made, old).role is not Role.LEADER
        made.transport.heal(f"ipc://p{old}")
        await caught_up(made, 1, 2, 3)


async def test_stopping_hands_leadership_over(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        await session.do(make(b"a"))
        leader = await made.leader()
        await made.running[leader].stop()
        others = tuple(number for number in (1, 2, 3) if number != leader)
        assert any(node_of(made, number).role is Role.LEADER for number in others)
        assert isinstance(await session.look(b"a"), api.AttrResult)


async def test_a_wiped_member_does_not_come_back_under_its_id(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        await session.do(make(b"a"))
        victim = await made.leader()
        await made.running[victim].crash()
        shutil.rmtree(tmp_path / f"metadata-{victim}")
        with pytest.raises(ExceptionGroup) as caught:  # noqa: ASYNC401, one or two peers may be first
            await made.make(victim).run(trio.Event())
        assert caught.value.split(Wiped)[1] is None
        await session.do(make(b"b"))
        assert isinstance(await session.look(b"a"), api.AttrResult)


async def test_no_log_is_begun_before_every_member_was_met(tmp_path: Path) -> None:
    async with world(tmp_path, 3, start=False) as made:
        await made.start(1, 2)
        await trio.sleep(0.3)
        assert made[1].node is None and made[2].node is None
        report: api.StatusReply = await made.call(1, api.GetStatus())
        assert report.status.role == "candidate"
        with pytest.raises(FsError) as caught:
            await made.call(1, api.GetClusterMap())
        assert caught.value.code is Code.NOT_LEADER
        await made.start(3)
        await Session.open(made)


async def test_two_of_three_restarted_together_go_on(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        await session.do(make(b"a"))
        for number in (1, 2, 3):
            await made.running[number].crash()
        await made.start(1, 2)
        assert isinstance(await session.look(b"a"), api.AttrResult)
        await session.do(make(b"b"))


async def test_a_member_far_behind_gets_a_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path, 3, trailing=10) as made:
        session = await Session.open(made)
        leader = await made.leader()
        slow = leader % 3 + 1
        await made.running[slow].crash()
        for number in range(100):
            await session.do(make(b"%d" % number))
        node = node_of(made, leader)
        await made.until(lambda: node.stable.store.first_index() > 60)
        await made.start(slow)
        await caught_up(made, 1, 2, 3)
        assert node_of(made, slow).stable.store.first_index() > 60
        assert len({node_of(made, number).machine.digest() for number in (1, 2, 3)}) == 1
        await made.running[slow].crash()
        await made.start(slow)
        await session.do(make(b"after"))
        await caught_up(made, 1, 2, 3)
        assert len({node_of(made, number).machine.digest() for number in (1, 2, 3)}) == 1


async def test_a_member_whose_log_lost_entries_fetches_them_again(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        for number in range(30):
            await session.do(make(b"name-%d" % number))
        leader = await made.leader()
        victim = leader % 3 + 1
        await caught_up(made, 1, 2, 3)
        await made.running[victim].crash()
        segment = max((tmp_path / f"metadata-{victim}" / "log").glob("*.log"))
        content = bytearray(segment.read_bytes())
        content[content.index(b"name-7")] ^= 1
        segment.write_bytes(content)
        shutil.rmtree(tmp_path / f"metadata-{victim}" / "state")
        await made.start(victim)
        assert node_of(made, victim).stable.store.damage is not None
        await session.do(make(b"after"))
        await caught_up(made, 1, 2, 3)
        await made.until(lambda: not node_of(made, victim).stable.store.damaged)
        assert len({node_of(made, number).machine.digest() for number in (1, 2, 3)}) == 1


async def test_reads_share_rounds(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        await session.do(make(b"a"))
        leader = await made.leader()
        node = node_of(made, leader)
        before = node.statistics()["read_rounds"]
        found = []

        async def read() -> None:
            found.append(await session.look(b"a", leader))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(read)
        assert len(found) == 200 and all(isinstance(result, api.AttrResult) for result in found)
        assert node.statistics()["read_rounds"] - before <= 20
