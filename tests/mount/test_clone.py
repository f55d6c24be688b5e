"""``fusefs clone`` on a mount: what a user sees."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

from tests.harness import FUSEFS, Cluster, run


def refused(code: int, *words: str | Path) -> str:
    done = run(FUSEFS, "clone", *words, check=False, timeout_s=120)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_a_tree_costs_nothing_twice(volume: Cluster, work: Path) -> None:
    source = work / "source"
    subprocess.run(["cp", "-a", Path(sysconfig.get_paths()["stdlib"]) / "json", source], check=True)
    with open(source / "big", "wb", buffering=0) as file:
        file.write(os.urandom(3 << 20))
        os.fsync(file.fileno())  # or it is stored later
    (source / "link").symlink_to("big")
    before = volume.settled_bytes()
    with open(source / "open", "wb", buffering=0) as still_open:
        still_open.write(b"written before, not closed")  # and so part of it
        target = work / "target"
        assert not target.exists()
        done = json.loads(run(FUSEFS, "clone", source, target, "--json", timeout_s=120).stdout)
    subprocess.run(["diff", "-r", "--no-dereference", source, target], check=True)
    names = [path for path in source.rglob("*") if path.is_symlink() or path.is_file()]
    assert done["files"] == len(names) and done["bytes"] >= 3 << 20
    assert volume.settled_bytes() - before < 1 << 20
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        assert copy.lstat().st_mtime_ns == path.lstat().st_mtime_ns and copy.lstat().st_mode == path.lstat().st_mode
    (target / "big").write_bytes(b"else")
    assert (source / "big").stat().st_size == 3 << 20


def test_what_cannot_be_cloned(volume: Cluster, work: Path, tmp_path: Path) -> None:
    (work / "d").mkdir()
    (work / "f").write_text("data")
    assert "exists" in refused(1, work / "f", work / "d")
    assert "no such file" in refused(6, work / "nothing", work / "g")
    assert "no such file" in refused(6, work / "f", work / "nowhere" / "g")
    assert "not on a fusefs mount" in refused(1, work / "f", tmp_path / "g")
    assert "inside" in refused(1, work / "d", work / "d" / "e")
    refused(2, work / "f")
    assert sorted(os.listdir(work)) == ["d", "f"] and not os.listdir(work / "d")
