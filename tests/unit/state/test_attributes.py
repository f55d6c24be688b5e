"""Attributes and extended attributes."""

from __future__ import annotations

import stat

import pytest

from metadata import api
from node.wire.errors import Code
from tests.unit.state.support import DIR, FILE, ROOT, World


@pytest.fixture
def world() -> World:
    return World()


def test_only_permission_bits_of_a_mode_count(world: World) -> None:
    ino = world.make(b"f")
    assert world.do(api.SetAttr(ino, mode=stat.S_IFDIR | 0o4711)).attr.mode == stat.S_IFREG | 0o4711
    for mode in (-1, 1 << 16, 1 << 60):
        assert world.fail(api.SetAttr(ino, mode=mode)) == Code.INVALID


def test_a_file_that_changes_hands_loses_its_bits(world: World) -> None:
    ino = world.make(b"f", stat.S_IFREG | 0o6755)
    assert world.do(api.SetAttr(ino, uid=5)).attr.mode == FILE & ~0o777 | 0o755
    world.do(api.SetAttr(ino, mode=0o6745))
    assert world.do(api.SetAttr(ino, gid=5)).attr.mode & 0o7777 == 0o2745  # mandatory locking, not setgid
    assert world.do(api.SetAttr(ino, uid=6, mode=0o6755)).attr.mode & 0o7777 == 0o6755
    assert world.do(api.SetAttr(ino, size=0, drop_setid=True)).attr.mode & 0o7777 == 0o755
    directory = world.make(b"d", DIR | stat.S_ISGID)
    assert world.do(api.SetAttr(directory, gid=7)).attr.mode & 0o7777 == 0o2755
    assert world.fail(api.SetAttr(ino, uid=1 << 32)) == Code.INVALID
    assert world.fail(api.SetAttr(ino, gid=-1)) == Code.INVALID


def test_times_are_taken_given_or_left(world: World) -> None:
    ino = world.make(b"f")
    attr = world.do(api.SetAttr(ino, atime_ns=-5_000_000_000, mtime_ns=api.TIME_NOW)).attr
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (-5_000_000_000, *[world.machine.time_ns] * 2)
    attr = world.do(api.SetAttr(ino, mtime_ns=1 << 63, atime_ns=-(1 << 63))).attr
    assert (attr.mtime_ns, attr.atime_ns) == ((1 << 63) - 1, world.machine.time_ns), "TIME_NOW is no time"
    attr = world.do(api.SetAttr(ino, mtime_ns=-1, atime_ns=1 - (1 << 63))).attr
    assert (attr.mtime_ns, attr.atime_ns) == (-1, 1 - (1 << 63))
    before = world.attr(ino)
    assert world.do(api.SetAttr(ino, atime_ns=1, ctime_ns=5)).attr.ctime_ns == before.ctime_ns  # never backwards
    assert world.do(api.SetAttr(ino, atime_ns=1, ctime_ns=1 << 62)).attr.ctime_ns == 1 << 62


def test_setting_nothing_changes_nothing(world: World) -> None:
    ino = world.make(b"f")
    before = world.attr(ino)
    assert world.do(api.SetAttr(ino)).attr == before == world.attr(ino)
    assert world.fail(api.SetAttr(77)) == Code.STALE


def test_versions_never_repeat(world: World) -> None:
    ino = world.make(b"f")
    seen = {world.attr(ino).version}
    for op in (
        api.SetAttr(ino, mode=0o600),
        api.SetAttr(ino, size=5),
        api.SetXattr(ino, b"user.a", b"1"),
        api.RemoveXattr(ino, b"user.a"),
        api.Commit(ino, (), 9, 0, 1),
        api.PunchHole(ino, 0, 1),
        api.Link(ino, ROOT, b"g"),
        api.Rename(ROOT, b"g", ROOT, b"h"),
        api.Remove(ROOT, b"f"),
    ):
        world.do(op)
        version = world.attr(ino).version
        assert version > max(seen)
        seen.add(version)


def test_extended_attributes(world: World) -> None:
    ino = world.make(b"f")
    world.do(api.SetXattr(ino, b"user.b", b"\0\xff"))
    world.do(api.SetXattr(ino, b"user.a", b""))
    assert world.ask(api.ListXattr(ino)).names == (b"user.a", b"user.b")
    assert world.ask(api.GetXattr(ino, b"user.b")).value == b"\0\xff"
    assert world.ask(api.GetXattr(ino, b"user.c")).code == Code.NO_ATTRIBUTE
    assert world.ask(api.GetXattr(ino, b"")).code == Code.RANGE
    assert world.ask(api.ListXattr(99)).code == world.ask(api.GetXattr(99, b"user.a")).code == Code.STALE
    assert world.fail(api.SetXattr(ino, b"user.a", b"", api.XATTR_CREATE)) == Code.EXISTS
    assert world.fail(api.SetXattr(ino, b"user.c", b"", api.XATTR_REPLACE)) == Code.NO_ATTRIBUTE
    assert world.fail(api.SetXattr(ino, b"user.c", b"", 3)) == Code.INVALID
    assert world.fail(api.SetXattr(ino, b"user\0", b"")) == Code.INVALID
    assert world.fail(api.SetXattr(ino, b"u" * 256, b"")) == Code.RANGE
    assert world.fail(api.SetXattr(ino, b"user.c", b"x" * 65_537)) == Code.TOO_BIG
    assert world.fail(api.RemoveXattr(ino, b"user.c")) == Code.NO_ATTRIBUTE
    world.sound()


def test_extended_attributes_share_one_bound(world: World) -> None:
    ino = world.make(b"f")
    world.do(api.SetXattr(ino, b"user.a", b"x" * 40_000))
    assert world.fail(api.SetXattr(ino, b"user.b", b"x" * 40_000)) == Code.NO_SPACE
    world.do(api.SetXattr(ino, b"user.a", b"x" * 20_000))
    world.do(api.SetXattr(ino, b"user.b", b"x" * 40_000))
    world.do(api.RemoveXattr(ino, b"user.b"))
    world.do(api.SetXattr(ino, b"user.c", b"x" * 40_000))
    world.sound()
