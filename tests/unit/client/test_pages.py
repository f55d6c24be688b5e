"""Pages of a file that two mounts have mapped: the kernel holds them until it is answered, and a recall waits for that.

Mounts, leases and the service are the real ones, see ``test_leases``.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import pytest
import trio

from fusefs.client.recalls import Recalls
from fusefs.client.volume import Volume

from .test_leases import Truth, with_two_mounts
from .test_recalls import Kernel, Slow
from .test_shared_writes import looked_at, recalled


class Losing(Kernel):
    """One that takes its time when leases have ended."""

    async def forget_all(self) -> None:
        await self.forget(())


class Counting(Slow):
    forgot = 0

    async def forget(self, inos: Collection[int]) -> None:
        await super().forget(inos)
        self.forgot += 1


def test_pages_are_taken_at_once_and_others_see_them_after_fsync() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, theirs = await looked_at(truth, first, second)
        kernel = Counting()
        second.caches(kernel)
        begin = trio.current_time()
        await first.write(handle, 0, b"new", paged=True)
        assert trio.current_time() - begin < 0.1, "it waited for another mount, which may wait for a page of this one"
        await first.fsync(handle)
        assert kernel.forgot and not kernel.at_work, "others are still shown what was there before"
        assert bytes(await second.read(theirs, 0, 5)) == b"new"

    with_two_mounts(scene)


def test_an_error_of_pages_is_told_by_fsync() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, _ = await looked_at(truth, first, second)
        truth.node.full = True
        await first.write(handle, 0, b"new", paged=True)
        with pytest.raises(Exception, match="full"):
            await first.fsync(handle)
        truth.node.full = False
        await first.write(handle, 0, b"new", paged=True)
        await first.fsync(handle)

    with_two_mounts(scene)


def test_what_is_brought_for_a_recall_is_shown_before_fsync_returns() -> None:
    """The service has answered that at once, and who had the file recalled still shows what was before."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, theirs = await looked_at(truth, first, second)
        assert bytes(await first.read(handle, 0, 5)) == b"old"
        kernel = Counting()
        first.caches(Slow())
        second.caches(kernel)
        async with recalled(first, second, handle.ino):
            await first.write(handle, 0, b"new", paged=True)
            assert first._session.recalls.giving(handle.ino) and handle.file.exclusive
            await first.fsync(handle)
            assert kernel.forgot and not kernel.at_work, "others are still shown what was there before"
        assert bytes(await second.read(theirs, 0, 5)) == b"new"

    with_two_mounts(scene)


def test_who_reads_a_page_does_not_wait_for_its_recall() -> None:
    """But what he was shown no lease covers, so it is forgotten once more."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, theirs = await looked_at(truth, first, second)
        kernel = Kernel()
        first.caches(kernel)
        await first.getattr(handle.ino)
        async with recalled(first, second, handle.ino):
            begin = trio.current_time()
            assert bytes(await first.read(handle, 0, 5, held=True)) == b"old"
            assert trio.current_time() - begin < 0.5
            assert first._session.recalls.giving(handle.ino)
            kernel.forgotten.set()
        assert kernel.asked == 2

    with_two_mounts(scene)


def test_a_page_that_is_read_is_covered_by_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service gives none while it has not heard that the last one was given back."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, _ = await looked_at(truth, first, second)
        await first.getattr(handle.ino)
        acknowledge, unheard = Recalls._acknowledge, trio.Event()

        async def slowly(self: Recalls, *arguments: Any) -> None:
            unheard.set()
            await trio.sleep(0.01)
            await acknowledge(self, *arguments)

        monkeypatch.setattr(Recalls, "_acknowledge", slowly)
        kernel = Kernel()
        kernel.forgotten.set()
        first.caches(kernel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(second.setattr, handle.ino, mode=0o640))
            await unheard.wait()
            await first.read(handle, 0, 5, held=True)
            assert first._session.leases.attr(handle.ino, first._session.now_s()) is not None

    with_two_mounts(scene)


@pytest.mark.parametrize("how", ["flush", "read"])
def test_nothing_is_mapped_any_more_that_leases_covered_which_have_ended(how: str) -> None:
    """A mount that was stopped for longer than that finds the answer there when it goes on, and its program looks at
    other pages next."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, _ = await looked_at(truth, first, second)
        kernel = Losing()
        first.caches(kernel)
        await first.getattr(handle.ino)
        answer, leases = getattr(first._fileio, how), first._session.leases

        async def stopped(*arguments: Any, **how: Any) -> Any:
            answered = await answer(*arguments, **how)
            leases.until_s = first._session.now_s()
            return answered

        setattr(first._fileio, how, stopped)
        went_on = trio.Event()

        async def use() -> None:
            if how == "flush":
                await first.write(handle, 0, b"new", paged=True)
                await first.fsync(handle)
            else:
                assert bytes(await first.read(handle, 0, 5, held=True)) == b"old"
            went_on.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await trio.sleep(1)
            assert kernel.asked and not went_on.is_set()
            kernel.forgotten.set()
            await trio.sleep(1)
            assert went_on.is_set()

    with_two_mounts(scene)
