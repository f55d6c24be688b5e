"""That a name is not there is answered where a directory was just changed from here, without Python being woken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import LONG, Cluster, profile

FILES = 200
TRIALS = 2000 if LONG else 300


def asked(mount: Path) -> tuple[int, int]:
    """Look-ups that were answered by the extension, and those that were not."""
    told = profile(mount)
    row = told["operations"].get("lookup", {"count": 0})
    return int(told["statistics"]["mount.quiet.lookup"]), int(row["count"])


def test_what_is_made_is_not_looked_up_before(volume: Cluster, work: Path) -> None:
    (work / "first").mkdir()
    before = asked(volume.mounts[0])
    for number in range(FILES):
        (work / f"f{number}").touch()
        (work / f"d{number}").mkdir()
        os.rename(work / f"f{number}", work / f"g{number}")
    after = asked(volume.mounts[0])
    assert after[0] - before[0] > 2.5 * FILES and after[1] - before[1] < FILES // 2
    assert len(os.listdir(work)) == 1 + 2 * FILES


def test_who_asks_again_and_again_is_answered_by_the_kernel(volume: Cluster, work: Path) -> None:
    (work / "first").touch()
    (work / "second").touch()
    for _ in range(20):
        assert not (work / "nothing").exists()
    before = asked(volume.mounts[0])
    for _ in range(FILES):
        assert not (work / "nothing").exists()
    assert asked(volume.mounts[0]) == before


@pytest.mark.parametrize("how", ["touch", "mkdir", "rename", "link", "symlink"])
def test_what_another_mount_has_made_is_there(work: Path, second_mount: Path, how: str) -> None:
    """Each time the directory was changed here just before, so it is shown to the kernel."""
    there = second_mount / work.name
    (work / "source").touch()
    for number in range(TRIALS):
        (work / f"own{number}").touch()
        assert not (work / f"x{number}").exists()
        name = there / f"x{number}"
        if how == "rename":
            os.rename(there / f"own{number}", name)
        elif how == "link":
            os.link(there / "source", name)
        elif how == "symlink":
            name.symlink_to("source")
        else:
            getattr(name, how)()
        assert (work / f"x{number}").exists(), number
        if number % 2:
            (name.rmdir if how == "mkdir" else name.unlink)()
            assert not (work / f"x{number}").exists(), number
            (work / f"x{number}").touch(exist_ok=False)


def test_names_that_no_directory_has(work: Path) -> None:
    (work / "first").touch()
    for name, error in (("x" * 255, FileNotFoundError), ("x" * 256, OSError), ("\udcff", FileNotFoundError)):
        (work / "again").touch()
        with pytest.raises(error):
            (work / name).stat()
        (work / "again").unlink()
    assert (work / ".").stat().st_ino == work.stat().st_ino
