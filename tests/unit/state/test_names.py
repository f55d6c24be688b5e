"""Names by the rules of POSIX: make, link, remove, rename, and what each does to counts and times."""

from __future__ import annotations

import stat

import pytest

from metadata import api
from metadata.state import names as names_module
from metadata.state.command import CommandKind, Format
from node.wire.errors import Code
from tests.unit.state.support import DIR, FILE, LNK, ROOT, World, extent

BAD_NAMES = [
    (b"", Code.INVALID),
    (b".", Code.INVALID),
    (b"..", Code.INVALID),
    (b"a/b", Code.INVALID),
    (b"a\0b", Code.INVALID),
    (b"x" * 256, Code.NAME_TOO_LONG),
]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("name,code", BAD_NAMES)
def test_names_that_no_directory_can_have(world: World, name: bytes, code: Code) -> None:
    ino = world.make(b"f")
    assert world.fail(api.Make(ROOT, name, FILE, 0, 0)) == code
    assert world.fail(api.Link(ino, ROOT, name)) == code
    assert world.fail(api.Remove(ROOT, name)) == code
    assert world.fail(api.Rename(ROOT, b"f", ROOT, name)) == code
    assert world.fail(api.Rename(ROOT, name, ROOT, b"g")) == code


def test_the_longest_name_and_any_other_byte_are_fine(world: World) -> None:
    odd = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    world.make(b"x" * 255)
    world.make(odd)
    assert world.names() == sorted([b"x" * 255, odd])


@pytest.mark.parametrize(
    "mode", [0o644, 0o170000 | 0o644, FILE | 1 << 20, stat.S_IFREG | 0o10000, 1 << 40], ids=lambda mode: f"{mode:o}"
)
def test_modes_that_no_inode_can_have(world: World, mode: int) -> None:
    assert world.fail(api.Make(ROOT, b"f", mode, 0, 0)) == Code.INVALID


def test_owners_devices_targets_and_sizes_are_checked(world: World) -> None:
    assert world.fail(api.Make(ROOT, b"f", FILE, -1, 0)) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, (1 << 32) - 1)) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", stat.S_IFCHR, 0, 0, rdev=1 << 32)) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, 0, target=b"x")) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", LNK, 0, 0)) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", LNK, 0, 0, target=b"a\0")) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", LNK, 0, 0, target=b"x" * 4096)) == Code.NAME_TOO_LONG
    assert world.fail(api.Make(ROOT, b"f", DIR, 0, 0, size=1)) == Code.INVALID
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, 0, size=1 << 63)) == Code.FILE_TOO_BIG


def test_making_keeps_counts_and_times(world: World) -> None:
    before = world.attr(ROOT)
    ino = world.make(b"d", DIR)
    after = world.attr(ROOT)
    assert (after.nlink, after.size) == (before.nlink + 1, before.size + 1)
    assert after.mtime_ns == after.ctime_ns == world.machine.time_ns > before.mtime_ns
    assert after.version > before.version
    made = world.attr(ino)
    assert (made.nlink, made.size, made.btime_ns) == (2, 0, world.machine.time_ns)
    world.make(b"f")
    assert world.attr(ROOT).nlink == after.nlink
    world.sound()


def test_symlinks_and_special_files(world: World) -> None:
    link = world.make(b"l", LNK, target=b"../x")
    assert world.ask(api.ReadLink(link)).target == b"../x"
    assert world.attr(link).size == 4
    device = world.make(b"c", stat.S_IFCHR | 0o600, rdev=0x0501)
    assert world.attr(device).rdev == 0x0501
    fifo = world.make(b"p", stat.S_IFIFO | 0o600, rdev=7)
    assert world.attr(fifo).rdev == 0
    assert world.ask(api.ReadLink(fifo)).code == Code.INVALID


def test_setgid_directories_hand_down_their_group(world: World) -> None:
    (made,) = world.submit(api.Make(ROOT, b"d", DIR | stat.S_ISGID, 5, 50))
    parent = made.attr.ino
    (child, file) = world.submit(api.Make(parent, b"d", DIR, 6, 60), api.Make(parent, b"f", FILE, 6, 60))
    assert (child.attr.gid, child.attr.mode & stat.S_ISGID) == (50, stat.S_ISGID)
    assert (file.attr.gid, file.attr.uid, file.attr.mode) == (50, 6, FILE)


def test_open_with_create_finds_what_exists(world: World) -> None:
    ino = world.make(b"f")
    made = world.do(api.Make(ROOT, b"f", FILE, 0, 0, exclusive=False))
    assert (made.attr.ino, made.existed) == (ino, True)
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, 0)) == Code.EXISTS
    world.make(b"d", DIR)
    assert world.fail(api.Make(ROOT, b"d", FILE, 0, 0, exclusive=False)) == Code.IS_DIRECTORY
    assert world.fail(api.Make(ROOT, b"d", DIR, 0, 0, exclusive=False)) == Code.EXISTS


def test_make_with_data_is_one_entry(world: World) -> None:
    made = world.do(api.Make(ROOT, b"f", FILE, 0, 0, size=10, extents=(extent(0, 8, 1),), touch_epoch=1, mtime_ns=7))
    assert (made.attr.size, made.attr.stored, made.attr.mtime_ns) == (10, 8, 7)
    assert world.extents(made.attr.ino) == [extent(0, 8, 1)]
    world.sound()


def test_parents_that_are_none(world: World) -> None:
    ino = world.make(b"f")
    assert world.fail(api.Make(ino, b"x", FILE, 0, 0)) == Code.NOT_DIRECTORY
    assert world.fail(api.Make(99, b"x", FILE, 0, 0)) == Code.STALE
    assert world.fail(api.Make(-1, b"x", FILE, 0, 0)) == Code.STALE
    gone = world.make(b"d", DIR)
    world.do(api.Remove(ROOT, b"d", True))
    assert world.fail(api.Make(gone, b"x", FILE, 0, 0)) == Code.NOT_FOUND
    assert world.fail(api.Link(ino, gone, b"x")) == Code.NOT_FOUND
    assert world.fail(api.Rename(ROOT, b"f", gone, b"x")) == Code.NOT_FOUND


def test_links_count_up_to_the_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "LINKS_MAX", 3)
    ino = world.make(b"a")
    for name in (b"b", b"c"):
        assert world.do(api.Link(ino, ROOT, name)).attr.ctime_ns == world.machine.time_ns
    assert world.fail(api.Link(ino, ROOT, b"d")) == Code.TOO_MANY_LINKS
    assert world.fail(api.Link(ino, ROOT, b"a")) == Code.EXISTS
    world.do(api.Remove(ROOT, b"a"))
    assert world.attr(ino).nlink == 2
    world.do(api.Remove(ROOT, b"c"))
    world.do(api.Rename(ROOT, b"b", ROOT, b"z"))
    assert world.attr(ino).nlink == 1
    world.sound()


def test_directories_have_one_name(world: World) -> None:
    ino = world.make(b"d", DIR)
    assert world.fail(api.Link(ino, ROOT, b"e")) == Code.PERMISSION


def test_removing_asks_for_the_right_kind(world: World) -> None:
    world.make(b"f")
    parent = world.make(b"d", DIR)
    world.make(b"x", parent=parent)
    assert world.fail(api.Remove(ROOT, b"f", True)) == Code.NOT_DIRECTORY
    assert world.fail(api.Remove(ROOT, b"d")) == Code.IS_DIRECTORY
    assert world.fail(api.Remove(ROOT, b"d", True)) == Code.NOT_EMPTY
    assert world.fail(api.Remove(ROOT, b"none")) == Code.NOT_FOUND
    world.do(api.Remove(parent, b"x"))
    removed = world.do(api.Remove(ROOT, b"d", True))
    assert (removed.ino, removed.nlink) == (parent, 0)
    assert world.attr(ROOT).nlink == 2
    world.sound()


def test_rename_decides_by_what_is_there(world: World) -> None:
    a, b = world.make(b"a", DIR), world.make(b"b", DIR)
    file = world.make(b"f")
    world.make(b"full", parent=b)
    assert world.fail(api.Rename(ROOT, b"a", ROOT, b"f")) == Code.NOT_DIRECTORY
    assert world.fail(api.Rename(ROOT, b"f", ROOT, b"a")) == Code.IS_DIRECTORY
    assert world.fail(api.Rename(ROOT, b"a", ROOT, b"b")) == Code.NOT_EMPTY
    assert world.fail(api.Rename(ROOT, b"none", ROOT, b"b")) == Code.NOT_FOUND
    assert world.fail(api.Rename(ROOT, b"f", ROOT, b"a", api.RENAME_NOREPLACE)) == Code.EXISTS
    assert world.fail(api.Rename(ROOT, b"f", ROOT, b"x", api.RENAME_EXCHANGE)) == Code.NOT_FOUND
    assert world.fail(api.Rename(ROOT, b"f", ROOT, b"x", 3)) == Code.INVALID
    assert world.fail(api.Rename(ROOT, b"f", ROOT, b"x", -1)) == Code.INVALID
    renamed = world.do(api.Rename(ROOT, b"b", ROOT, b"a"))
    assert (renamed.ino, renamed.replaced, renamed.replaced_nlink, renamed.held) == (b, a, 0, True)
    world.do(api.Rename(ROOT, b"f", b, b"g"))
    assert world.attr(file).ctime_ns == world.machine.time_ns
    world.sound()


def test_rename_onto_another_name_of_the_same_file_does_nothing(world: World) -> None:
    ino = world.make(b"a")
    world.do(api.Link(ino, ROOT, b"b"))
    before = world.attr(ino)
    assert world.do(api.Rename(ROOT, b"a", ROOT, b"b")) == api.Renamed(ino)
    assert world.names() == [b"a", b"b"] and world.attr(ino) == before
    assert world.fail(api.Rename(ROOT, b"a", ROOT, b"b", api.RENAME_NOREPLACE)) == Code.EXISTS


def test_no_directory_moves_below_itself(world: World) -> None:
    a = world.make(b"a", DIR)
    b = world.make(b"b", DIR, a)
    c = world.make(b"c", DIR, b)
    other = world.make(b"o", DIR)
    assert world.fail(api.Rename(ROOT, b"a", c, b"x")) == Code.INVALID
    assert world.fail(api.Rename(ROOT, b"a", a, b"x")) == Code.INVALID
    world.make(b"x", DIR, c)
    assert world.fail(api.Rename(ROOT, b"a", c, b"x", api.RENAME_EXCHANGE)) == Code.INVALID
    assert world.fail(api.Rename(c, b"x", ROOT, b"a", api.RENAME_EXCHANGE)) == Code.INVALID
    assert world.fail(api.Rename(c, b"x", a, b"b")) == Code.NOT_EMPTY
    world.do(api.Rename(a, b"b", other, b"b"))
    assert world.ask(api.Lookup(b, b"..")).attr.ino == other
    assert [world.attr(ino).nlink for ino in (ROOT, a, other)] == [4, 2, 3]
    world.sound()


def test_exchange_swaps_kinds_and_parents(world: World) -> None:
    a, b = world.make(b"a", DIR), world.make(b"b", DIR)
    inner = world.make(b"d", DIR, a)
    file = world.make(b"f", parent=b)
    world.do(api.Rename(a, b"d", b, b"f", api.RENAME_EXCHANGE))
    assert world.ask(api.Lookup(a, b"d")).attr.ino == file
    assert world.ask(api.Lookup(b, b"f")).attr.ino == inner
    assert (world.attr(a).nlink, world.attr(b).nlink) == (2, 3)
    world.sound()


def test_inode_numbers_from_a_range_are_used_once(world: World) -> None:
    given = world.do(api.AllocateInos(10))
    other = world.open(7)
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, 0, ino=given.first), other) == Code.INVALID
    for ino in (given.first + 5, given.first, given.first + 9, given.first + 1):
        assert world.make(b"%d" % ino, ino=ino) == ino
        world.sound()
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, 0, ino=given.first)) == Code.INVALID
    world.do(api.Remove(ROOT, b"%d" % given.first, not_held=(given.first,)))
    assert world.fail(api.Make(ROOT, b"f", FILE, 0, 0, ino=given.first)) == Code.INVALID
    assert world.make(b"next") == given.first + 10
    assert world.machine.session(1).unused == 6  # type: ignore[union-attr]
    assert world.fail(api.AllocateInos(0)) == Code.INVALID
    assert world.fail(api.AllocateInos(1 << 17)) == Code.INVALID


def test_unused_numbers_of_a_session_are_bounded(world: World) -> None:
    for _ in range(4):
        world.do(api.AllocateInos(65_536))
    assert world.fail(api.AllocateInos(1)) == Code.OVERLOADED
    world.sound()


def test_a_volume_is_formatted_once(world: World) -> None:
    assert world.code(world.run(CommandKind.FORMAT, Format(b"other", 2))) == Code.EXISTS
    assert world.machine.cluster == b"cluster"
