"""Queries: pages, paths, bounds; they change nothing."""

from __future__ import annotations

import msgspec
import pytest

from metadata import api
from metadata.server.leasing import spoken_of
from metadata.state import inodes as inodes_module
from metadata.state import query as query_module
from node.wire.errors import Code, FsError
from node.wire.limits import BODY_BYTES_MAX
from tests.unit.state.support import DIR, LNK, ROOT, World, extent


@pytest.fixture
def world() -> World:
    return World()


def listing(world: World, ino: int, limit: int, plus: bool = True) -> list[api.DirEntry]:
    found: list[api.DirEntry] = []
    after = b""
    while True:
        page = world.ask(api.ReadDir(ino, after, limit, plus))
        assert 0 < len(page.entries) <= limit or page.end
        found.extend(page.entries)
        if page.end:
            return found
        after = found[-1].name


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 1024, 1 << 40])
@pytest.mark.parametrize("plus", [True, False])
def test_pages_join_to_the_whole_directory(world: World, limit: int, plus: bool) -> None:
    names = sorted([b"a", b"aa", b"ab", b"b", b"\xff" * 255, b"\x01", b"z" * 255])
    inos = {name: world.make(name, LNK, target=b"x") for name in names if name != b"b"}
    inos[b"b"] = world.make(b"b", DIR)
    entries = listing(world, ROOT, limit, plus)
    assert [entry.name for entry in entries] == names
    assert [entry.ino for entry in entries] == [inos[name] for name in names]
    for entry in entries:
        assert entry.mode & 0o170000 == (DIR if entry.name == b"b" else LNK) & 0o170000
        assert entry.attr == (world.attr(entry.ino) if plus else None)


def test_a_page_ends_where_a_removed_name_was(world: World) -> None:
    for name in (b"a", b"b", b"c"):
        world.make(name)
    page = world.ask(api.ReadDir(ROOT, b"", 2))
    world.do(api.Remove(ROOT, b"b"))
    assert [entry.name for entry in world.ask(api.ReadDir(ROOT, page.entries[-1].name, 2)).entries] == [b"c"]
    assert world.ask(api.ReadDir(ROOT, b"x" * 4000, 2)).end


def test_pages_are_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        world.make(b"%03d" % number + b"x" * 200)
    monkeypatch.setattr(query_module, "READDIR_PAGE_BYTES_MAX", 1000)
    assert len(world.ask(api.ReadDir(ROOT, b"", 100)).entries) == 2
    assert len(listing(world, ROOT, 100)) == 20


def test_a_batch_never_outgrows_a_reply(world: World) -> None:
    directory = world.make(b"d", DIR)
    for low in range(0, 1024, 256):
        world.submit(*[api.Make(directory, b"%04d" % n + b"x" * 251, 0o100644, 0, 0) for n in range(low, low + 256)])
    ino = world.make(b"f")
    world.do(api.SetXattr(ino, b"user.a", b"x" * 60_000))
    queries: list[api.Query] = [api.ReadDir(directory, b"", 1024), api.GetXattr(ino, b"user.a")] * 512
    results = world.machine.query(queries)
    assert len(msgspec.msgpack.encode(api.ReadReply(results))) <= BODY_BYTES_MAX
    assert isinstance(results[0], api.Entries) and isinstance(results[1], api.Value)
    last = results[-1]
    assert isinstance(last, api.Failed) and last.code == Code.OVERLOADED
    with pytest.raises(FsError, match="TOO_BIG"):
        world.machine.query([api.StatVolume()] * 1025)


def test_paths(world: World) -> None:
    a = world.make(b"a", DIR)
    b = world.make(b"b", DIR, a)
    file = world.make(b"f", parent=b)
    assert world.ask(api.Walk(ROOT, (b"a", b"b", b"f"))).attr.ino == file
    assert world.ask(api.Walk(ROOT, ())).attr.ino == ROOT
    assert world.ask(api.Walk(b, (b"..", b".", b"b"))).attr.ino == b
    assert world.ask(api.Lookup(ROOT, b"..")).attr.ino == ROOT
    assert world.ask(api.Walk(ROOT, (b"a", b"x", b"f"))).code == Code.NOT_FOUND
    assert world.ask(api.Walk(ROOT, (b"a", b"b", b"f", b"x"))).code == Code.NOT_DIRECTORY
    assert world.ask(api.Lookup(file, b"..")).code == Code.NOT_DIRECTORY
    assert world.ask(api.Lookup(ROOT, b"x" * 256)).code == Code.NAME_TOO_LONG
    assert world.ask(api.Lookup(ROOT, b"a/b")).code == Code.INVALID
    assert world.ask(api.Lookup(99, b"a")).code == Code.STALE
    assert world.ask(api.Walk(ROOT, (b"a",) * 257)).code == Code.NAME_TOO_LONG


def test_extents_come_in_pages_and_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = world.make(b"f")
    monkeypatch.setattr(query_module, "EXTENT_PAGE_MAX", 3)
    extents = [extent(10 * n, 5, n) for n in range(10)]
    world.write(ino, *extents)
    assert world.extents(ino) == extents
    assert world.ask(api.GetExtents(ino, 12, 20)).extents == tuple(extents[1:4])
    assert world.ask(api.GetExtents(ino, 15, 5)).extents == ()
    assert world.ask(api.GetExtents(ino, 0, 0)).extents == ()
    assert world.ask(api.GetExtents(ino, 1 << 63, 1 << 63)).extents == ()
    assert world.ask(api.GetExtents(ino, -1, 5)).code == Code.INVALID
    assert world.ask(api.GetExtents(ROOT, 0, 5)).code == Code.IS_DIRECTORY


def test_the_volume_counts_inodes_and_covered_bytes(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 5, 1), size=100)
    assert world.ask(api.StatVolume()) == api.VolumeStat(0, 0, 2, 5)


def test_queries_change_nothing_and_the_cache_stays_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inos = [world.make(b"%d" % number) for number in range(50)]
    digest = world.machine.digest()
    monkeypatch.setattr(inodes_module, "INODE_CACHE_MAX", 10)
    for ino in inos:
        world.ask(api.GetAttr(ino))
        assert world.machine.statistics()["inode_cache"] <= 10
    assert world.machine.digest() == digest
    world.make(b"more")
    world.sound()


def test_pages_want_at_least_one_entry(world: World) -> None:
    assert world.ask(api.ReadDir(ROOT, b"", 0)).code == Code.INVALID
    assert world.ask(api.ReadDir(ROOT, b"", -1)).code == Code.INVALID
    assert world.ask(api.ReadDir(world.make(b"f"), b"", 1)).code == Code.NOT_DIRECTORY


def test_extents_of_what_a_look_up_has_found(world: World) -> None:
    """Not those of a file that another one found, nor of anything where nothing was found."""
    a, b = world.make(b"a"), world.make(b"b")
    world.make(b"d", DIR)
    world.write(a, extent(0, 5, 1))
    world.write(b, extent(0, 7, 2))
    found = api.GetExtents(api.FOUND, 0, 100)
    queries = [found, api.Lookup(ROOT, b"a"), found, api.GetAttr(ROOT), found, api.Lookup(ROOT, b"b"), found]
    for name in (b"missing", b"d", b"/"):
        queries += [api.Lookup(ROOT, b"a"), api.Lookup(ROOT, name), found]
    results = world.machine.query(queries)
    extents = [getattr(one, "extents", one) for query, one in zip(queries, results) if query == found]
    assert extents[1:4] == [(extent(0, 5, 1),), (extent(0, 5, 1),), (extent(0, 7, 2),)]
    assert [one.code for one in (extents[0], *extents[4:])] == [Code.NOT_FOUND] * 4  # type: ignore[union-attr]
    assert results[2].attr.ino == a  # type: ignore[union-attr]
    assert world.machine.query([found])[0].code == Code.NOT_FOUND  # type: ignore[union-attr]
    assert spoken_of(queries[1:3], results[1:3]) == [ROOT, a]
