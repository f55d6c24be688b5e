"""Two mounts are one filesystem: what returned on one is seen by what begins on the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import LONG

TRIALS = 300 if LONG else 60


@pytest.fixture
def other(work: Path, second_mount: Path) -> Path:
    """The same directory through the second mount."""
    return second_mount / work.name


def test_names_are_seen_at_once(work: Path, other: Path) -> None:
    for i in range(TRIALS):
        a, b = work / f"f{i}", other / f"f{i}"
        assert not b.exists()
        a.write_text(str(i))
        assert b.read_text() == str(i)
        b.rename(other / f"g{i}")
        assert not a.exists() and (work / f"g{i}").read_text() == str(i)
        (work / f"g{i}").unlink()
        assert not (other / f"g{i}").exists()
        assert os.listdir(other) == os.listdir(work) == []


def test_data_is_seen_after_close(work: Path, other: Path) -> None:
    for i in range(TRIALS):
        first, second = f"{i:06}" * 700, f"{i + 1:06}" * 700
        (work / "f").write_text(first)
        assert (other / "f").read_text() == first
        (other / "f").write_text(second)  # same size
        assert (work / "f").read_text() == second
        assert (work / "f").stat().st_mtime_ns == (other / "f").stat().st_mtime_ns


def test_open_descriptor_sees_overwrite(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"old" * 1000)
    with open(other / "f", "rb", buffering=0) as f:
        assert f.read(3) == b"old"
        with open(work / "f", "r+b") as g:
            g.write(b"new" * 1000)
        assert os.pread(f.fileno(), 3000, 0) == b"new" * 1000


def test_fsync_is_seen_before_close(work: Path, other: Path) -> None:
    with open(work / "f", "wb") as f:
        f.write(b"x" * 5000)
        f.flush()
        os.fsync(f.fileno())
        assert (other / "f").read_bytes() == b"x" * 5000


def test_appends_interleave_without_loss(work: Path, other: Path) -> None:
    for i in range(TRIALS):
        with open((work, other)[i % 2] / "log", "ab") as f:
            f.write(b"%05d\n" % i)
    assert (work / "log").read_bytes() == b"".join(b"%05d\n" % i for i in range(TRIALS))
    # both open at the same time
    with open(work / "log", "ab", buffering=0) as f, open(other / "log", "ab", buffering=0) as g:
        for i in range(20):
            (f, g)[i % 2].write(b"+%04d\n" % i)
            os.fsync((f, g)[i % 2].fileno())
    tail = (work / "log").read_bytes()[6 * TRIALS :]
    assert sorted(tail.splitlines()) == [b"+%04d" % i for i in range(20)]


def test_open_file_survives_removal_elsewhere(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"still here")
    with open(work / "f", "rb", buffering=0) as f:
        (other / "f").unlink()
        assert not (work / "f").exists()
        assert f.read() == b"still here"


def test_replaced_name_never_vanishes(work: Path, other: Path) -> None:
    """While one mount renames over a name, the other always finds it, old or new and whole."""
    (work / "f").write_text("0" * 100)
    for i in range(TRIALS):
        (work / "tmp").write_text(str(i % 10) * 100)
        os.replace(work / "tmp", work / "f")
        text = (other / "f").read_text()
        assert text == str(i % 10) * 100
