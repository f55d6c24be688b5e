"""Data that comes with commits: kept as long as it must be, moved by the rules of a commit, bounded, and replayed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from metadata import api
from metadata.state import keys
from metadata.state import logged as logged_module
from metadata.state.audit import Auditor
from metadata.state.check import check
from metadata.state.command import (
    HEADER_BYTES,
    AdvanceEpoch,
    BlocksReply,
    CommandKind,
    ForgetBlocks,
    MoveOut,
    RegisterServer,
    SetTable,
    TableItem,
    encode_command,
)
from metadata.state.machine import Machine, digest
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code
from node.wire.limits import LOG_DATA_COMMIT_BYTES, LOG_DATA_ENTRY_BYTES, LOG_DATA_PAGE_BYTES, LOG_DATA_ROW_BYTES
from storage.api import group_of, name_block
from tests.unit.state.support import World, replay


def carried(ino: int, *parts: tuple[int, bytes], **more: Any) -> api.Commit:
    """A commit of bytes at offsets, which come along."""
    extents = tuple([api.Extent(at, len(plain), name_block(plain), 0, len(plain)) for at, plain in parts])
    size = parts[-1][0] + len(parts[-1][1])
    return api.Commit(ino, extents, size, 0, 0, data=b"".join([plain for _, plain in parts]), **more)


def held(world: World) -> dict[bytes, bytes]:
    return {key[1:]: value for key, value in world.tables.range(keys.LOGGED, keys.prefix_end(keys.LOGGED))}


def placed(world: World, groups: int = 4) -> None:
    """Give the volume one chunk server and a table."""
    world.run(CommandKind.REGISTER_SERVER, RegisterServer(b"u" * 16, "s", "mem:1", "h", "", 1.0, 1 << 30))
    world.run(CommandKind.SET_TABLE, SetTable(0, tuple([TableItem(n, (1,)) for n in range(groups)]), groups))


def move(world: World, *blocks: bytes, epoch: int = 0, pg_epoch: int = 0) -> Any:
    body = MoveOut(blocks, epoch or world.machine.gc_epoch, pg_epoch or world.machine.pg_epoch)
    return world.run(CommandKind.MOVE_OUT, body)


def test_what_came_along_is_answered_with_the_extents_and_by_name() -> None:
    world = World()
    ino = world.make(b"f")
    world.do(carried(ino, (0, b"one"), (10, b"two")))
    assert world.attr(ino).size == 13
    page = world.ask(api.GetExtents(ino, 0, 100))
    assert dict(page.data) == held(world) == {name_block(b"one"): b"one", name_block(b"two"): b"two"}
    assert world.ask(api.GetBlock(name_block(b"two"))) == api.Value(b"two")
    assert world.ask(api.GetBlock(name_block(b"three"))).code == Code.MISSING_BLOCK
    assert world.ask(api.GetBlock(b"")).code == Code.MISSING_BLOCK
    assert world.machine.logged_among([name_block(b"one"), b"x" * 32]) == (name_block(b"one"),)
    world.sound()


def test_no_touch_is_asked_of_it_however_old_the_epochs_are() -> None:
    world = World()
    placed(world)
    for _ in range(5):
        world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(world.machine.gc_epoch))
    ino = world.make(b"f")
    put = api.Commit(ino, carried(ino, (0, b"a")).extents, 1, 0, 0)
    assert world.fail(put) == Code.STALE_EPOCH
    world.do(carried(ino, (0, b"a")))
    world.sound()


def test_what_nothing_references_any_more_leaves_at_once() -> None:
    world = World()
    ino, other = world.make(b"f"), world.make(b"g")
    world.do(carried(ino, (0, b"first")))
    world.do(api.CloneRange(ino, 0, other, 0, 5))
    world.do(carried(ino, (0, b"later")))
    assert set(held(world).values()) == {b"first", b"later"}, "the clone has it still"
    world.sound()
    world.do(api.SetAttr(other, size=0))
    assert set(held(world).values()) == {b"later"}
    world.do(api.Remove(1, b"f", not_held=(ino,)))
    assert not held(world) and world.machine.logged_blocks == 0
    world.sound()
    epoch = world.machine.gc_epoch
    assert world.run(CommandKind.FORGET_BLOCKS, ForgetBlocks((name_block(b"first"),), epoch)) == BlocksReply(1)
    world.do(carried(other, (0, b"first")))
    assert set(held(world).values()) == {b"first"}
    world.sound()


def test_the_same_bytes_are_kept_once_and_again_after_they_were_moved() -> None:
    world = World()
    placed(world)
    ino = world.make(b"f")
    world.do(carried(ino, (0, b"same"), (4, b"same"), (100, b"same")))
    cost = world.machine._shard.logged.cost
    assert cost == len(b"same") + LOG_DATA_ROW_BYTES
    world.do(carried(ino, (200, b"same")))
    assert world.machine._shard.logged.cost == cost
    assert move(world, name_block(b"same")) == BlocksReply(1)
    assert not held(world)
    assert world.ask(api.GetExtents(ino, 0, 300)).data == ()
    world.do(carried(ino, (300, b"same")))
    assert held(world), "it may be damaged where it is: who writes it again makes that good"
    world.sound()


def test_moving_needs_a_touch_that_counts() -> None:
    world = World()
    placed(world)
    ino = world.make(b"f")
    world.do(carried(ino, (0, b"a")))
    epoch = world.machine.gc_epoch
    world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(epoch))
    world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(epoch + 1))
    assert move(world, name_block(b"a"), epoch=epoch).code is Code.STALE_EPOCH
    assert move(world, name_block(b"a"), epoch=epoch + 3).code is Code.INVALID, "it has not begun"
    assert held(world)
    assert move(world, name_block(b"a"), epoch=epoch + 1) == BlocksReply(1)
    assert not held(world)
    assert move(world, name_block(b"a"), name_block(b"b")) == BlocksReply(0)
    world.sound()


def test_a_block_whose_group_has_changed_stays_and_holds_up_no_other() -> None:
    world = World()
    placed(world)
    ino = world.make(b"f")
    plain = [b"%d" % number for number in range(20)]
    world.do(carried(ino, *[(100 * at, one) for at, one in enumerate(plain)]))
    before = world.machine.pg_epoch
    world.run(CommandKind.SET_TABLE, SetTable(before, (TableItem(2, (1,)),)))
    assert world.machine.groups[2].changed > before
    stay = {name_block(one) for one in plain if group_of(name_block(one), 4) == 2}
    assert 0 < len(stay) < 20
    assert move(world, *map(name_block, plain), pg_epoch=before) == BlocksReply(20 - len(stay))
    assert held(world).keys() == stay
    world.sound()


def test_what_is_not_what_it_says_is_refused() -> None:
    world = World()
    ino = world.make(b"f")
    good = carried(ino, (0, b"bytes"))
    extent = good.extents[0]
    for bad in (
        api.Commit(ino, good.extents, 5, 0, 0, data=b"bytez"),
        api.Commit(ino, good.extents, 5, 0, 0, data=b"byte"),
        api.Commit(ino, good.extents, 5, 0, 0, data=b"bytes!"),
        api.Commit(ino, (), 5, 0, 0, data=b"bytes"),
        api.Commit(ino, (api.Extent(0, 4, extent.block, 1, 5),), 5, 0, 0, data=b"ytes"),
        api.Commit(ino, (api.Extent(0, 4, extent.block, 0, 5),), 5, 0, 0, data=b"byte"),
    ):
        assert world.fail(bad) == Code.INVALID
    world.do(good)
    version = world.attr(ino).data_version
    assert world.fail(carried(ino, (0, b"bytes"), base_version=version, merge=True)) == Code.INVALID
    world.sound()


def test_how_much_may_come_along() -> None:
    world = World()
    ino = world.make(b"f")
    world.do(carried(ino, (0, bytes(LOG_DATA_COMMIT_BYTES))))
    assert world.fail(carried(ino, (0, bytes(LOG_DATA_COMMIT_BYTES + 1)))) == Code.TOO_BIG
    most = LOG_DATA_ENTRY_BYTES // LOG_DATA_COMMIT_BYTES
    op = carried(ino, (0, bytes(LOG_DATA_COMMIT_BYTES)))
    assert len(world.submit(*[op] * most)) == most
    assert world.submit(*[op] * most, carried(ino, (0, b"a"))).code is Code.TOO_BIG
    world.sound()


def test_the_state_holds_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged_module, "LOG_DATA_STATE_BYTES", 3 * (LOG_DATA_ROW_BYTES + 10))
    world = World()
    placed(world)
    ino = world.make(b"f")
    for number in range(3):
        world.do(carried(ino, (10 * number, b"%010d" % number)))
    assert world.machine.logged_room_bytes == 0
    assert world.fail(carried(ino, (100, b"x"))) == Code.LOG_FULL
    world.do(carried(ino, (100, b"%010d" % 1)))  # which is there
    world.do(api.SetAttr(ino, size=20))
    world.do(carried(ino, (100, b"x")))
    assert move(world, name_block(b"x"), name_block(b"%010d" % 0)) == BlocksReply(2)
    world.sound()


def test_an_append_that_lands_elsewhere_keeps_its_blocks_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    ino = world.make(b"f", size=(1 << 20) - 3)
    done = world.do(carried(ino, (5, b"appended"), append=True, expected_size=5))
    assert done.offset == (1 << 20) - 3
    assert [extent.length for extent in world.extents(ino)] == [3, 5]
    assert list(held(world).values()) == [b"appended"]
    world.sound()


def test_a_page_of_extents_ends_where_it_would_bring_too_much() -> None:
    world = World()
    ino = world.make(b"f")
    plain = [bytes([number]) * LOG_DATA_COMMIT_BYTES for number in range(40)]
    for number, one in enumerate(plain):
        world.do(carried(ino, (number << 20, one)))
    at, pages = 0, 0
    found: dict[bytes, bytes] = {}
    while True:
        page = world.ask(api.GetExtents(ino, at, 40 << 20))
        assert sum(len(one) for _, one in page.data) <= LOG_DATA_PAGE_BYTES
        found |= dict(page.data)
        pages += 1
        if not page.more:
            break
        at = page.extents[-1].offset + page.extents[-1].length
    assert pages == 3 and found == held(world)


def test_pages_for_whoever_moves() -> None:
    world = World()
    ino = world.make(b"f")
    for number in range(200):
        world.do(carried(ino, (number * 10, b"%d" % number)))
    assert world.machine.logged(b"", 1000, 1 << 20) == sorted(held(world).items())
    seen: list[bytes] = []
    while page := world.machine.logged(seen[-1] if seen else b"", 70, 1 << 20):
        seen += [block for block, _ in page]
    assert seen == sorted(held(world))
    assert len(world.machine.logged(b"", 1000, 10)) < 10
    assert len(world.machine.logged(b"", 1000, 1)) == 1


def test_a_replay_and_a_loaded_state_are_the_same() -> None:
    world = World()
    placed(world)
    ino = world.make(b"f")
    for number in range(30):
        world.do(carried(ino, (number * 10, b"%d" % number)))
        if number % 7 == 3:
            world.do(api.SetAttr(ino, size=number * 5))
        if number % 5 == 2:
            move(world, *list(held(world))[:2])
    again = MemoryEngine()
    replay(world.log, again)
    assert digest(again) == world.machine.digest()
    copy = MemoryEngine()
    copy.replace(world.tables.range(b"\0", b"\xff" * 8))
    machine = Machine(copy)
    assert machine.logged_blocks == world.machine.logged_blocks > 0
    machine.apply(world.machine.applied + 1, 1, b"")
    world.apply(b"")
    assert machine.digest() == world.machine.digest()
    other = Machine(MemoryEngine())
    other._tables.replace(copy.range(b"\0", b"\xff" * 8))  # type: ignore[attr-defined]
    other.reload()
    assert other.logged_blocks == machine.logged_blocks


def test_commands_that_earlier_releases_would_misread_say_so() -> None:
    world = World()
    ino = world.make(b"f")
    plain = api.Submit(1, 1, 1, (api.Commit(ino, (), 5, 0, 0),))
    along = api.Submit(1, 1, 1, (api.Commit(ino, (), 5, 0, 0), carried(ino, (0, b"a"))))
    assert encode_command(CommandKind.SUBMIT, 1, plain)[0] == 1
    assert encode_command(CommandKind.SUBMIT, 1, along)[0] == 2
    assert encode_command(CommandKind.MOVE_OUT, 1, MoveOut((), 1, 1))[0] == 2
    assert encode_command(CommandKind.ADVANCE_EPOCH, 1, AdvanceEpoch(1))[0] == 1


def test_a_log_of_version_1_leaves_the_state_that_it_always_did() -> None:
    """Commits as they were encoded before they could bring anything along; nothing of it is in the state."""
    world = World()
    ino = world.make(b"f")
    head = encode_command(CommandKind.SUBMIT, world.now_ns, api.Submit(1, 2, 2, ()))[:HEADER_BYTES]
    extent = [0, 3, name_block(b"abc"), 0, 3]
    old_commit = [6, ino, [extent], 3, 0, 1, False, 0, 0, 0, False]
    body = msgspec.msgpack.encode([1, 2, 2, [old_commit], 0, False, 0, False, 0, False, [], []])
    reply = world.apply(head + body).reply
    assert isinstance(reply, api.SubmitReply) and isinstance(reply.results[0], api.Committed)
    assert world.attr(ino).size == 3
    assert world.tables.get(keys.LOGGED_KEY) is None and not held(world)
    world.sound()


def test_a_slice_of_the_digest_has_few_of_the_large_rows() -> None:
    world = World()
    ino = world.make(b"f")
    slices = Auditor(world.tables)
    assert slices._slice(b"", 2048)[1] == len(world.tables.range(b"\0", b"\xff" * 8)), "as it always was"
    for number in range(100):
        world.do(carried(ino, (number * 10, b"%d" % number)))
    rows, low = 0, b""
    while True:
        _, count, low = slices._slice(low, 2048)
        assert count <= 64 or rows >= 100
        rows += count
        if not low:
            break
    assert rows == len(world.tables.range(b"\0", b"\xff" * 8))


def test_the_auditor_sees_what_is_wrong() -> None:
    world = World()
    ino = world.make(b"f")
    world.do(carried(ino, (0, b"a")))
    block = name_block(b"a")
    world.tables.put(keys.logged(block), b"b")
    assert any("others" in finding for finding in check(world.tables))
    world.tables.put(keys.logged(block), b"a")
    assert check(world.tables) == []
    world.tables.put(keys.logged(name_block(b"c")), b"c")
    findings = check(world.tables)
    assert any("nothing references" in finding for finding in findings)
    assert any("totals" in finding for finding in findings)
