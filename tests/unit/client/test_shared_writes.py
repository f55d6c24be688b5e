"""Two mounts that keep one file open: what write(2) returned on one, read(2) shows on the other, without a close.

Each task writes counters into a place of its own, so everybody knows the least that must be seen there, and appends
records to a log. Mounts, leases and the service are the real ones, see ``test_leases``.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusefs.client.files import File
from fusefs.client.handles import Handle
from fusefs.client.options import ClientOptions
from fusefs.client.volume import Volume
from fusefs.client.writeback import WriteBack
from metadata.api import SetAttr
from node.wire.errors import Code, FsError
from node.wire.limits import LOG_DATA_COMMIT_BYTES
from node.wire.types import ROOT_INO
from storage.api import Get, Put
from tests.harness import LONG

from .test_leases import Truth, with_two_mounts
from .test_recalls import Slow
from .world import always

STEPS = 20
TASKS = 2  # of each mount
APART = 3000  # bytes between two places, so that some share a page and none a byte
RECORD = struct.Struct("<HQ6x")


class Shared:
    """One file of counters and one log, and what everybody must see of them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.begun = [0] * (2 * TASKS)  # the newest counter that was written or is being written
        self.floor = [0] * (2 * TASKS)  # the newest that returned, or was seen by anybody
        self.appended = 0  # records whose write has returned
        self.log: list[list[int]] = [[] for _ in range(2 * TASKS)]  # what each task appended

    async def work(self, volume: Volume, task: int, counters: Handle, log: Handle) -> None:
        for _ in range(STEPS):
            if self.rng.random() < 0.6:
                await trio.sleep(self.rng.expovariate(5.0))
            act = self.rng.choice([self.write, self.write, self.read, self.read, self.append, self.read_log, self.sync])
            await act(volume, task, counters, log)

    async def write(self, volume: Volume, task: int, counters: Handle, _log: Handle) -> None:
        self.begun[task] += 1
        value = self.begun[task]
        await volume.write(counters, task * APART, struct.pack("<Q", value))
        self.floor[task] = max(self.floor[task], value)

    async def read(self, volume: Volume, _task: int, counters: Handle, _log: Handle) -> None:
        place = self.rng.randrange(2 * TASKS)
        floor = self.floor[place]
        data = bytes(await volume.read(counters, place * APART, 8))
        value = struct.unpack("<Q", data)[0] if len(data) == 8 else 0
        assert floor <= value <= self.begun[place], f"place {place}: {value} was read, {floor} had returned"
        self.floor[place] = max(self.floor[place], value)

    async def append(self, volume: Volume, task: int, _counters: Handle, log: Handle) -> None:
        self.log[task].append(len(self.log[task]) + 1)
        await volume.write(log, 0, RECORD.pack(task + 1, self.log[task][-1]))
        self.appended += 1

    async def read_log(self, volume: Volume, _task: int, _counters: Handle, log: Handle) -> None:
        floor = self.appended
        assert (await volume.getattr(log.ino)).size >= floor * RECORD.size, "an append that returned is not in the size"
        records = await self.records(volume, log)
        assert len(records) >= floor, f"{len(records)} records were read, {floor} had returned"

    async def sync(self, volume: Volume, _task: int, counters: Handle, log: Handle) -> None:
        await volume.fsync(self.rng.choice([counters, log]))

    async def records(self, volume: Volume, log: Handle) -> list[tuple[int, int]]:
        data = bytes(await volume.read(log, 0, 1 << 20))
        assert len(data) % RECORD.size == 0, f"{len(data)} bytes"
        records = [RECORD.unpack_from(data, at) for at in range(0, len(data), RECORD.size)]
        for task in range(2 * TASKS):
            mine = [number for writer, number in records if writer == task + 1]
            assert mine == self.log[task][: len(mine)], f"of task {task}: {mine}"
        assert all(writer for writer, _ in records), "bytes that nobody wrote"
        return records


async def play(seed: int, elections: int, loss: float, local: bool) -> dict[str, Any]:
    rng = random.Random(seed)
    async with trio.open_nursery() as nursery:
        truth = Truth(rng, nursery, loss)
        shared = Shared(rng)
        volumes = []
        for link in truth.links:
            link.volume = Volume(
                nursery,
                {1: link},
                truth.world.dial,
                mount="/m",
                options=ClientOptions(local_names=local, flush_after_s=rng.choice((0.3, 5.0))),
                now_ns=truth.world.clock,
                random_bytes=truth.world.random_bytes,
            )
            await link.volume.start()
            link.volume._session.journal.delay_s = rng.choice((0.001, 0.01, 0.5))
            volumes.append(link.volume)
        handles = []
        for volume in volumes:
            counters, _ = await volume.create(ROOT_INO, b"counters", 0o600, os.O_RDWR, 0, 0)
            log, _ = await volume.create(ROOT_INO, b"log", 0o600, os.O_RDWR | os.O_APPEND, 0, 0)
            handles.append((volume, counters, log))
        async with trio.open_nursery() as workers:
            for task in range(2 * TASKS):
                volume, counters, log = handles[task % 2]
                workers.start_soon(shared.work, volume, task, counters, log)
            for _ in range(elections):
                await trio.sleep(rng.uniform(0.1, 1.5))
                truth.elect()
        for volume, _, log in handles:
            assert len(await shared.records(volume, log)) == shared.appended == sum(map(len, shared.log))
        statistics = volumes[0].statistics()["write_back"]
        for volume, counters, log in handles:
            for handle in (counters, log):
                await volume.flush(handle)
                await volume.release(handle)
        nursery.cancel_scope.cancel()
    return dict(statistics)


def run(seed: int, *, elections: int = 0, loss: float = 0.0, local: bool = True) -> dict[str, Any]:
    return trio.run(play, seed, elections, loss, local, clock=trio.testing.MockClock(autojump_threshold=0))


def fails(seed: int) -> bool:
    """Whether somebody misses what had returned."""
    missed = False
    try:
        run(seed)
    except* AssertionError:
        missed = True
    return missed


SETTINGS = settings(max_examples=200 if LONG else 25, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(st.integers(0, 1 << 32), st.booleans())
def test_what_write_returned_is_read_by_everybody(seed: int, local: bool) -> None:
    run(seed, local=local)


@SETTINGS
@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.1]))
def test_what_write_returned_is_read_after_an_election(seed: int, loss: float) -> None:
    run(seed, elections=3, loss=loss)


def test_a_write_that_stays_here_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule taken out: bytes written without an exclusive lease stay here until the close."""

    async def buffered(self: WriteBack, handle: Handle) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(WriteBack, "_through", buffered)
    assert any(fails(seed) for seed in range(50))


def test_who_writes_on_and_on_gives_the_file_back() -> None:
    """A recall is acknowledged although the file is never without new bytes. (Few, so that no thread hashes them.)"""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        written = 0

        async def write_on() -> None:
            nonlocal written
            while True:
                await first.write(handle, written, b"x" * 10)
                written += 10
                await trio.sleep(0.0001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            for _ in range(5):
                await trio.sleep(0.3)
                floor, begin = written, trio.current_time()
                assert (await second.getattr(attr.ino)).size >= floor > 0
                assert trio.current_time() - begin < 8.0, "that long only a broken lease takes"
            nursery.cancel_scope.cancel()
        assert handle.file.dead is None

    with_two_mounts(scene)


async def looked_at(truth: Truth, first: Volume, second: Volume, flags: int = os.O_RDWR) -> tuple[Handle, Handle]:
    """A file of the first mount that the second one has looked at, so that nobody has it exclusively from now on; open
    on both, on the second with ``flags``."""
    handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
    await first.write(handle, 0, b"old")
    truth.leasing.table._cool_s = 100.0
    theirs = await second.open(attr.ino, flags)
    assert bytes(await second.read(theirs, 0, 5)) == b"old"
    return handle, theirs


@asynccontextmanager
async def recalled(first: Volume, second: Volume, ino: int) -> AsyncIterator[None]:
    """The second mount's change of a file has it recalled from the first, whose kernel is being made to forget it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(second.setattr, ino, mode=0o640))
        while not first._session.recalls.giving(ino):  # noqa: ASYNC110
            await trio.sleep(0.001)
        yield


@pytest.mark.parametrize("later", ["written", "cut", "copied"])
def test_what_is_taken_while_a_recall_is_served_comes_before_what_begins_then(later: str) -> None:
    """The recall was of a lease that others had too, so the service takes their changes before it is acknowledged."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        first.caches(Slow())
        handle, theirs = await looked_at(truth, first, second)
        assert bytes(await first.read(handle, 0, 5)) == b"old"
        async with recalled(first, second, handle.ino):
            await first.write(handle, 0, b"taken")
            assert first._session.recalls.giving(handle.ino), "it waited for the kernel, which may wait for it"
            if later == "copied":
                copy, _ = await second.create(ROOT_INO, b"g", 0o600, os.O_RDWR, 0, 0)
                await second.copy(theirs, 0, copy, 0, 5)
            elif later == "cut":
                await second.setattr(handle.ino, size=2)
            else:
                await second.write(theirs, 0, b"later")
        if later == "copied":
            assert bytes(await second.read(copy, 0, 5)) == b"taken"
        else:
            for volume, opened in ((first, handle), (second, theirs)):
                assert bytes(await volume.read(opened, 0, 5)) == (b"ta" if later == "cut" else b"later")

    with_two_mounts(scene)


def test_what_takes_for_ever_to_commit_is_not_shown_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(self: WriteBack, file: File, **rest: Any) -> None:
        await trio.sleep_forever()

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, _ = await looked_at(truth, first, second)
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(WriteBack, "flush", stuck)
            nursery.start_soon(first.write, handle, 0, b"new")
            await trio.sleep(0.1)
            with pytest.raises(FsError) as failure:
                await first.read(handle, 0, 3)
            assert failure.value.code is Code.TIMEOUT
            monkeypatch.undo()
            nursery.cancel_scope.cancel()

    with_two_mounts(scene)


def test_crowded_chunks_are_rewritten_behind_the_journal() -> None:
    """What is told of the file is ahead of the service then, its data version too."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        model = bytearray(random.Random(1).randbytes(3 << 20))
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await first.write(handle, 0, bytes(model))
        await first.fsync(handle)
        for number in range(4):  # more than fits into an entry of the journal, and chunk 1 gets crowded
            for offset in [(1 << 20) + 9000 * n + 100 * number for n in range(70)]:
                await first.write(handle, offset, b"%04d" % number)
                model[offset : offset + 4] = b"%04d" % number
            for offset in (0, 2 << 20):
                model[offset : offset + 800_000] = bytes([number]) * 800_000
                await first.write(handle, offset, bytes([number]) * 800_000)
            began = trio.current_time()
            await first.fsync(handle)
            assert trio.current_time() - began < 5.0
        assert first.statistics()["write_back"]["rewrites"] > 1
        theirs = await second.open(attr.ino, os.O_RDONLY)
        assert bytes(await second.read(theirs, 0, len(model))) == model

    with_two_mounts(scene)


def test_nothing_is_taken_that_nobody_waits_for() -> None:
    """A recall is being served, and its leases have ended."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        first.caches(Slow())
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await second.getattr(attr.ino)
        await first.getattr(attr.ino)
        async with recalled(first, second, attr.ino):
            first._session.leases.drop_all()
            begin = trio.current_time()
            await first.write(handle, 8192, b"of a page", paged=True)
            assert trio.current_time() - begin < 0.1, "it waited for the kernel, which waits for it"
            await first.write(handle, 0, b"new")
            assert not handle.file.dirty, "who looks now is not made to wait for it"

    with_two_mounts(scene)


@pytest.mark.parametrize("paged_first", [False, True])
def test_who_has_lost_all_leases_keeps_nothing_that_is_written(paged_first: bool) -> None:
    """Only what comes from mapped pages stays then, while the kernel gives them back; and no other bytes along with
    it, because the service takes nobody for the owner of the file."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        first.caches(Slow())
        handle, theirs = await looked_at(truth, first, second, os.O_RDONLY)
        first._session.leases.drop_all()
        await trio.sleep(0.1)
        if paged_first:
            begin = trio.current_time()
            await first.write(handle, 4096, b"of a page", paged=True)
            assert trio.current_time() - begin < 0.1, "it waited for the kernel, which waits for it"
        await first.write(handle, 0, b"new")
        assert bytes(await second.read(theirs, 0, 3)) == b"new"
        if paged_first:
            assert bytes(await second.read(theirs, 4096, 9)) == b"of a page"

    with_two_mounts(scene)


def test_a_file_stays_the_same_while_a_wish_waits_for_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else needs it meanwhile; a second object would be written back beside it."""
    flush, flushed = WriteBack._flush, []

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        async def looked_up(self: WriteBack, file: File, *rest: Any) -> Any:
            flushed.append(first._files.get(file.ino) is file)
            return await flush(self, file, *rest)

        monkeypatch.setattr(WriteBack, "_flush", looked_up)
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await first.write(handle, 0, b"some bytes")
        await first.flush(handle)
        await first.release(handle)
        assert first._session.journal.concerns((attr.ino,)) and not flushed
        assert (await first.setattr(attr.ino, size=4)).size == 4
        assert flushed == [True] and first._files.get(attr.ino) is None

    with_two_mounts(scene)


def test_a_file_is_not_given_away_while_it_is_truncated() -> None:
    """A truncation behind data of the journal is part of the journal, though the file's own task sends it."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await first.write(handle, 0, b"some bytes")
        await first.flush(handle)
        propose, held, sizes = truth.service._propose, [], []

        def hold(call: Any, *rest: Any) -> None:
            if any(isinstance(op, SetAttr) for op in getattr(call.request, "ops", ())):
                held.append((call, *rest))
            else:
                propose(call, *rest)

        async def look() -> None:
            sizes.append((await second.getattr(attr.ino)).size)

        truth.service._propose = hold  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(first.setattr, attr.ino, size=4))
            await trio.sleep(0.1)
            nursery.start_soon(look)
            await trio.sleep(0.1)
            assert len(held) == 1 and not sizes
            truth.service._propose = propose  # type: ignore[method-assign]
            propose(*held[0])
        assert sizes == [4]

    with_two_mounts(scene)


def test_what_is_done_with_the_names_of_a_file_that_is_truncated_does_not_tell_its_old_size() -> None:
    """Until the service has answered nobody here knows what the file is, so nothing is made of it by this mount."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        directory = (await first.mkdir(ROOT_INO, b"d", 0o700, 0, 0)).ino
        handle, attr = await first.create(directory, b"f", 0o600, os.O_RDWR, 0, 0)
        await first.fsync(handle)
        first._session.journal.delay_s = 5.0
        propose, held, looked, came = truth.service._propose, [], [], trio.Event()

        def hold(call: Any, *rest: Any) -> None:
            held.append((call, *rest))
            came.set()

        async def truncate() -> None:
            await first.setattr(attr.ino, size=4)
            looked.append((await first.getattr(attr.ino)).size)

        truth.service._propose = hold  # type: ignore[method-assign]
        await first.write(handle, 0, b"some bytes")
        await first.flush(handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(truncate)
            await came.wait()
            nursery.start_soon(first.link, attr.ino, directory, b"g")
            nursery.start_soon(first.rename, directory, b"f", directory, b"h", 0)
            await trio.testing.wait_all_tasks_blocked()
            truth.service._propose = propose  # type: ignore[method-assign]
            propose(*held[0])
        assert looked == [4]
        assert (await second.lookup(directory, b"g")).size == (await first.lookup(directory, b"h")).size == 4

    with_two_mounts(scene)


def test_an_append_under_way_is_not_shown_where_it_does_not_land(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that has waited for earlier appends finds more in the buffer, whose place only the service knows."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        log, _ = await first.create(ROOT_INO, b"log", 0o600, os.O_RDWR | os.O_APPEND, 0, 0)
        theirs, _ = await second.create(ROOT_INO, b"log", 0o600, os.O_RDWR | os.O_APPEND, 0, 0)
        await second.write(theirs, 0, b"theirs, 16 bytes")
        flush = WriteBack.flush

        async def flush_and_more(self: WriteBack, file: File) -> None:
            await flush(self, file)
            if not file.dirty:
                file.append_base = 0  # where this mount believed the end before it heard of theirs
                file.dirty.write(0, b"mine, 16 bytes..")

        monkeypatch.setattr(WriteBack, "flush", flush_and_more)
        await flush_and_more(first._fileio._writeback, log.file)
        assert bytes(await first.read(log, 0, 100)).startswith(b"theirs, 16 bytes")
        monkeypatch.setattr(WriteBack, "flush", flush)

    with_two_mounts(scene)


def test_a_full_disk_is_told_to_who_writes() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await first.write(handle, 0, b"a")
        truth.leasing.table._cool_s = 100.0  # nobody has it exclusively from now on
        assert (await second.getattr(attr.ino)).size == 1
        mine = await second.open(attr.ino, os.O_RDWR)
        for store in truth.world.stores.values():
            store.before.append(always(Put, Code.NO_SPACE))
        with pytest.raises(FsError) as caught:
            await second.write(mine, 1, b"b" * (LOG_DATA_COMMIT_BYTES + 1))
        assert caught.value.code is Code.NO_SPACE
        assert (await first.getattr(attr.ino)).size == 1

    with_two_mounts(scene)


def test_a_small_write_is_one_request_and_so_is_the_look_at_it() -> None:
    """Its bytes travel with the commit, and back with the layout; how many extents there may be is known."""

    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        handle, attr = await first.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await first.write(handle, 0, b"first")
        await first.release(handle)
        truth.leasing.table._cool_s = 100.0
        reader = await second.open(attr.ino, os.O_RDONLY)
        assert bytes(await second.read(reader, 0, 100)) == b"first"
        for store in truth.world.stores.values():
            store.before.append(always(Put, Code.UNREACHABLE))
            store.before.append(always(Get, Code.UNREACHABLE))
        asked = []
        for text in (b"again", b"twice", b"third"):
            handle = await first.open(attr.ino, os.O_RDWR)
            before = first.statistics()["session"]["leader"]["calls"]
            await first.write(handle, 0, text)
            asked.append(first.statistics()["session"]["leader"]["calls"] - before)
            await first.release(handle)
            assert bytes(await second.read(reader, 0, 100)) == text
        assert asked == [1, 1, 1]

    with_two_mounts(scene)
