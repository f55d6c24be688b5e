"""Three chunk servers, three copies, two mounts that write: one server after the other dies, loses its disk or has
bytes flipped, and everything heals by itself. Then a fourth comes and another is drained, under the same load."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.copies import CopiesWatch, whole
from tests.fault.healing_worker import content, read_anew, remaining
from tests.harness import FUSEFS, LONG, Cluster, cluster, need_fuse, run, seed, wait_for

ROUNDS = 20 if LONG else 5
SMALL_FILES = 1500  # so many that chance spreads them evenly
PATIENCE_S = 240.0
FAST = {
    "metadata": {"gc_interval": "2s", "silent": "2s", "noout": "60s", "compare": "500ms"},
    "storage": {"heartbeat_interval": "300ms", "quarantine": "1s"},
    "client": {"block_cache_bytes": "0"},
}


@pytest.fixture(name="cluster")
def running(tmp_path: Path) -> Iterator[Cluster]:
    need_fuse()
    with cluster(tmp_path / "cluster", FAST, servers=3, replicas=3, capacity="1GiB") as made:
        yield made


class Load:
    """Two writers on two mounts, and what they were told is durable."""

    def __init__(self, cluster: Cluster, path: Path, number: int) -> None:
        self.cluster = cluster
        self.stop = path / "stop"
        self.mounts = [cluster.mount(path / name) for name in ("a", "b")]
        self.journals = [path / f"journal-{name}" for name in ("a", "b")]
        self.workers = [
            subprocess.Popen([
                sys.executable, "-m", "tests.fault.healing_worker", str(mount), str(mine), str(theirs), str(self.stop),
                str(number + index),
            ])
            for index, (mount, mine, theirs) in enumerate(zip(self.mounts, self.journals, self.journals[::-1]))
        ]

    def progress(self) -> None:
        """Return when both have written some more: a down server blocks nobody."""
        before = [len(journal.read_text()) if journal.exists() else 0 for journal in self.journals]

        def went_on() -> bool:
            assert all(worker.poll() is None for worker in self.workers), "a write, a removal or a read failed"
            return all(
                journal.exists() and len(journal.read_text()) > seen + 50
                for journal, seen in zip(self.journals, before)
            )

        wait_for(went_on, PATIENCE_S, "both mounts to go on writing")

    def check(self) -> None:
        """No read was wrong so far, and nobody failed."""
        lines = "".join(journal.read_text() for journal in self.journals if journal.exists())
        assert "wrong" not in lines, [line for line in lines.splitlines() if line.startswith("wrong")]
        assert not any(worker.poll() for worker in self.workers)

    def finish(self) -> None:
        """Stop, and see on fresh mounts that exactly what was acknowledged is there, and reads right."""
        self.stop.touch()
        for worker in self.workers:
            assert worker.wait(PATIENCE_S) == 0
        self.check()
        names = remaining(self.journals)
        for mount in self.mounts:
            self.cluster.umount(mount)
            self.cluster.mount(mount)
            assert {path.name for path in mount.iterdir() if path.is_file()} == names
            for name in sorted(names):
                assert read_anew(mount / name) == content(name), name
        print(f"{len(names)} files read right on both mounts")

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


def short(cluster: Cluster) -> Any:
    return cluster.status()["volume"]["under_replicated_blocks"]


def servers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    done = run(FUSEFS, "server", "list", cluster.config, "--json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout).get("servers", ())}


def healed(cluster: Cluster) -> None:
    """Return when nothing is missing, as the cluster says and as it is, and no row has anybody coming or going."""

    def calm() -> bool:
        done = run(FUSEFS, "server", "list", cluster.config, "--json", check=False)
        found = json.loads(done.stdout)
        return found.get("under_replicated_blocks") == 0 and found.get("changing_groups") == 0 and whole(cluster)

    wait_for(calm, PATIENCE_S, "the cluster to heal by itself")


def noticed(cluster: Cluster, name: str) -> None:
    """Return when a silent server is suspect."""
    wait_for(lambda: servers(cluster)[name]["state"] == "suspect", PATIENCE_S, f"the silence of {name} to be noticed")


def restart(cluster: Cluster, name: str) -> None:
    run(FUSEFS, "up", cluster.directory, "--only", name, "--detach", timeout_s=PATIENCE_S)


def flip(cluster: Cluster, name: str, rng: random.Random) -> None:
    """Flip bits in the data of some segments, as a bad disk does."""
    for segment in sorted((cluster.directory / name / "segments").glob("*.seg")):
        data = segment.read_bytes().rstrip(b"\0")
        with open(segment, "r+b") as file:
            for _ in range(3):
                at = rng.randrange(len(data) // 4, len(data)) if len(data) > 100_000 else 0
                if at:
                    file.seek(at)
                    file.write(bytes([data[at] ^ 0x10]))


def disturb(cluster: Cluster, load: Load, rng: random.Random) -> None:
    """Kill, wipe and flip, in any order, each while the others are whole."""
    names = [f"storage-{number}" for number in (1, 2, 3)]
    for action in rng.sample(("kill", "wipe", "flip"), 3):
        victim = rng.choice(names)
        print(action, victim)
        if action == "flip":
            flip(cluster, victim, rng)
            done = run(FUSEFS, "scrub", cluster.config, "--rate", "1GiB", "--json", check=False, timeout_s=PATIENCE_S)
            assert done.returncode in (0, 3), done.stderr
        else:
            cluster.kill(cluster.server_pids()[victim])
            load.progress()
            if action == "kill" and rng.random() < 0.5:
                noticed(cluster, victim)
            if action == "wipe":
                shutil.rmtree(cluster.directory / victim)
            restart(cluster, victim)
        load.progress()
        healed(cluster)


@pytest.mark.timeout(3600 if LONG else 900)
def test_everything_heals_by_itself(cluster: Cluster, tmp_path: Path) -> None:
    number = seed("healing")
    rng = random.Random(number)
    load = Load(cluster, tmp_path, number)
    try:
        load.progress()
        healed(cluster)
        for number in range(ROUNDS):
            print(f"round {number + 1}")
            disturb(cluster, load, rng)
            load.check()
        load.finish()
    finally:
        load.kill()
    healed(cluster)
    assert short(cluster) == 0


@pytest.mark.timeout(900)
def test_a_fourth_server_takes_its_share_and_another_is_drained(cluster: Cluster, tmp_path: Path) -> None:
    load = Load(cluster, tmp_path, seed("spreading"))
    small = load.mounts[0] / "small"
    small.mkdir()
    try:
        for number in range(SMALL_FILES):
            (small / str(number)).write_bytes(b"small %d" % number * 50)
        load.progress()
        healed(cluster)
        run(FUSEFS, "server", "add", cluster.config, "storage-4")
        with CopiesWatch(cluster) as watch:
            _grow(cluster)
            load.progress()
            _shrink(cluster)
            load.progress()
        print(watch.seen)
        assert watch.seen.looks > 3 and watch.seen.blocks > SMALL_FILES
        assert watch.seen.fewest >= 2, f"below min_durable: {watch.seen}"
        load.finish()
        for number in range(0, SMALL_FILES, 7):
            assert read_anew(load.mounts[1] / "small" / str(number)) == b"small %d" % number * 50
    finally:
        load.kill()
    healed(cluster)
    assert short(cluster) == 0
    run(FUSEFS, "server", "remove", cluster.config, "storage-1")
    assert "storage-1" not in cluster.server_pids()
    assert "storage-1" not in {row["name"] for row in cluster.status()["servers"]}


def _grow(cluster: Cluster) -> None:
    """A fourth server comes and takes its share."""
    restart(cluster, "storage-4")
    wait_for(lambda: servers(cluster).get("storage-4", {}).get("state") == "serving", PATIENCE_S, "the fourth to serve")
    done = run(FUSEFS, "rebalance", cluster.config, "--json", timeout_s=PATIENCE_S)
    for row in json.loads(done.stdout)["servers"]:  # bytes are what is spread, the number of groups follows
        assert abs(row["stored_bytes"] - row["target_bytes"]) <= 0.1 * row["target_bytes"], row

    def spread() -> bool:
        """What moved away is dropped soon after."""
        rows = servers(cluster).values()
        each = sum(row["blocks"] for row in rows) / sum(row["groups"] for row in rows)
        return all(abs(row["blocks"] - each * row["groups"]) <= 0.1 * row["blocks"] for row in rows)

    wait_for(spread, PATIENCE_S, "every server to hold what its groups have, within 10 %")


def _shrink(cluster: Cluster) -> None:
    """The first server gives away all it has."""
    run(FUSEFS, "server", "drain", cluster.config, "storage-1", "--json", timeout_s=PATIENCE_S)
    wait_for(lambda: servers(cluster)["storage-1"]["blocks"] == 0, PATIENCE_S, "the drained server to be empty")
