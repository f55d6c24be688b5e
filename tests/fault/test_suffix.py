"""A mount is killed while a program works that syncs nothing: what is lost is a suffix of its work, in its order."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import blake3
import pytest

from node.host.paths import fsync_directory
from tests.fault.suffix_worker import File, Step, Work
from tests.harness import LONG, cluster, need_fuse, seed

ROUNDS = 100 if LONG else 6

State = dict[str, bytes | str | None]  # path -> digest of a file, target of a symbolic link, None for a directory


def digest(data: bytes | bytearray) -> bytes:
    return blake3.blake3(data).digest()


def found_in(top: Path) -> State:
    state: State = {}
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        state[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else digest(path.read_bytes())
    return state


def is_torn(work: Work, step: Step, top: Path, found: State, wrong: set[str]) -> bool:
    """Whether all that is wrong after a write is that its end is missing, as where a file's blocks meet."""
    opened = work.model.opened.get(step.handle)
    if opened is None or step.call not in ("write", "append"):
        return False
    for path in wrong:
        if work.model.names.get(path) is not opened or not isinstance(found.get(path), bytes):
            return False
        data = (top / path).read_bytes()
        end = step.offset + len(step.data)
        if not (step.offset <= len(data) < end == len(opened.data) and opened.data.startswith(data)):
            return False
    return True


def kept(seed_: int, steps: int, top: Path) -> int:
    """After how many steps the directory was what is found now; AssertionError: it never was."""
    work, found = Work(seed_), found_in(top)
    state: State = {}
    step = Step("")
    best: tuple[int, int, set[str]] = len(found) + 1, 0, set()
    for done in range(steps + 2):  # the last one may have happened, and not been marked
        wrong = {path for path in state.keys() | found.keys() if state.get(path, "") != found.get(path, "")}
        if not wrong or is_torn(work, step, top, found, wrong):
            return done
        best = min(best, (len(wrong), done, wrong))
        step = work.next()
        model = work.model
        changed = [model.opened.get(step.handle), model.names.get(step.path), model.names.get(step.other)]
        for path in state.keys() - model.names.keys():
            del state[path]
        for path, what in model.names.items():
            if isinstance(what, File):
                if path not in state or any(what is one for one in changed):
                    state[path] = digest(what.data)
            else:
                state[path] = what
    sizes = {path: (top / path).stat().st_size if path in found else None for path in sorted(best[2])[:5]}
    raise AssertionError(f"SEED={seed_}: after no step it was so; nearest: {best[1]} of {steps}, but for {sizes}")


@pytest.mark.timeout(3600 if LONG else 600)
def test_what_a_killed_mount_loses_is_a_suffix(tmp_path: Path) -> None:
    need_fuse()
    rng = random.Random(seed("suffix"))
    lost = total = 0
    with cluster(tmp_path / "data") as made:
        for number in range(ROUNDS):
            mount = made.mount(tmp_path / "mnt")
            top, done = mount / str(number), tmp_path / f"done-{number}"
            top.mkdir()
            done.touch()
            fsync_directory(mount)
            seed_ = rng.randrange(1 << 30)
            command = [sys.executable, "-m", "tests.fault.suffix_worker", str(seed_), str(top), str(done)]
            worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                time.sleep(rng.uniform(0.3, 2.0))
                if rng.random() < 0.5:
                    made.kill_all()
                    made.up()
                else:
                    made.kill(made.mount_pid(mount))
            finally:
                worker.kill()
                worker.wait(20)
            made.mount(mount)
            steps = done.stat().st_size
            left = kept(seed_, steps, top)
            print(f"SEED={seed_}: {left} of {steps} steps are left")
            lost, total = lost + max(steps - left, 0), total + steps
            made.umount(mount)
    assert lost and total > 100 * ROUNDS, "no power"
