"""Who watches what others change asks once, and nobody waits for whoever has changed it without need."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from fusefs.client.again import INODES_MAX, LAST, LISTED_MAX, NAMES_MAX, SOON_S, Again
from fusefs.client.facts import NO_END, Layout, Record
from fusefs.client.session import ALONG_S
from fusefs.client.volume import Volume
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO

from .test_leases import Truth, with_two_mounts

INO = 7


def known(*names: bytes) -> Record:
    record = Record()
    record.names = dict.fromkeys(names, 0)
    return record


def test_what_was_known_is_asked_for_along_once_and_soon() -> None:
    again = Again()
    again.recalled(INO, known(b"a", b"b", b"c"), 1.0)
    assert again.along([api.GetAttr(INO + 1)], 1.0) == ()
    assert again.along([api.GetAttr(INO), api.GetAttr(INO + 1)], 1.0) == (), "who asks for much knows what he wants"
    wanted = tuple(api.Lookup(INO, name) for name in (b"b", b"c"))
    assert len(wanted) == LAST and again.along([api.GetAttr(INO)], 1.0) == wanted
    assert again.along([api.GetAttr(INO)], 1.0) == ()
    again.recalled(INO, known(b"a", b"b", b"c"), 1.0)
    assert again.along([api.Lookup(INO, b"b")], 1.0) == wanted[1:], "nothing is asked for twice"
    again.recalled(INO, known(b"a"), 1.0)
    assert again.along([api.GetAttr(INO)], 1.0 + SOON_S) == ()


def test_extents_and_extended_attributes_are_asked_for_along() -> None:
    record = known()
    record.layout = Layout(1, 0, NO_END, (api.Extent(0, 10, b"b" * 32, 0, 10),))
    record.xattrs = {b"user.a": b"1", b"user.b": None}
    again = Again()
    again.recalled(INO, record, 0.0)
    extents, xattr = again.along([api.GetAttr(INO)], 0.0)
    assert isinstance(extents, api.GetExtents) and extents.length > 10, "it may have grown"
    assert xattr == api.GetXattr(INO, b"user.a")


def test_who_has_listed_a_small_directory_is_told_all_of_it_again() -> None:
    again = Again()
    record = known(b"a")
    record.shown = True
    again.recalled(INO, record, 0.0)
    (listing,) = again.along([api.GetAttr(INO)], 0.0)
    assert isinstance(listing, api.ReadDir) and listing.after == b"" and listing.plus
    record.names.update((b"%d" % number, 0) for number in range(LISTED_MAX))
    again.recalled(INO, record, 0.0)
    assert again.along([api.GetAttr(INO)], 0.0) == ()


def test_memory_is_bounded_and_large_directories_are_not_guessed_at() -> None:
    again = Again()
    for ino in range(INODES_MAX + 5):
        again.recalled(ino, known(b"a"), 0.0)
    assert len(again) == INODES_MAX
    again.recalled(0, known(*(b"%d" % number for number in range(NAMES_MAX + 1))), 0.0)
    assert again.along([api.GetAttr(0)], 0.0) == ()
    record = known(*(b"%d" % number for number in range(NAMES_MAX + 1)))
    record.missed = b"n"
    again.recalled(0, record, 0.0)
    assert again.along([api.GetAttr(0)], 0.0) == (api.Lookup(0, b"n"),), "somebody waits for it"


async def missing(volume: Volume, name: bytes) -> None:
    with pytest.raises(FsError) as error:
        await volume.lookup(ROOT_INO, name)
    assert error.value.code is Code.NOT_FOUND


class Shown:
    """A kernel that has been told what programs see, or has not."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    async def forget(self, inos: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def forget_all(self) -> None:
        await trio.lowlevel.checkpoint()

    def expire(self, inos: Any, names: Any = ()) -> bool:
        return not self.shown


@pytest.mark.parametrize("shown", [False, True])
def test_a_look_at_a_new_name_is_one_question(shown: bool) -> None:
    """And its maker is asked back for the directory only where its kernel may still show it without the name."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        truth.leasing.table._cool_s = 1000.0
        first.caches(Shown(shown))
        for volume in (first, second):
            for _ in range(2):
                await volume.getattr(ROOT_INO)
                await missing(volume, b"a")
        await first.mknod(ROOT_INO, b"a", 0o100644, 0, 0, 0)
        reads, recalls = truth.service._counts["reads"], truth.leasing.table.counts["recalls"]
        await second.getattr(ROOT_INO)
        assert (await second.lookup(ROOT_INO, b"a")).ino
        assert truth.service._counts["reads"] == reads + 1
        assert truth.leasing.table.counts["recalls"] - recalls == (2 if shown else 1), "the new inode is the maker's"

    with_two_mounts(scene)


def test_nobody_waits_long_for_what_is_asked_for_along() -> None:
    """The maker of the new name, which is his, does not answer any more."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        truth.leasing.table._cool_s = 1000.0
        for volume in (first, second):
            for _ in range(2):
                await volume.getattr(ROOT_INO)
                await missing(volume, b"a")
        await first.mknod(ROOT_INO, b"a", 0o100644, 0, 0, 0)
        truth.links[0].connected = False
        begin = trio.current_time()
        assert (await second.getattr(ROOT_INO)).size == 1
        assert trio.current_time() - begin < 2 * ALONG_S

    with_two_mounts(scene)


def test_while_a_size_is_changed_the_kernel_may_show_the_old_one() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        truth.leasing.table._cool_s = 1000.0
        first.caches(Shown(False))
        attr = await first.mknod(ROOT_INO, b"a", 0o100644, 0, 0, 0)
        for volume in (second, first):
            await volume.getattr(attr.ino)
        counts = truth.leasing.table.counts
        await first.setattr(attr.ino, mode=0o600)
        recalls = counts["recalls"]
        await second.getattr(attr.ino)
        assert counts["recalls"] == recalls
        await first.setattr(attr.ino, size=5)
        recalls = counts["recalls"]
        assert (await second.getattr(attr.ino)).size == 5
        assert counts["recalls"] == recalls + 1

    with_two_mounts(scene)
