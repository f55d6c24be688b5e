"""Which files a process has mapped."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from fusefs.mount.mapped import Mappable
from fusefs.mount.mappings import device_of, mapped, mapped_by
from tests.unit.mount.attrs import Opened


def device(path: Path) -> str:
    number = path.stat().st_dev
    return device_of(f"{os.major(number)}:{os.minor(number)}")


def gone() -> int:
    """The number of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_devices() -> None:
    assert device_of("0:47") == "00:2f" and device_of("254:1") == "fe:01" and device_of("259:300") == "103:12c"


def test_what_a_process_has_mapped(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("with a space", "b", "c")]
    for path in paths:
        path.write_bytes(bytes(mmap.PAGESIZE))
    where, (one, other, open_only) = device(tmp_path), [path.stat().st_ino for path in paths]
    with open(paths[0], "rb") as file, open(paths[2], "rb"):
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = mapped_by(os.getpid(), where)
    assert found is not None and one in found and other not in found and open_only not in found
    assert mapped_by(os.getpid(), "ff:ff") == frozenset()
    me, dead = os.getpid(), gone()
    assert mapped_by(dead, where) is None
    assert mapped({one: [me], other: [me], 7: [dead], 8: []}, where) == [one, 7], "who cannot be seen may have it"
    assert mapped({other: [me, dead]}, where) == [other]
    mapping.close()
    assert mapped({one: [me]}, where) == []


async def test_only_what_is_mapped_and_nobody_can_change_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(mmap.PAGESIZE))
    ino = path.stat().st_ino
    files = Mappable()
    handles = [Opened(ino=number, flags=os.O_RDONLY) for number in (ino, ino + 1)]
    for handle in handles:
        files.opened(handle, os.getpid())  # type: ignore[arg-type]
    files.opened(Opened(ino=ino + 2, flags=os.O_RDWR), os.getpid())  # type: ignore[arg-type]
    assert files.read_only() == [ino, ino + 1] == files.read_only([ino + 2, ino, ino + 1, ino + 3])
    assert await files.mapped([ino, ino + 1]) == [ino, ino + 1], "nobody can tell"
    files.device = device(tmp_path)
    assert await files.mapped([ino, ino + 1]) == [] == await files.mapped([])
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ):
        assert await files.mapped([ino, ino + 1, ino + 9]) == [ino]
        files.released(handles[0])  # type: ignore[arg-type]
        assert await files.mapped([ino, ino + 1]) == []
    os.close(fd)
    blocked = threading.Event()
    monkeypatch.setattr("fusefs.mount.mapped.mapped", lambda openers, device: blocked.wait(60))
    began = trio.current_time()
    assert await files.mapped([ino + 1]) == [ino + 1] and trio.current_time() - began < 10, "nobody waits for ever"
    blocked.set()
