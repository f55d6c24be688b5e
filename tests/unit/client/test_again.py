"""Who watches what others change asks once, and nobody waits for whoever has changed it without need."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from fusefs.client.again import INODES_MAX, LAST, LISTED_MAX, LITTLE_BYTES, NAMES_MAX, SOON_S, WATCHED_S, Again
from fusefs.client.facts import NO_END, Layout, Record
from fusefs.client.handles import Handle
from fusefs.client.learning import named, resolved
from fusefs.client.session import ALONG_S
from fusefs.client.volume import Volume
from metadata import api
from metadata.state.logged import Logged
from node.wire.errors import Code, FsError
from node.wire.limits import READ_QUERIES_MAX
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


def test_where_files_are_read_the_content_of_a_name_is_asked_for_along() -> None:
    again = Again()
    content = api.GetExtents(api.FOUND, 0, LITTLE_BYTES)
    assert again.along([api.Lookup(INO, b"a")], 0.0) == ()
    again.reading(INO)
    assert again.along([api.Lookup(INO, b"a")], 0.0) == (content,)
    assert again.along([api.Lookup(INO + 1, b"a")], 0.0) == again.along([api.Lookup(INO, b"..")], 0.0) == ()
    assert again.along([api.Lookup(INO, b"a"), api.Lookup(INO, b"b")], 0.0) == ()
    again.recalled(INO, known(b"a", b"b"), 0.0)
    along = again.along([api.GetAttr(INO)], 0.0)
    assert along == (api.Lookup(INO, b"a"), content, api.Lookup(INO, b"b"), content), "each behind its name"
    for ino in range(INODES_MAX + 5):
        again.reading(ino)
    assert len(again._readers) == INODES_MAX
    record = known(*(b"%d" % number for number in range(NAMES_MAX)))
    again.reading(INO)
    again.recalled(INO, record, 0.0)
    assert len(again.along([api.Lookup(INO, b"new")], 0.0)) < READ_QUERIES_MAX


def test_what_others_look_at_is_watched_for_a_moment() -> None:
    again = Again()
    again.visited((INO, INO + 1), 1.0)
    again.recalled(INO + 2, known(), 1.0)
    assert [again.watched(INO + more, 1.0) for more in range(4)] == [True, True, True, False]
    assert not again.watched(INO, 1.0 + WATCHED_S)
    again.visited(range(2 * INODES_MAX), 2.0)
    assert len(again._visited) == INODES_MAX


def test_answers_about_what_was_found_are_about_that_file() -> None:
    found, other = api.GetExtents(api.FOUND, 0, 5), api.GetExtents(9, 0, 5)
    attr = api.AttrResult(api.Attr(7, 0o100644, 1, 0, 0, 0, 5, 5, 0, 0, 0, 0, 1, 1))
    missing = api.Failed(Code.NOT_FOUND)
    queries = (api.Lookup(1, b"a"), found, other, api.Lookup(1, b"b"), found)
    results = (attr, missing, missing, missing, missing)
    assert resolved(queries, results) == (queries[0], api.GetExtents(7, 0, 5), other, queries[3], found)
    assert list(named(queries)) == [1, 9, 1], "0 is no inode"


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

    def yields(self, ino: int) -> bool:
        return not self.shown

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


@pytest.mark.parametrize("cool_s", [0.0, 1000.0])
def test_a_look_at_a_new_file_and_its_content_is_one_question(cool_s: float) -> None:
    """Of whoever has read files there. Its maker, at whose directory another looks, has brought it at close, also where
    nobody else is there any more because they were asked back for it."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        truth.leasing.table._cool_s = cool_s
        first._session.journal.delay_s = 1000.0
        for number in range(4):
            name, content = b"%d" % number, b"%d" % number * 1000
            for volume in (first, second):
                await volume.getattr(ROOT_INO)
                await missing(volume, name)
            handle, _ = await first.create(ROOT_INO, name, 0o644, os.O_RDWR, 0, 0)
            await first.write(handle, 0, content)
            await first.flush(handle)
            await first.release(handle)
            await trio.sleep(1.0)
            (there,) = truth.world.machine.query([api.Lookup(ROOT_INO, name)])
            assert isinstance(there, api.AttrResult) and there.attr.size == len(content), "nobody has asked yet"
            for _ in range(2):  # its own recalled a second ago counts as long past
                await second.getattr(ROOT_INO)
                await missing(second, b"other")
            reads = truth.service._counts["reads"]
            await second.getattr(ROOT_INO)
            attr = await second.lookup(ROOT_INO, name)
            found = await second.open(attr.ino, os.O_RDONLY)
            assert bytes(await second.read(found, 0, 4096)) == content
            await second.release(found)
            assert truth.service._counts["reads"] == reads + (1 if number else 2), number

    with_two_mounts(scene)


async def written_where_another_looks(first: Volume, second: Volume) -> tuple[Handle, api.Attr]:
    """A new file of ``first`` with content, not closed yet, in a directory at which ``second`` has just looked."""
    for _ in range(2):
        await second.getattr(ROOT_INO)
        await missing(second, b"a")
    await first.getattr(ROOT_INO)
    await missing(first, b"a")
    handle, attr = await first.create(ROOT_INO, b"a", 0o644, os.O_WRONLY, 0, 0)
    await first.write(handle, 0, b"content")
    return handle, attr


@pytest.mark.parametrize("shown", [False, True])
def test_who_closes_a_file_that_others_will_look_at_gives_it_back(shown: bool) -> None:
    """With what it brings, where its kernel shows nothing of it; so it is not asked back. It may have it again."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        table = truth.leasing.table
        table._cool_s = 1000.0
        first.caches(Shown(shown))
        handle, attr = await written_where_another_looks(first, second)
        assert first.alone(attr.ino)
        await first.flush(handle)
        await first.release(handle)
        await trio.sleep(1.0)
        assert table.counts["given"] == (not shown) and first.alone(attr.ino) == shown
        recalls = table.counts["recalls"]
        if not shown:
            assert (await first.getattr(attr.ino)).size == 7 and first.alone(attr.ino), "it comes back to it"
            await first.setattr(attr.ino, mode=0o600)
            assert first._session.journal and table.counts["recalls"] == recalls
        assert (await second.getattr(attr.ino)).mode & 0o777 == (0o644 if shown else 0o600)

    with_two_mounts(scene)


def test_what_is_given_back_is_not_shown_before_it_was_brought() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        table = truth.leasing.table
        table._cool_s = 1000.0
        handle, attr = await written_where_another_looks(first, second)
        recalls, propose = table.counts["recalls"], truth.service._propose
        held: list[Any] = []
        truth.service._propose = lambda *args: held.append(args)  # type: ignore[method-assign]
        await first.flush(handle)
        await trio.sleep(0.1)
        assert len(held) == 1 and table.counts["given"] == 1
        sizes: list[int] = []

        async def look() -> None:
            sizes.append((await second.getattr(attr.ino)).size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(0.1)
            assert not sizes, "it was shown what is not there yet"
            truth.service._propose = propose  # type: ignore[method-assign]
            propose(*held[0])
        assert sizes == [7] and table.counts["recalls"] == recalls + 1, "what was given counts as recalled, and no more"

    with_two_mounts(scene)


def test_what_could_not_be_given_back_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came with it failed: it is brought in another way, and then the recall is acknowledged."""
    pushed: list[int] = []

    def full(self: Logged, extents: Any, data: bytes) -> Any:
        raise FsError(Code.LOG_FULL, "no room")

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        table = truth.leasing.table
        table._cool_s = 1000.0
        handle, attr = await written_where_another_looks(first, second)
        recalls = first._session.recalls
        take = recalls.pushed
        recalls.pushed = lambda *args: (pushed.append(1), take(*args))  # type: ignore[method-assign, assignment]
        monkeypatch.setattr(Logged, "check", full)
        monkeypatch.setattr(truth, "check_journal", lambda outcome: None)
        await first.flush(handle)
        assert (await second.getattr(attr.ino)).size == 7
        assert table.counts["given"] == 1 and pushed and not table._recalls

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
