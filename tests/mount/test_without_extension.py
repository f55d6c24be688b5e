"""Where the C extension is missing, or asked to leave locks alone, a mount works all the same and says so."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FUSEFS, Cluster, run, wait_for

PYFUSE3_FIRST = "import sys, pyfuse3; from fusefs.mount.__main__ import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def plain(volume: Cluster, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A mount whose process has loaded pyfuse3 before the extension could come in between; and its log."""
    path, log = tmp_path / "plain", tmp_path / "log"
    path.mkdir()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", PYFUSE3_FIRST, "--cluster", volume.config, "--mount", path], stdout=out, stderr=out
        )
    try:
        wait_for(lambda: os.path.ismount(path), 60, "the mount")
        yield path, log
        run(FUSEFS, "umount", path)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
            subprocess.run(["umount", "-l", str(path)], capture_output=True)


def test_locks_hold_within_the_mount_and_the_log_says_so(plain: tuple[Path, Path], work: Path) -> None:
    path, log = plain
    assert "no extension" in log.read_text() and "pyfuse3 was loaded before it" in log.read_text()
    (path / work.name / "f").write_bytes(b"x" * 10000)
    with open(path / work.name / "f", "r+b") as one, open(path / work.name / "f", "r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(work / "f", "r+b") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another mount does not know
        assert os.lseek(one.fileno(), 0, os.SEEK_HOLE) == 10000
    old = os.umask(0o027)
    try:
        (path / work.name / "g").write_bytes(b"")
    finally:
        os.umask(old)
    assert (work / "g").stat().st_mode & 0o777 == 0o640


def test_a_mount_that_keeps_its_locks_to_itself(volume: Cluster, work: Path, tmp_path: Path) -> None:
    path = volume.mount(tmp_path / "own", "-o", "locks=local")
    (work / "f").write_bytes(b"x")
    with open(path / work.name / "f", "r+b") as one, open(path / work.name / "f", "r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(work / "f", "r+b") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
    volume.umount(path)
