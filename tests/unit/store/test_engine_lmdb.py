"""What only the engine on disk has: growth, a full disk, replacement under a crash, kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metadata.store.disk import FatalDiskError, RealDisk
from metadata.store.engine_lmdb import LmdbEngine
from node.wire.errors import Code, FsError

MIB = 1 << 20


class SmallDisk(RealDisk):
    """A real disk that says how much it has left."""

    def __init__(self) -> None:
        self.room = 1 << 40

    def free_bytes(self, path: str) -> int:
        return self.room


def fill(engine: LmdbEngine, first: int, count: int) -> None:
    for index in range(first, first + count):
        engine.put(b"%08d" % index, b"x" * 1000)


def test_the_map_grows_between_commits_without_loss(tmp_path: Path) -> None:
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state", map_bytes=2 * MIB)
    for turn in range(40):
        fill(engine, turn * 200, 200)
        engine.commit()
    assert engine.statistics()["map_bytes"] >= 8 * MIB
    assert engine.statistics()["keys"] == 8000
    engine.close()
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state", map_bytes=2 * MIB)
    fill(engine, 8000, 200)
    engine.commit()
    assert engine.get(b"%08d" % 8199) == b"x" * 1000 and engine.statistics()["keys"] == 8200
    engine.close()


def test_growth_waits_for_views(tmp_path: Path) -> None:
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state", map_bytes=4 * MIB)
    fill(engine, 0, 1000)
    engine.commit()
    with engine.snapshot() as view:
        fill(engine, 1000, 800)
        engine.commit()
        assert engine.statistics()["map_bytes"] == 4 * MIB
        assert sum(1 for _ in view.items()) == 1000
    fill(engine, 1800, 1)
    engine.commit()
    assert engine.statistics()["map_bytes"] == 8 * MIB
    engine.close()


def test_a_full_map_ends_the_process_and_loses_nothing_committed(tmp_path: Path) -> None:
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state", map_bytes=1 * MIB)
    fill(engine, 0, 100)
    engine.commit()
    with pytest.raises(FatalDiskError):
        fill(engine, 100, 5000)
    engine.close()
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state", map_bytes=64 * MIB)
    assert engine.statistics()["keys"] == 100
    fill(engine, 100, 5000)
    engine.commit()
    engine.close()


def test_a_full_disk_refuses_the_commit_and_keeps_the_changes(tmp_path: Path) -> None:
    disk = SmallDisk()
    engine = LmdbEngine(disk, f"{tmp_path}/state")
    fill(engine, 0, 100)
    disk.room = 1 * MIB
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            engine.commit()
        assert caught.value.code == Code.NO_SPACE
    assert engine.get(b"%08d" % 99) == b"x" * 1000 and engine.statistics()["dirty"] == 100
    disk.room = 1 << 40
    engine.commit()
    engine.close()
    engine = LmdbEngine(disk, f"{tmp_path}/state")
    assert engine.statistics()["keys"] == 100
    engine.close()


def dying_at(step: int, real: Callable[..., object]) -> Callable[..., object]:
    calls = iter(range(100))

    def dies(*arguments: object, **named: object) -> object:
        if next(calls) == step:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    return dies


@pytest.mark.parametrize("where", ["sync_directory", "rename", "open"])
def test_a_replacement_that_dies_at_any_step_shows_the_old_or_the_new_state(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(6):
        path = f"{tmp_path}/{where}-{step}"
        disk = RealDisk()
        engine = LmdbEngine(disk, path)
        engine.put(b"old", b"1")
        engine.commit()
        with monkeypatch.context() as patch:
            patch.setattr(RealDisk, where, dying_at(step, getattr(RealDisk, where)))
            try:
                engine.replace([(b"new", b"2")])
            except KeyboardInterrupt:
                pass
        engine.close()
        engine = LmdbEngine(disk, path)
        assert engine.range(b"", b"\xff") in ([(b"old", b"1")], [(b"new", b"2")])
        assert [name for name in os.listdir(path) if name.endswith(".mdb")] == [
            f"state-{1 if engine.get(b'old') else 2:08d}.mdb"
        ]
        engine.close()


def test_keys_that_do_not_rise_replace_nothing(tmp_path: Path) -> None:
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state")
    engine.put(b"old", b"1")
    with pytest.raises((FsError, FatalDiskError)):
        engine.replace([(b"b", b""), (b"a", b"")])
    assert engine.range(b"", b"\xff") == [(b"old", b"1")]
    engine.close()


def test_a_pointer_to_nothing_is_refused(tmp_path: Path) -> None:
    engine = LmdbEngine(RealDisk(), f"{tmp_path}/state")
    engine.close()
    for content in (b"", b"7\n", b"x"):
        (tmp_path / "state" / "CURRENT").write_bytes(content)
        with pytest.raises(FsError) as caught:
            LmdbEngine(RealDisk(), f"{tmp_path}/state")
        assert caught.value.code == Code.IO


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    LmdbEngine(RealDisk(), f"{tmp_path}/state").close()
    path = tmp_path / "state" / "state-00000001.mdb"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(FsError) as caught:
        LmdbEngine(RealDisk(), f"{tmp_path}/state")
    assert caught.value.code == Code.IO


WRITER = """
import sys
from metadata.store.disk import RealDisk
from metadata.store.engine_lmdb import LmdbEngine
engine = LmdbEngine(RealDisk(), sys.argv[1])
index = int(engine.get(b"applied") or 0)
while True:
    index += 1
    for part in range(20):
        engine.put(b"part%d" % part, b"%d" % index)
    engine.put(b"applied", b"%d" % index)
    if index % 3 == 0:
        engine.commit()
        print(index, flush=True)
"""


def test_kill_leaves_the_last_commit_whole(tmp_path: Path) -> None:
    path, told = f"{tmp_path}/state", 0
    for turn in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(5 + turn):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            process.wait()
            told = max([told, *map(int, process.stdout.read().split())])
        engine = LmdbEngine(RealDisk(), path)
        applied = int(engine.get(b"applied") or 0)
        assert applied >= told and applied % 3 == 0
        assert {value for _, value in engine.range(b"part", b"paru")} == {b"%d" % applied}
        engine.close()
