"""Commits, truncates, punches and clones: bytes, sizes, times, block references, epochs."""

from __future__ import annotations

import pytest

from metadata import api
from metadata.state import data as data_module
from metadata.state.command import AdoptBlocks, AdvanceEpoch, BlocksReply, CommandKind, ForgetBlocks
from node.wire.errors import Code
from node.wire.limits import BLOCK_BYTES_MAX, CHUNK_EXTENTS_MAX, FILE_BYTES_MAX, INLINE_EXTENTS_MAX
from tests.unit.state.support import DIR, ROOT, World, block, extent, small_geometry

CHUNK = BLOCK_BYTES_MAX


@pytest.fixture
def world() -> World:
    return World()


def whole(chunk: int, number: int) -> api.Extent:
    """A whole block at its chunk."""
    return api.Extent(chunk * CHUNK, CHUNK, block(number), 0, CHUNK)


def advance(world: World) -> int:
    world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(world.machine.gc_epoch))
    return world.machine.gc_epoch


def test_a_commit_brings_bytes_size_and_times_together(world: World) -> None:
    ino = world.make(b"f")
    before = world.attr(ino)
    committed = world.write(ino, extent(0, 10, 1), size=100)
    after = world.attr(ino)
    assert committed.attr == after
    assert (after.size, after.stored) == (100, 10)
    assert after.data_version == before.data_version + 1 and after.version > before.version
    assert after.ctime_ns == world.machine.time_ns and after.mtime_ns == before.mtime_ns + 1
    assert world.machine.file_bytes == 10
    world.write(ino, size=5)
    assert world.attr(ino).size == 100


def test_the_size_covers_the_extents(world: World) -> None:
    ino = world.make(b"f")
    assert world.write(ino, extent(50, 10, 1), size=0).attr.size == 60


def test_each_commit_of_data_raises_mtime(world: World) -> None:
    ino = world.make(b"f", mtime_ns=1000)
    assert world.do(api.Commit(ino, (), 5, 900, 1)).attr.mtime_ns == 1001
    assert world.do(api.Commit(ino, (), 5, 5000, 1)).attr.mtime_ns == 5000
    assert world.do(api.Commit(ino, (), 5, 5000, 1)).attr.mtime_ns == 5001
    assert world.do(api.SetAttr(ino, size=1, mtime_ns=7)).attr.mtime_ns == 5002
    assert world.do(api.SetAttr(ino, mtime_ns=7)).attr.mtime_ns == 7
    assert world.do(api.PunchHole(ino, 0, 1)).attr.mtime_ns == world.machine.time_ns
    assert world.do(api.Commit(ino, (), 5, 1 << 63, 1)).attr.mtime_ns == (1 << 63) - 1
    assert world.do(api.Commit(ino, (), 5, 1 << 63, 1)).attr.mtime_ns == (1 << 63) - 1


def test_overwriting_splits_and_counts_references(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 30, 1))
    world.write(ino, extent(10, 10, 2))
    assert [(e.offset, e.length, e.block_offset) for e in world.extents(ino)] == [(0, 10, 0), (10, 10, 0), (20, 10, 20)]
    assert (world.machine.references(block(1)), world.machine.references(block(2))) == (2, 1)
    world.write(ino, extent(10, 10, 1, 10, 30))
    assert world.extents(ino) == [extent(0, 30, 1)]
    assert world.machine.references(block(1)) == 1
    assert world.machine.candidates(1) == [(1, block(2))]
    world.sound()


def test_truncated_bytes_read_as_zeros_when_the_file_grows_again(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 30, 1))
    shorter = world.do(api.SetAttr(ino, size=10)).attr
    longer = world.do(api.SetAttr(ino, size=30)).attr
    assert (shorter.size, shorter.stored, longer.size, longer.stored) == (10, 10, 30, 10)
    assert longer.data_version == shorter.data_version + 1
    assert world.extents(ino) == [api.Extent(0, 10, block(1), 0, 30)]
    world.sound()


def test_sizes_and_ranges_that_cannot_be(world: World) -> None:
    ino, directory = world.make(b"f"), world.make(b"d", DIR)
    assert world.fail(api.SetAttr(ino, size=-1)) == Code.INVALID
    assert world.fail(api.SetAttr(ino, size=FILE_BYTES_MAX + 1)) == Code.FILE_TOO_BIG
    assert world.fail(api.SetAttr(directory, size=0)) == Code.IS_DIRECTORY
    assert world.fail(api.Commit(directory, (), 0, 0, 1)) == Code.IS_DIRECTORY
    assert world.fail(api.Commit(ino, (), 1 << 63, 0, 1)) == Code.FILE_TOO_BIG
    assert world.fail(api.Commit(ino, (extent(5, 1, 1), extent(5, 1, 1)), 0, 0, 1)) == Code.INVALID
    assert world.fail(api.Commit(ino, (extent(CHUNK - 1, 2, 1, 0),), 0, 0, 1)) == Code.INVALID
    assert world.fail(api.Commit(ino, (extent(0, 1, 1),) * 4097, 0, 0, 1)) == Code.TOO_BIG
    assert world.fail(api.PunchHole(ino, 0, 0)) == Code.INVALID
    assert world.fail(api.PunchHole(ino, -1, 5)) == Code.INVALID
    assert world.fail(api.PunchHole(ino, FILE_BYTES_MAX, 1)) == Code.FILE_TOO_BIG
    assert world.do(api.SetAttr(ino, size=FILE_BYTES_MAX)).attr.size == FILE_BYTES_MAX
    last = FILE_BYTES_MAX - 1
    assert world.write(ino, api.Extent(last, 1, block(1), 0, 1)).attr.size == FILE_BYTES_MAX
    assert world.extents(ino, last, last + 1) == [api.Extent(last, 1, block(1), 0, 1)]
    world.sound()


def test_base_version_guards_a_commit(world: World) -> None:
    ino = world.make(b"f")
    seen = world.attr(ino).data_version
    world.do(api.SetAttr(ino, mode=0o600))
    world.write(ino, extent(0, 1, 1), base_version=seen)
    assert world.fail(api.Commit(ino, (extent(0, 1, 2),), 1, 0, 1, base_version=seen)) == Code.VERSION_MISMATCH
    assert world.extents(ino) == [extent(0, 1, 1)]


def test_a_merge_changes_blocks_and_nothing_that_programs_see(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 10, 1), extent(10, 10, 2), extent(30, 10, 3))
    before = world.attr(ino)
    merged = api.Extent(0, 20, block(4), 0, 20)
    landed = world.do(
        api.Commit(ino, (merged,), 20, 0, 1, base_version=before.data_version, merge=True)
    ).attr
    assert world.extents(ino) == [merged, extent(30, 10, 3)]
    assert (landed.size, landed.stored, landed.mtime_ns, landed.ctime_ns) == (
        before.size, before.stored, before.mtime_ns, before.ctime_ns
    )
    assert landed.data_version > before.data_version and landed.version > before.version
    world.sound()
    now = landed.data_version
    for wrong in (
        api.Commit(ino, (merged,), 20, 0, 1, merge=True),
        api.Commit(ino, (merged,), 20, 0, 1, base_version=now, merge=True, append=True),
        api.Commit(ino, (api.Extent(0, 25, block(5), 0, 25),), 25, 0, 1, base_version=now, merge=True),
        api.Commit(ino, (api.Extent(30, 20, block(5), 0, 20),), 50, 0, 1, base_version=now, merge=True),
        api.Commit(ino, (merged,), 41, 0, 1, base_version=now, merge=True),
    ):
        assert world.fail(wrong) == Code.INVALID
    stale = api.Commit(ino, (merged,), 20, 0, 1, base_version=before.data_version, merge=True)
    assert world.fail(stale) == Code.VERSION_MISMATCH
    world.sound()


def test_appends_land_at_the_true_end(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 10, 1))
    landed = world.do(api.Commit(ino, (extent(0, 8, 2),), 8, 0, 1, append=True, expected_size=0))
    assert (landed.offset, landed.attr.size) == (10, 18)
    landed = world.do(api.Commit(ino, (extent(30, 5, 3),), 40, 0, 1, append=True, expected_size=30))
    assert (landed.offset, landed.attr.size) == (18, 28)
    assert [(e.offset, e.length) for e in world.extents(ino)] == [(0, 10), (10, 8), (18, 5)]
    assert world.fail(api.Commit(ino, (extent(0, 5, 3),), 9, 0, 1, append=True, expected_size=3)) == Code.INVALID
    assert world.fail(api.Commit(ino, (), 2, 0, 1, append=True, expected_size=3)) == Code.INVALID
    world.do(api.SetAttr(ino, size=FILE_BYTES_MAX - 2))
    op = api.Commit(ino, (extent(0, 3, 3),), 3, 0, 1, append=True, expected_size=0)
    assert world.fail(op) == Code.FILE_TOO_BIG
    world.sound()


def test_a_moved_append_is_split_at_chunks(world: World) -> None:
    ino = world.make(b"f", size=10)
    extents = (whole(0, 1), whole(1, 2))
    op = api.Commit(ino, extents, 2 * CHUNK, 0, 1, append=True, expected_size=0)
    assert world.do(op).attr.size == 2 * CHUNK + 10
    assert [(e.offset, e.length, e.block_offset) for e in world.extents(ino)] == [
        (10, CHUNK - 10, 0),
        (CHUNK, 10, CHUNK - 10),
        (CHUNK + 10, CHUNK - 10, 0),
        (2 * CHUNK, 10, CHUNK - 10),
    ]
    assert world.machine.references(block(1)) == 2
    world.sound()


def test_many_extents_move_to_rows_and_back(world: World) -> None:
    ino = world.make(b"f")
    count = INLINE_EXTENTS_MAX + 1
    world.write(ino, *[whole(number, number) for number in range(count)])
    assert len(world.tables.range(b"X", b"Y")) == count
    assert len(world.extents(ino)) == count
    world.write(ino, extent(5 * CHUNK + 7, 3, 99, 0, 3))
    assert len(world.extents(ino)) == count + 2
    world.sound()
    world.do(api.SetAttr(ino, size=0))
    assert not world.tables.range(b"X", b"Y") and world.attr(ino).stored == 0
    world.write(ino, extent(0, 5, 1))
    assert not world.tables.range(b"X", b"Y")
    world.sound()


def test_a_chunk_holds_so_many_extents_and_no_more(world: World) -> None:
    ino = world.make(b"f")
    op = api.Commit(ino, tuple(extent(2 * n, 1, n, 0, 1) for n in range(CHUNK_EXTENTS_MAX)), 0, 0, 1)
    world.do(op)
    assert world.fail(api.Commit(ino, (extent(2 * CHUNK_EXTENTS_MAX, 1, 1, 0, 1),), 0, 0, 1)) == Code.TOO_BIG
    world.write(ino, extent(0, 2 * CHUNK_EXTENTS_MAX, 1))
    assert len(world.extents(ino)) == 1
    world.sound()


def test_old_touches_are_refused(world: World) -> None:
    ino = world.make(b"f")
    assert world.fail(api.Commit(ino, (extent(0, 1, 1),), 1, 0, 2)) == Code.INVALID
    epoch = [advance(world) for _ in range(3)][-1]
    for op in (
        api.Commit(ino, (extent(0, 1, 1),), 1, 0, epoch - 2),
        api.Make(ROOT, b"g", 0o100644, 0, 0, size=1, extents=(extent(0, 1, 1),), touch_epoch=epoch - 2),
    ):
        assert world.fail(op) == Code.STALE_EPOCH
    world.do(api.Commit(ino, (extent(0, 1, 1),), 1, 0, epoch - 1))
    world.do(api.Commit(ino, (), 5, 0, 0))  # nothing is referenced, so no touch is asked for


def test_candidates_come_and_go_with_references(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 1, 1))
    advance(world)
    world.write(ino, extent(0, 1, 2))
    assert world.machine.candidates(1) == [] and world.machine.candidates(2) == [(2, block(1))]
    world.write(ino, extent(5, 1, 1))
    assert world.machine.candidates(9) == []
    world.do(api.SetAttr(ino, size=0))
    assert {name for _, name in world.machine.candidates(2)} == {block(1), block(2)}
    first = world.machine.candidates(2, limit=1)
    assert world.machine.candidates(2, first[0]) == [c for c in world.machine.candidates(2) if c != first[0]]
    world.sound()


def test_forgetting_and_adopting_blocks(world: World) -> None:
    ino = world.make(b"f")
    world.write(ino, extent(0, 1, 1), extent(1, 1, 2))
    world.write(ino, extent(0, 1, 3))
    names = (block(1), block(2), block(9), b"short")
    assert world.run(CommandKind.FORGET_BLOCKS, ForgetBlocks(names, 0)) == BlocksReply(0)
    assert world.run(CommandKind.FORGET_BLOCKS, ForgetBlocks(names, 1)) == BlocksReply(1)
    assert world.machine.candidates(5) == [] and world.machine.references(block(2)) == 1
    assert world.run(CommandKind.ADOPT_BLOCKS, AdoptBlocks(names)) == BlocksReply(2)
    assert world.run(CommandKind.ADOPT_BLOCKS, AdoptBlocks(names)) == BlocksReply(0)
    assert {name for _, name in world.machine.candidates(1)} == {block(1), block(9)}
    world.sound()


def test_clones_share_live_blocks(world: World) -> None:
    source, target = world.make(b"s"), world.make(b"t")
    world.write(source, whole(0, 1), whole(2, 2), size=3 * CHUNK)
    world.write(target, whole(1, 3))
    cloned = world.do(api.CloneRange(source, 0, target, 0, 3 * CHUNK)).attr
    assert (cloned.size, cloned.stored) == (3 * CHUNK, 2 * CHUNK)
    assert world.extents(target) == world.extents(source)
    assert [world.machine.references(block(number)) for number in (1, 2, 3)] == [2, 2, 0]
    world.do(api.CloneRange(source, 0, target, 5 * CHUNK + 10, 99 * CHUNK))
    assert world.attr(target).size == 8 * CHUNK + 10
    assert world.machine.references(block(1)) == 4
    unchanged = world.attr(target)
    assert world.do(api.CloneRange(source, 9 * CHUNK, target, 0, CHUNK)).attr == unchanged
    assert world.fail(api.CloneRange(source, 0, source, CHUNK, CHUNK + 1)) == Code.INVALID
    assert world.fail(api.CloneRange(source, 0, ROOT, 0, 1)) == Code.IS_DIRECTORY
    assert world.fail(api.CloneRange(source, 0, 999, 0, 1)) == Code.STALE
    assert world.fail(api.CloneRange(source, -1, target, 0, 1)) == Code.INVALID
    assert world.fail(api.CloneRange(source, 0, target, FILE_BYTES_MAX, 1)) == Code.FILE_TOO_BIG
    world.do(api.CloneRange(source, 0, source, 3 * CHUNK, 3 * CHUNK))
    world.sound()


def big(world: World, name: bytes, chunks: int) -> int:
    ino = world.make(name)
    for low in range(0, chunks, 4096):
        world.write(ino, *[whole(number, number) for number in range(low, min(low + 4096, chunks))])
    return ino


@pytest.mark.parametrize("how", ["remove", "truncate"])
def test_a_large_file_goes_in_paced_steps(world: World, how: str) -> None:
    ino = big(world, b"f", 5000)
    if how == "remove":
        world.do(api.Remove(ROOT, b"f", not_held=(ino,)))
    else:
        assert world.do(api.SetAttr(ino, size=0)).attr.stored == 0
    assert world.machine.file_bytes == 0
    assert len(world.tables.range(b"X", b"Y")) == 5000  # nothing was walked in that entry
    world.sound()
    assert world.reclaim(budget=1000) == 6
    assert not world.tables.range(b"X", b"Y")
    assert len(world.machine.candidates(1, limit=10_000)) == 5000
    world.sound()


@pytest.mark.parametrize("how", ["truncate", "punch"])
def test_a_large_range_goes_in_paced_steps(world: World, how: str) -> None:
    ino = big(world, b"f", 3000)
    low = 100 * CHUNK + 5
    world.do(api.SetAttr(ino, size=low) if how == "truncate" else api.PunchHole(ino, low, 2500 * CHUNK))
    world.do(api.SetAttr(ino, size=3000 * CHUNK))
    edges = [(e.offset, e.length) for e in world.extents(ino) if e.length < CHUNK]
    assert edges[0] == (100 * CHUNK, 5)
    assert len(world.extents(ino)) == (101 if how == "truncate" else 501)
    assert len(world.tables.range(b"X", b"Y")) > 2500
    world.write(ino, whole(1500, 7777))  # into the middle of what is on its way out
    assert whole(1500, 7777) in world.extents(ino)
    world.sound()
    while world.machine.reclaim_pending():
        world.reclaim(budget=700)
        world.sound()
    left = world.extents(ino)
    assert whole(1500, 7777) in left and len(left) == (102 if how == "truncate" else 502)
    assert world.attr(ino).stored == sum(e.length for e in left) == world.machine.file_bytes


def test_too_many_large_removals_at_once_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    small_geometry(monkeypatch)
    ino = world.make(b"f")
    world.write(ino, *[api.Extent(16 * n, 16, block(n), 0, 16) for n in range(200)])
    for number in range(8):
        world.do(api.PunchHole(ino, 16 * (20 * number + 1), 16 * 10))
    assert world.fail(api.PunchHole(ino, 16 * 161, 16 * 10)) == Code.BUSY
    world.do(api.SetAttr(ino, size=1))  # takes the others in
    world.sound()
    world.reclaim()
    assert world.extents(ino) == [api.Extent(0, 1, block(0), 0, 16)]


def test_freeing_a_file_frees_its_attributes(world: World) -> None:
    few, many = world.make(b"few"), world.make(b"many")
    world.do(api.SetXattr(few, b"user.a", b"1"))
    for number in range(40):
        world.do(api.SetXattr(many, b"user.%d" % number, b"1"))
    world.do(api.Remove(ROOT, b"few", not_held=(few,)))
    assert not world.machine.reclaim_pending()
    world.do(api.Remove(ROOT, b"many", not_held=(many,)))
    world.sound()
    world.reclaim(budget=7)
    assert not world.tables.range(b"E", b"F")
    world.sound()


def test_one_submit_does_only_so_much(world: World) -> None:
    source, target = big(world, b"s", 4096), world.make(b"t")
    clone = api.CloneRange(source, 0, target, 0, 4096 * CHUNK)
    results = world.submit(*[clone] * 20, api.Remove(ROOT, b"t"))
    failed = [result for result in results if isinstance(result, api.Failed)]
    assert 5 < len(results) - len(failed) < 20
    assert {result.code for result in failed} == {Code.OVERLOADED}
    assert failed == list(results[-len(failed) :])
    world.do(api.Remove(ROOT, b"t"))
    world.sound()


def test_a_busy_submit_leaves_truncates_to_jobs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "SUBMIT_WORK_MAX", 1000)
    inos = [big(world, b"%d" % number, 200) for number in range(5)]
    world.submit(*[api.SetAttr(ino, size=5) for ino in inos])
    assert world.machine.reclaim_pending()
    assert [world.extents(ino) for ino in inos] == [[api.Extent(0, 5, block(0), 0, CHUNK)]] * 5
    world.sound()
    world.reclaim()
    assert world.machine.file_bytes == 25
    world.sound()
