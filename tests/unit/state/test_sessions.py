"""Exactly once: registration, replay, windows, predecessors, fences (rules 1 and 12)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from metadata import api
from metadata.state import sessions as sessions_module
from metadata.state.command import CommandKind, ExpireSession, FenceReply, FenceSession
from node.wire.errors import Code
from node.wire.limits import RESULT_WINDOW
from tests.unit.state.support import FILE, ROOT, World


@pytest.fixture
def world() -> World:
    return World()


def send(world: World, sequence: int, *ops: api.Op, lowest: int = 1, **more: Any) -> Any:
    submit = api.Submit(1, sequence, lowest, ops or (make(b"%d" % sequence),), **more)
    return world.run(CommandKind.SUBMIT, submit)


def make(name: bytes) -> api.Make:
    return api.Make(ROOT, name, FILE, 0, 0)


def test_a_repeated_request_is_answered_and_not_executed(world: World) -> None:
    first = send(world, 1)
    for _ in range(3):
        again = send(world, 1)
        assert again == first
        assert world.last is not None and world.last.encoded == msgspec.msgpack.encode(first)
    assert world.names() == [b"1"]
    assert world.attr(ROOT).version == first.results[0].parent.version


def test_failures_are_results_too(world: World) -> None:
    world.make(b"x")
    refused = send(world, 5, make(b"x"))
    assert refused.results[0].code == Code.EXISTS
    world.do(api.Remove(ROOT, b"x", not_held=(2,)))
    assert send(world, 5, make(b"x")) == refused and world.names() == []


def test_below_the_lowest_unacknowledged_is_stale(world: World) -> None:
    send(world, 1)
    send(world, 3, lowest=3)
    assert world.code(send(world, 1)) == Code.STALE_SEQUENCE
    assert world.code(send(world, 2)) == Code.STALE_SEQUENCE
    assert send(world, 3).results
    assert len(world.tables.range(b"R", b"S")) == 1
    world.sound()


def test_requests_may_come_in_any_order_within_the_window(world: World) -> None:
    send(world, 3)
    send(world, 1)
    send(world, 2)
    assert world.names() == [b"1", b"2", b"3"]


def test_the_window_is_bounded(world: World) -> None:
    assert world.code(send(world, RESULT_WINDOW + 1)) == Code.OVERLOADED
    assert world.names() == []
    assert send(world, RESULT_WINDOW).results
    assert send(world, RESULT_WINDOW + 1, lowest=2).results
    world.sound()


def test_the_bytes_of_results_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send(world, 1)
    send(world, 2)
    kept = world.machine.sessions()[0].result_bytes
    monkeypatch.setattr(sessions_module, "SESSION_RESULT_BYTES_MAX", kept)
    assert world.code(send(world, 3)) == Code.OVERLOADED
    assert world.names() == [b"1", b"2"]
    assert send(world, 2).results  # a replay needs no room
    assert send(world, 3, lowest=3).results
    world.sound()


@pytest.mark.parametrize(
    "sequence,lowest,after", [(0, 0, 0), (0, 1, 0), (5, 6, 0), (5, 0, 0), (5, 1, 5), (5, 1, 9), (1 << 63, 1, 0)]
)
def test_numbers_that_make_no_sense(world: World, sequence: int, lowest: int, after: int) -> None:
    assert world.code(send(world, sequence, make(b"x"), lowest=lowest, after=after)) == Code.INVALID
    assert world.names() == []


def test_unknown_sessions_are_told_so(world: World) -> None:
    for session in (0, 2, -1, 1 << 63):
        reply = world.run(CommandKind.SUBMIT, api.Submit(session, 1, 1, ()))
        assert world.code(reply) == Code.UNKNOWN_SESSION


def test_too_large_a_batch_is_refused_whole(world: World) -> None:
    assert world.code(send(world, 1, *[make(b"x")] * 1025)) == Code.TOO_BIG
    assert world.names() == []


def test_each_operation_of_a_batch_stands_alone(world: World) -> None:
    ops = (make(b"a"), make(b"a"), make(b"b"))
    results = send(world, 1, *ops).results
    assert [type(result) for result in results] == [api.Made, api.Failed, api.Made]
    assert world.names() == [b"a", b"b"]


def test_a_batch_may_stop_at_the_first_failure(world: World) -> None:
    ops = (make(b"a"), make(b"a"), make(b"b"), make(b"c"))
    results = send(world, 1, *ops, stop_on_error=True).results
    assert [getattr(result, "code", 0) for result in results] == [0, Code.EXISTS, Code.SKIPPED, Code.SKIPPED]
    assert world.names() == [b"a"]


def test_a_fence_refuses_what_was_sent_before_it(world: World) -> None:
    done = send(world, 1)
    assert world.run(CommandKind.FENCE_SESSION, FenceSession(1)) == FenceReply(1)
    assert world.code(send(world, 2)) == Code.FENCED
    assert send(world, 1) == done  # what was executed before is answered all the same
    assert send(world, 2, fence=1).results
    assert world.code(send(world, 3, fence=2)) == Code.FENCED
    assert world.names() == [b"1", b"2"]
    assert world.code(world.run(CommandKind.FENCE_SESSION, FenceSession(9))) == Code.UNKNOWN_SESSION
    world.sound()


def test_opening_twice_with_one_nonce_gives_one_session(world: World) -> None:
    body = api.OpenSession(b"n" * 16, "host", "/mnt", "1")
    first = world.run(CommandKind.OPEN_SESSION, body)
    assert world.run(CommandKind.OPEN_SESSION, body) == first
    assert [session.id for session in world.machine.sessions()] == [1, first.session]


def test_session_ids_are_never_reused(world: World) -> None:
    body = api.OpenSession(b"n" * 16, "host", "/mnt", "1")
    first = world.run(CommandKind.OPEN_SESSION, body).session
    world.run(CommandKind.EXPIRE_SESSION, ExpireSession(first))
    world.reclaim()
    assert world.run(CommandKind.OPEN_SESSION, body).session == first + 1


def test_malformed_registrations(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (
        api.OpenSession(b"", "h", "m", "v"),
        api.OpenSession(b"n" * 15, "h", "m", "v"),
        api.OpenSession(b"n" * 3000, "h", "m", "v"),
        api.OpenSession(b"n" * 16, "h" * 5000, "m", "v"),
    ):
        assert world.code(world.run(CommandKind.OPEN_SESSION, body)) == Code.INVALID
    monkeypatch.setattr(sessions_module, "SESSIONS_MAX", 1)
    reply = world.run(CommandKind.OPEN_SESSION, api.OpenSession(b"n" * 16, "h", "m", "v"))
    assert world.code(reply) == Code.OVERLOADED


def test_results_survive_a_restart(world: World) -> None:
    first = send(world, 1)
    world.machine.reload()
    assert send(world, 1) == first
    assert send(world, 2, after=1).results
    world.sound()
