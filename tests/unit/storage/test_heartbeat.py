"""Whom a chunk server tells that it lives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from node.wire.errors import Code, FsError
from storage import api
from storage.server.heartbeat import Heartbeats

STATUS = api.ServerStatus(server=0, uuid=b"u" * 16, address="a", used_bytes=1, capacity_bytes=2, blocks=3)


class Member:
    """A metadata member: answers what it is told to."""

    def __init__(self, answer: Callable[[], api.HeartbeatReply]) -> None:
        self.answer = answer
        self.asked = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def call(self, request: Any, data: Any = (), *, timeout_s: float = 0) -> Any:
        await trio.lowlevel.checkpoint()
        assert isinstance(request, api.Heartbeat)
        assert timeout_s > 0
        self.asked += 1
        return Answer(self.answer())

    def close(self) -> None:
        pass


class Answer:
    def __init__(self, body: api.HeartbeatReply) -> None:
        self.body = body


def leader() -> api.HeartbeatReply:
    return api.HeartbeatReply(server=4, gc_epoch=1, pg_epoch=2, interval_s=3.0)


def not_leader(hint: int) -> Callable[[], api.HeartbeatReply]:
    def answer() -> api.HeartbeatReply:
        raise FsError(Code.NOT_LEADER, hint=hint)

    return answer


def down() -> api.HeartbeatReply:
    raise FsError(Code.UNREACHABLE, "down")


def heartbeats(members: dict[int, Member], taken: list[api.HeartbeatReply]) -> Heartbeats:
    return Heartbeats(
        list(members.items()), lambda: api.Heartbeat(STATUS), lambda sent, reply: taken.append(reply), interval_s=2.0
    )


async def test_the_hint_leads_to_the_leader() -> None:
    members = {1: Member(not_leader(3)), 2: Member(down), 3: Member(leader)}
    taken: list[api.HeartbeatReply] = []
    beats = heartbeats(members, taken)
    assert await beats.beat()
    assert await beats.beat()
    assert [member.asked for member in members.values()] == [1, 0, 2]  # and it is remembered
    assert taken == [leader(), leader()]


@pytest.mark.parametrize("hint", [0, 1, 99])
async def test_without_a_useful_hint_all_are_asked(hint: int) -> None:
    members = {1: Member(not_leader(hint)), 2: Member(down), 3: Member(leader)}
    assert await heartbeats(members, []).beat()
    assert [member.asked for member in members.values()] == [1, 1, 1]


async def test_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    members = {1: Member(not_leader(2)), 2: Member(not_leader(1)), 3: Member(down)}
    beats = heartbeats(members, [])
    assert not await beats.beat()
    assert not await beats.beat()
    assert caplog.text.count("no metadata leader answers") == 1  # said once, not every time
    members[3].answer = leader
    assert await beats.beat()
    assert caplog.text.count("registered as server 4") == 1


async def test_the_rhythm(autojump_clock: trio.testing.MockClock) -> None:
    """Fast until somebody answers, then as often as the leader says."""
    member = Member(down)
    beats = heartbeats({1: member}, [])
    async with trio.open_nursery() as nursery:
        await nursery.start(beats.run)
        await trio.sleep(2.1)
        assert member.asked == 9
        member.answer = leader
        await trio.sleep(0.3)
        start = member.asked
        await trio.sleep(30)
        assert member.asked - start == 10
        nursery.cancel_scope.cancel()
