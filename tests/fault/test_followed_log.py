"""Two programs, each on a mount of its own, append to a log without syncing and follow the other's through a descriptor
that stays open, on a busy machine, while the leader dies: no look shows less than was written before it."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fault.chaos_worker import HUNG_S, NAME
from tests.harness import FUSEFS, cluster, need_fuse, run, seed, wait_for

KILLS = 2
BUSY = 2  # processes beside, so that answers wait to be looked at
WORK_S = (1.5, 2.5)


@contextlib.contextmanager
def processes(*commands: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run all; none is left."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command))
        yield started
    finally:
        for one in started:
            one.kill()
            one.wait(60)


def test_what_is_followed_is_never_behind_when_the_leader_dies(tmp_path: Path) -> None:
    need_fuse()
    rng = random.Random(seed("followed log"))
    with cluster(tmp_path / "data", members=3, servers=3, replicas=3) as made:
        mounts = [made.mount(tmp_path / name) for name in ("a", "b")]
        (mounts[0] / NAME).mkdir()
        journals = [tmp_path / f"tail-{number}" for number in (1, 2)]
        busy = [["nice", sys.executable, "-c", "while True: pass"]] * BUSY
        work = [
            [sys.executable, "-m", "tests.fault.chaos_worker", "tail", str(mount), str(journal), str(number),
             str(rng.getrandbits(30))]
            for number, (mount, journal) in enumerate(zip(mounts, journals), 1)
        ]  # fmt: skip
        with processes(*busy), processes(*work) as programs:
            for _ in range(KILLS):
                time.sleep(rng.uniform(*WORK_S))
                (leader,) = [member["name"] for member in made.status()["members"] if member["role"] == "leader"]
                made.kill(made.server_pids()[leader])
                time.sleep(rng.uniform(*WORK_S))
                run(FUSEFS, "up", made.directory, "--only", leader, "--detach")
            for program in programs:
                assert program.poll() is None, "a program has ended by itself"
                program.terminate()
            for program in programs:
                wait_for(lambda program=program: program.poll() is not None, HUNG_S, "a program to end")
        for journal in journals:
            lines = journal.read_text().splitlines()
            assert [line for line in lines if line.split()[0] in ("wrong", "missed", "failed")] == [], journal.name
            assert sum(line.startswith("shown") for line in lines) > 50
