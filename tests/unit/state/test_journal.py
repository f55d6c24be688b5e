"""Submits that bring what a session has done already: times of their own, base versions, fences."""

from __future__ import annotations

from typing import Any

from metadata import api
from metadata.state.command import CommandKind, FenceReply, FenceSession
from node.wire.errors import Code, FsError

from .support import FILE, ROOT, World


def bring(world: World, sequence: int, *ops: api.Op, **fields: Any) -> Any:
    submit = api.Submit(1, sequence, sequence, ops, journal=True, **fields)
    return world.run(CommandKind.SUBMIT, submit)


def attr_of(world: World, ino: int) -> api.Attr:
    (result,) = world.machine.query([api.GetAttr(ino)])
    assert isinstance(result, api.AttrResult)
    return result.attr


def test_each_operation_has_the_time_at_which_it_happened() -> None:
    world = World()
    made = [api.Make(ROOT, name, FILE, 0, 0) for name in (b"a", b"b")]
    reply = bring(world, 1, *made, times_ns=(111, 222))
    assert [(result.attr.mtime_ns, result.attr.btime_ns) for result in reply.results] == [(111, 111), (222, 222)]
    assert attr_of(world, ROOT).mtime_ns == 222
    assert world.machine.time_ns > 222, "the time of the log is its own"
    assert world.last is not None and world.last.journal


def test_a_journal_written_on_another_state_is_refused_whole() -> None:
    world = World()
    base = attr_of(world, ROOT).data_version
    assert not isinstance(bring(world, 1, api.Make(ROOT, b"a", FILE, 0, 0), bases=((ROOT, base),)), FsError)
    refused = bring(world, 2, api.Make(ROOT, b"b", FILE, 0, 0), bases=((ROOT, base),))
    assert isinstance(refused, FsError) and refused.code is Code.VERSION_MISMATCH
    gone = bring(world, 2, api.Make(ROOT, b"b", FILE, 0, 0), bases=((999, 1),))
    assert isinstance(gone, FsError) and gone.code is Code.VERSION_MISMATCH
    assert world.machine.child(ROOT, b"b") == 0
    assert not isinstance(bring(world, 2, api.Make(ROOT, b"b", FILE, 0, 0), bases=((ROOT, base + 1),)), FsError)


def test_a_repetition_is_answered_whatever_its_base_was() -> None:
    world = World()
    base = attr_of(world, ROOT).data_version
    submit = api.Submit(1, 1, 1, (api.Make(ROOT, b"a", FILE, 0, 0),), journal=True, bases=((ROOT, base),))
    first = world.run(CommandKind.SUBMIT, submit)
    assert world.run(CommandKind.SUBMIT, submit) == first


def test_times_must_fit_the_operations() -> None:
    world = World()
    reply = bring(world, 1, api.Make(ROOT, b"a", FILE, 0, 0), times_ns=(1, 2))
    assert isinstance(reply, FsError) and reply.code is Code.INVALID


def test_a_fence_refuses_what_is_brought_under_the_old_one() -> None:
    world = World()
    fence = world.run(CommandKind.FENCE_SESSION, FenceSession(1))
    assert isinstance(fence, FenceReply) and world.last is not None and world.last.fenced == [1]
    refused = bring(world, 1, api.Make(ROOT, b"a", FILE, 0, 0))
    assert isinstance(refused, FsError) and (refused.code, refused.hint) == (Code.FENCED, fence.fence)
    assert not isinstance(bring(world, 1, api.Make(ROOT, b"a", FILE, 0, 0), fence=fence.fence), FsError)
