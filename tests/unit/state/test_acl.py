"""Access control lists in the state: what they do to the mode, what is handed down, what is refused."""

from __future__ import annotations

import stat

import pytest

from metadata import api
from metadata.state import acl
from metadata.state.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from node.wire.errors import Code
from tests.unit.state.support import DIR, FILE, LNK, World

NONE = (1 << 32) - 1


def value(owner: int, user: int, group: int, mask: int, others: int) -> bytes:
    """A list that names user 1000."""
    return acl.encode(
        (
            Entry(USER_OBJ, owner, NONE),
            Entry(USER, user, 1000),
            Entry(GROUP_OBJ, group, NONE),
            Entry(MASK, mask, NONE),
            Entry(OTHER, others, NONE),
        )
    )


PLAIN = acl.encode((Entry(USER_OBJ, 6, NONE), Entry(GROUP_OBJ, 4, NONE), Entry(OTHER, 0, NONE)))


@pytest.fixture
def world() -> World:
    return World()


def set_(ino: int, what: bytes, name: bytes = acl.ACCESS, **more: bool) -> api.SetXattr:
    return api.SetXattr(ino, name, what, **more)


def test_a_list_sets_the_mode_and_the_mode_the_list(world: World) -> None:
    ino = world.make(b"f")
    attr = world.do(set_(ino, value(7, 6, 4, 5, 1))).attr
    assert (attr.mode & 0o777, attr.flags) == (0o751, api.ATTR_ACCESS_ACL)
    assert world.do(api.SetAttr(ino, mode=0o640)).attr.flags == api.ATTR_ACCESS_ACL
    assert world.ask(api.GetXattr(ino, acl.ACCESS)) == api.Value(value(6, 6, 4, 4, 0))
    world.sound()


def test_a_list_that_is_a_mode_is_not_kept(world: World) -> None:
    ino = world.make(b"f")
    assert world.do(set_(ino, PLAIN)).attr.mode & 0o777 == 0o640
    assert world.ask(api.ListXattr(ino)) == api.Names(())
    world.do(set_(ino, value(7, 7, 7, 7, 7)))
    assert world.do(set_(ino, PLAIN)).attr.flags == 0
    assert world.ask(api.ListXattr(ino)) == api.Names(())
    world.do(set_(ino, value(7, 7, 7, 7, 7)))
    assert world.do(set_(ino, b"")).attr.mode & 0o777 == 0o777
    assert world.ask(api.ListXattr(ino)) == api.Names(())
    world.sound()


def test_setgid_goes_where_asked(world: World) -> None:
    ino = world.make(b"f", FILE | stat.S_ISGID)
    assert world.do(set_(ino, value(7, 7, 7, 7, 7))).attr.mode & stat.S_ISGID
    assert not world.do(set_(ino, value(7, 7, 7, 7, 7), drop_setgid=True)).attr.mode & stat.S_ISGID


def test_a_default_list_is_handed_down_instead_of_the_umask(world: World) -> None:
    top = world.make(b"d", DIR)
    default = value(7, 6, 5, 7, 4)
    assert world.do(set_(top, default, acl.DEFAULT)).attr.flags == api.ATTR_DEFAULT_ACL
    file = world.do(api.Make(top, b"f", stat.S_IFREG | 0o666, 0, 0, umask=0o077)).attr
    assert (file.mode & 0o777, file.flags) == (0o664, api.ATTR_ACCESS_ACL)
    assert world.ask(api.GetXattr(file.ino, acl.ACCESS)) == api.Value(value(6, 6, 5, 6, 4))
    below = world.do(api.Make(top, b"e", stat.S_IFDIR | 0o750, 0, 0, umask=0o077)).attr
    assert (below.mode & 0o777, below.flags) == (0o750, api.ATTR_ACCESS_ACL | api.ATTR_DEFAULT_ACL)
    assert world.ask(api.GetXattr(below.ino, acl.DEFAULT)) == api.Value(default)
    link = world.do(api.Make(top, b"l", LNK, 0, 0, target=b"x")).attr
    assert link.flags == 0
    owner_only = acl.encode((Entry(USER_OBJ, 7, NONE), Entry(GROUP_OBJ, 0, NONE), Entry(OTHER, 0, NONE)))
    world.do(set_(top, owner_only, acl.DEFAULT))
    plain = world.do(api.Make(top, b"g", stat.S_IFREG | 0o666, 0, 0, umask=0)).attr
    assert (plain.mode & 0o777, plain.flags) == (0o600, 0)
    world.do(api.RemoveXattr(top, acl.DEFAULT))
    masked = world.do(api.Make(top, b"h", stat.S_IFREG | 0o666, 0, 0, umask=0o027)).attr
    assert (masked.mode & 0o777, world.attr(top).flags) == (0o640, 0)
    world.sound()
    world.do(api.Remove(top, b"f"))
    world.sound()


@pytest.mark.parametrize(
    "bad",
    [
        b"\x02\0\0",
        b"\x01\0\0\0" + PLAIN[4:],
        PLAIN[:-8],
        PLAIN + PLAIN[4:],
        acl.encode((Entry(USER_OBJ, 8, NONE), Entry(GROUP_OBJ, 4, NONE), Entry(OTHER, 0, NONE))),
        acl.encode((Entry(USER_OBJ, 6, NONE), Entry(USER, 4, 1), Entry(GROUP_OBJ, 4, NONE), Entry(OTHER, 0, NONE))),
        acl.encode((Entry(GROUP_OBJ, 6, NONE), Entry(USER_OBJ, 4, NONE), Entry(OTHER, 0, NONE))),
        acl.encode((Entry(USER_OBJ, 6, NONE), Entry(3, 6, NONE), Entry(GROUP_OBJ, 4, NONE), Entry(OTHER, 0, NONE))),
    ],
)
def test_nonsense_is_refused(world: World, bad: bytes) -> None:
    assert world.fail(set_(world.make(b"f"), bad)) is Code.INVALID


def test_only_directories_hand_down_and_symlinks_have_none(world: World) -> None:
    assert world.fail(set_(world.make(b"f"), PLAIN, acl.DEFAULT)) is Code.ACCESS
    assert world.fail(set_(world.make(b"l", LNK, target=b"x"), PLAIN)) is Code.NOT_SUPPORTED
