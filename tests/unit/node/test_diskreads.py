"""Tasks that read files without a thread."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Optional

import pytest
import trio

from node.host import diskreads
from node.host.disk import SystemFile
from node.host.diskreads import DiskReads
from node.host.uring import open_ring
from node.wire.limits import DISK_READS_MAX
from node.wire.types import Buffer

from .test_uring import DATA, Pipe

pytestmark = pytest.mark.skipif(open_ring(1, 1.0) is None, reason="this kernel does not let us have an io_uring")


@pytest.fixture
def file(tmp_path: Path) -> SystemFile:
    (tmp_path / "f").write_bytes(DATA)
    return SystemFile(tmp_path / "f", foreign=True)


@asynccontextmanager
async def reads() -> AsyncIterator[DiskReads]:
    async with trio.open_nursery() as nursery:
        yield DiskReads(nursery)
        nursery.cancel_scope.cancel()


def forget(file: SystemFile) -> None:
    """Have the next read wait for the disk."""
    os.fsync(file.fileno())
    file.let_go(0, len(DATA))


async def test_many_tasks_at_once(file: SystemFile) -> None:
    async with reads() as disk, trio.open_nursery() as nursery:

        async def read(seed: int) -> None:
            rng = Random(seed)
            for _ in range(20):
                ranges = [(rng.randrange(1, 70_000), rng.randrange(200_000)) for _ in range(rng.randrange(1, 3))]
                if not rng.randrange(4):
                    forget(file)
                came = await disk.read(file, ranges)
                assert came == [DATA[offset : offset + length] for length, offset in ranges]

        for seed in range(DISK_READS_MAX // 2):
            nursery.start_soon(read, seed)


async def test_what_is_for_a_thread(file: SystemFile, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reads() as disk:
        assert await disk.read(file, [(10, len(DATA) - 5)]) is None
        assert await disk.read(file, [(1, n) for n in range(DISK_READS_MAX + 1)]) is None
        assert await disk.read(file, [(5, 0)]) == [DATA[:5]]
    monkeypatch.setattr(diskreads, "open_ring", lambda *_: None)
    async with reads() as disk:
        assert await disk.read(file, [(5, 0)]) is None


async def test_what_the_disk_says(tmp_path: Path) -> None:
    async with reads() as disk:
        with pytest.raises(IsADirectoryError):
            await disk.read(SystemFile(tmp_path, foreign=True), [(10, 0)])


async def test_a_reader_that_gives_up(file: SystemFile) -> None:
    pipe = Pipe()
    async with reads() as disk:
        with trio.move_on_after(0.05) as scope:
            await disk.read(pipe, [(3, 0), (3, 0)])  # type: ignore[arg-type]
        assert scope.cancelled_caught
        assert await disk.read(file, [(5, 7)]) == [DATA[7:12]]
        assert disk._ring is not None and disk._ring.under_way == 2
        os.write(pipe.writing, b"abcdef")
        with trio.fail_after(10):
            while disk._ring.under_way:  # noqa: ASYNC110
                await trio.sleep(0.001)
    os.close(pipe.reading)
    os.close(pipe.writing)


async def test_a_reader_that_outlives_the_loop() -> None:
    pipe = Pipe()
    answers: list[Optional[list[Buffer]]] = []
    async with trio.open_nursery() as nursery:
        async with reads() as disk:

            async def read() -> None:
                answers.append(await disk.read(pipe, [(3, 0)]))  # type: ignore[arg-type]

            nursery.start_soon(read)
            await trio.sleep(0.02)
    assert answers == [None]
    os.write(pipe.writing, b"abc")
    os.close(pipe.reading)
    os.close(pipe.writing)
