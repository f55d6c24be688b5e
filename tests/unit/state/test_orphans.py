"""Removed files that somebody has open: they stay, by session, until the last one lets go."""

from __future__ import annotations

import pytest

from metadata import api
from metadata.state.command import CommandKind, ExpireSession
from node.wire.errors import Code
from tests.unit.state.support import DIR, ROOT, World, block, extent


@pytest.fixture
def world() -> World:
    return World(sessions=3)


def filled(world: World, name: bytes = b"f") -> int:
    return world.make(name, size=8, extents=(extent(0, 8, 1),), touch_epoch=1)


def test_a_removed_file_stays_for_every_session(world: World) -> None:
    ino = filled(world)
    removed = world.do(api.Remove(ROOT, b"f"))
    assert (removed.nlink, removed.held) == (0, True)
    assert [world.machine.orphans_of(session) for session in (1, 2, 3)] == [(ino,)] * 3
    assert world.last is not None and world.last.orphaned == {1: [ino], 2: [ino], 3: [ino]}
    world.write(ino, extent(0, 4, 2))
    assert world.attr(ino).nlink == 0 and len(world.extents(ino)) == 2
    world.do(api.Release((ino,)), 1)
    world.do(api.Release((ino,)), 1)
    world.do(api.Release((ino,)), 2)
    assert world.attr(ino).nlink == 0
    world.do(api.Release((ino,)), 3)
    assert world.last is not None and world.last.freed == [ino]
    assert world.ask(api.GetAttr(ino)).code == Code.STALE
    assert world.machine.references(block(1)) == 0
    world.sound()


def test_whoever_vouches_holds_nothing(world: World) -> None:
    ino = filled(world)
    removed = world.do(api.Remove(ROOT, b"f", not_held=(ino,)))
    assert not removed.held
    assert [world.machine.orphans_of(session) for session in (1, 2, 3)] == [(), (ino,), (ino,)]


def test_without_any_holder_a_file_is_freed_at_once() -> None:
    world = World()
    ino = filled(world)
    world.do(api.Remove(ROOT, b"f", not_held=(ino,)))
    assert world.ask(api.GetAttr(ino)).code == Code.STALE
    assert (world.machine.files, world.machine.file_bytes) == (1, 0)
    assert world.machine.candidates(1) == [(1, block(1))]
    world.sound()


def test_rename_over_an_open_file_keeps_it(world: World) -> None:
    old, new = filled(world, b"old"), filled(world, b"new")
    renamed = world.do(api.Rename(ROOT, b"new", ROOT, b"old", 0, (old,)), 2)
    assert (renamed.ino, renamed.replaced, renamed.replaced_nlink, renamed.held) == (new, old, 0, False)
    assert world.machine.orphans_of(1) == (old,) and world.machine.orphans_of(2) == ()
    assert world.machine.references(block(1)) == 2
    world.sound()


def test_a_removed_directory_is_empty_and_stays(world: World) -> None:
    ino = world.make(b"d", DIR)
    world.do(api.Remove(ROOT, b"d", True))
    assert world.names(ino) == [] and world.attr(ino).nlink == 0
    assert world.ask(api.Lookup(ino, b"x")).code == Code.NOT_FOUND
    for session in (1, 2, 3):
        world.do(api.Release((ino,)), session)
    assert world.ask(api.GetAttr(ino)).code == Code.STALE


@pytest.mark.parametrize("kind", [CommandKind.CLOSE_SESSION, CommandKind.EXPIRE_SESSION])
def test_a_session_that_ends_lets_go_of_everything(world: World, kind: CommandKind) -> None:
    inos = [filled(world, b"%d" % number) for number in range(7)]
    world.do(api.AllocateInos(5), 2)
    for number in range(7):
        world.do(api.Remove(ROOT, b"%d" % number, not_held=tuple(inos)))
    world.do(api.Release(tuple(inos)), 3)
    for _ in range(2):  # a repeated command finds nothing to do
        world.run(kind, ExpireSession(2) if kind == CommandKind.EXPIRE_SESSION else api.CloseSession(2))
    assert [session.id for session in world.machine.sessions()] == [1, 3]
    assert world.machine.orphans_of(2) == ()
    assert world.code(world.submit(api.Release(()), session=2)) == Code.UNKNOWN_SESSION
    world.sound()
    assert world.reclaim(budget=3) >= 3
    assert world.machine.files == 1
    assert not world.tables.range(b"O", b"P") and not world.tables.range(b"U", b"V")
    world.sound()


def test_sessions_that_come_later_hold_nothing(world: World) -> None:
    ino = filled(world)
    world.do(api.Remove(ROOT, b"f"))
    late = world.open(9)
    assert world.machine.orphans_of(late) == ()
    world.do(api.Release((ino,)), late)
    assert world.attr(ino).nlink == 0


def test_orphans_come_in_pages(world: World) -> None:
    inos = [filled(world, b"%d" % number) for number in range(5)]
    for number in range(5):
        world.do(api.Remove(ROOT, b"%d" % number))
    assert world.machine.orphans_of(1, 0, 2) == tuple(inos[:2])
    assert world.machine.orphans_of(1, inos[1], 2) == tuple(inos[2:4])
    assert world.machine.orphans_of(1, inos[4]) == ()
    assert world.machine.orphans_of(1, 1 << 70) == ()
    assert world.machine.orphans_of(1, -5, 1) == (inos[0],)


def test_a_removed_file_gets_no_new_name(world: World) -> None:
    ino = filled(world)
    world.do(api.Remove(ROOT, b"f"))
    assert world.fail(api.Link(ino, ROOT, b"g")) == Code.NOT_FOUND
