"""Reads without threads: what the kernel is told, and what comes of it."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from node.host import uring
from node.host.disk import SystemFile
from node.host.uring import Done, Ring, open_ring

READS_MAX = 8
DATA = Random(1).randbytes(300_000)
ASYNC = 1 << 4
FLAGS_AT, ENTRY_BYTES = 1, 64


class Pipe:
    """A file that does not answer before something is written to it."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def fileno(self) -> int:
        return self.reading


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = open_ring(READS_MAX, 0.02)
    if made is None:
        pytest.skip("this kernel does not let us have an io_uring")
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> SystemFile:
    (tmp_path / "f").write_bytes(DATA)
    return SystemFile(tmp_path / "f", foreign=True)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reading)
    os.close(made.writing)


def wait(ring: Ring, count: int) -> dict[int, Done]:
    """What has ended, once it is so many, by token; told by epoll as it is to a loop."""
    poll = select.epoll()
    poll.register(ring, select.EPOLLIN)
    ended: list[Done] = []
    until = time.monotonic() + 10
    while len(ended) < count:
        assert time.monotonic() < until
        poll.poll(1)
        ended += ring.done()
    poll.close()
    return {one.token: one for one in ended}


def test_side_by_side_in_any_number(ring: Ring, file: SystemFile) -> None:
    rng = Random(2)
    for _ in range(300):  # around the ring many times
        ranges = [(rng.randrange(1, 70_000), rng.randrange(200_000)) for _ in range(rng.randrange(1, READS_MAX + 1))]
        tokens = ring.begin(file, ranges)
        ended = wait(ring, len(ranges))
        assert ring.under_way == 0
        for token, (length, offset) in zip(tokens, ranges):
            assert ended[token].result == length and ended[token].data == DATA[offset : offset + length]


def test_what_is_not_there(ring: Ring, file: SystemFile, tmp_path: Path) -> None:
    tokens = ring.begin(file, [(100, len(DATA) - 10), (100, len(DATA)), (1, 1 << 40)])
    ended = wait(ring, 3)
    assert [ended[token].result for token in tokens] == [10, 0, 0]
    directory = SystemFile(tmp_path, foreign=True)
    (token,) = ring.begin(directory, [(100, 0)])
    assert wait(ring, 1)[token].result == -errno.EISDIR
    directory.close()
    (token,) = ring.begin(directory, [(100, 0)])
    assert wait(ring, 1)[token].result == -errno.EBADF


def test_the_number_of_reads_is_bounded(ring: Ring, file: SystemFile, pipe: Pipe) -> None:
    for _ in range(READS_MAX - 1):
        ring.begin(pipe, [(1, 0)])  # type: ignore[arg-type]
    with pytest.raises(OSError, match="too many"):
        ring.begin(file, [(1, 0), (1, 1)])
    (token,) = ring.begin(file, [(7, 1)])
    assert wait(ring, 1)[token].data == DATA[1:8]
    os.write(pipe.writing, bytes(READS_MAX))
    wait(ring, READS_MAX - 1)
    assert ring.under_way == 0


def test_beside_one_that_takes_long_nothing_is_begun_here(ring: Ring, file: SystemFile, pipe: Pipe) -> None:
    def flags() -> list[int]:
        return [ring._entries[ENTRY_BYTES * index + FLAGS_AT] for index in range(READS_MAX)]

    ring.begin(pipe, [(1, 0)])  # type: ignore[arg-type]
    ring.begin(file, [(1, 0)])
    assert flags() == [0] * READS_MAX
    time.sleep(0.03)
    (token,) = ring.begin(file, [(5, 3)])
    assert flags() == [0, 0, ASYNC] + [0] * (READS_MAX - 3)
    assert wait(ring, 2)[token].data == DATA[3:8]
    os.write(pipe.writing, b"x")
    wait(ring, 1)
    ring.begin(file, [(1, 0)])
    assert flags()[3] == 0
    wait(ring, 1)


@pytest.mark.parametrize("taken", [0, 1])
def test_what_the_kernel_does_not_take_is_not_begun(
    ring: Ring, file: SystemFile, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    call = Ring._call
    calls = []

    def busy(number: int, *args: int) -> int:
        calls.append(number)
        if len(calls) > 1 or not taken:
            raise OSError(errno.EBUSY, "busy")
        return call(number, args[0], taken, *args[2:])

    monkeypatch.setattr(Ring, "_call", staticmethod(busy))
    with pytest.raises(OSError, match="busy"):
        ring.begin(file, [(10, 0), (10, 5), (10, 7)])
    monkeypatch.setattr(Ring, "_call", staticmethod(call))
    assert ring.under_way == taken
    (token,) = ring.begin(file, [(10, 100)])
    assert wait(ring, 1 + taken)[token].data == DATA[100:110]


def test_closing_leaves_the_memory_to_what_is_under_way(file: SystemFile, pipe: Pipe, ring: Ring) -> None:
    before = len(uring._unfinished)
    ring.begin(pipe, [(1, 0)])  # type: ignore[arg-type]
    ring.close()
    ring.close()
    assert uring._unfinished[before:] == [ring]
    uring._unfinished.remove(ring)


@pytest.mark.parametrize("why", ["another machine", "not allowed", "too old"])
def test_where_there_is_none(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def refuse(number: int, *args: int) -> int:
        raise OSError(errno.EPERM, "not allowed")

    if why == "another machine":
        monkeypatch.setattr(uring.platform, "machine", lambda: "aarch64")
    elif why == "not allowed":
        monkeypatch.setattr(Ring, "_call", staticmethod(refuse))
    else:
        monkeypatch.setattr(uring, "_NEEDED", 1 << 31)
    before = len(os.listdir("/proc/self/fd"))
    assert open_ring(READS_MAX, 0.02) is None
    assert len(os.listdir("/proc/self/fd")) == before
