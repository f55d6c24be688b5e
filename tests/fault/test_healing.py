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

from tests.fault.healing_worker import content
from tests.harness import FUSEFS, LONG, Cluster, need_fuse, run, seed, wait_for

ROUNDS = 20 if LONG else 1
PATIENCE_S = 240.0
FAST = {
    "metadata": {"gc_interval": "3s", "silent": "3s", "noout": "60s"},
    "storage": {"heartbeat_interval": "300ms", "quarantine": "1s"},
}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    need_fuse()
    made = Cluster(tmp_path / "cluster", servers=3, replicas=3, capacity="1GiB")
    try:
        run(FUSEFS, "up", made.directory, *made.flags, "--no-start")
        with open(made.config, "a") as file:
            for section, keys in FAST.items():
                file.write(f"\n[{section}]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
        made.up()
        yield made
    finally:
        made.clean()


class Load:
    """Two writers on two mounts, and what they were told is durable."""

    def __init__(self, cluster: Cluster, path: Path, number: int) -> None:
        self.stop = path / "stop"
        self.mounts = [cluster.mount(path / name) for name in ("a", "b")]
        self.journals = [path / f"journal-{name}" for name in ("a", "b")]
        self.workers = [
            subprocess.Popen([
                sys.executable, "-m", "tests.fault.healing_worker", str(mount), str(journal), str(self.stop),
                str(number + index),
            ])
            for index, (mount, journal) in enumerate(zip(self.mounts, self.journals))
        ]

    def lines(self) -> list[str]:
        return [line for journal in self.journals if journal.exists() for line in journal.read_text().splitlines()]

    def progress(self) -> None:
        """Return when both have written some more: a down server blocks nobody."""
        before = [len(journal.read_text()) if journal.exists() else 0 for journal in self.journals]

        def went_on() -> bool:
            return all(
                journal.exists() and len(journal.read_text()) > seen + 50
                for journal, seen in zip(self.journals, before)
            )

        wait_for(went_on, PATIENCE_S, "both mounts to go on writing")

    def finish(self) -> None:
        """Stop, and see that each acknowledged file reads right on the other mount."""
        self.stop.touch()
        for worker in self.workers:
            assert worker.wait(PATIENCE_S) == 0
        lines = self.lines()
        assert not [line for line in lines if not line.startswith("wrote ")]
        for index, journal in enumerate(self.journals):
            other = self.mounts[1 - index]
            for line in journal.read_text().splitlines():
                name = line.split()[1]
                assert (other / name).read_bytes() == content(name), name

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
    """Return when nothing is missing, and no row has anybody coming or going."""

    def calm() -> bool:
        done = run(FUSEFS, "server", "list", cluster.config, "--json", check=False)
        found = json.loads(done.stdout)
        return found.get("under_replicated_blocks") == 0 and found.get("changing_groups") == 0

    wait_for(calm, PATIENCE_S, "the cluster to heal by itself")


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
            done = run(FUSEFS, "scrub", cluster.config, "--json", check=False, timeout_s=PATIENCE_S)
            assert done.returncode in (0, 3), done.stderr
        else:
            cluster.kill(cluster.server_pids()[victim])
            load.progress()
            if action == "wipe":
                shutil.rmtree(cluster.directory / victim)
            restart(cluster, victim)
        healed(cluster)


def fsck(cluster: Cluster) -> None:
    def clean() -> bool:
        done = run(FUSEFS, "fsck", cluster.config, "--json", check=False)
        print(done.stdout[-2000:] if done.returncode else "clean")
        return done.returncode == 0

    wait_for(clean, PATIENCE_S, "fsck to find nothing")


@pytest.mark.timeout(3600 if LONG else 900)
def test_everything_heals_by_itself(cluster: Cluster, tmp_path: Path) -> None:
    number = seed("healing")
    rng = random.Random(number)
    load = Load(cluster, tmp_path, number)
    try:
        load.progress()
        healed(cluster)
        for _ in range(ROUNDS):
            disturb(cluster, load, rng)
        _grow_and_shrink(cluster, load)
        load.finish()
    finally:
        load.kill()
    healed(cluster)
    assert short(cluster) == 0
    fsck(cluster)


def _grow_and_shrink(cluster: Cluster, load: Load) -> None:
    """A fourth server takes its share, then the first one gives all it has away, while the load goes on."""
    run(FUSEFS, "server", "add", cluster.config, "storage-4")
    restart(cluster, "storage-4")
    wait_for(lambda: servers(cluster).get("storage-4", {}).get("state") == "serving", PATIENCE_S, "the fourth to serve")
    run(FUSEFS, "rebalance", cluster.config, "--json", timeout_s=PATIENCE_S)
    for row in servers(cluster).values():
        assert abs(row["groups"] - row["target_groups"]) <= 0.1 * row["target_groups"], row
    load.progress()
    run(FUSEFS, "server", "drain", cluster.config, "storage-1", "--json", timeout_s=PATIENCE_S)
    wait_for(lambda: servers(cluster)["storage-1"]["blocks"] == 0, PATIENCE_S, "the drained server to be empty")
    load.progress()
    run(FUSEFS, "server", "remove", cluster.config, "storage-1")
    assert "storage-1" not in cluster.server_pids()
    assert "storage-1" not in {row["name"] for row in cluster.status()["servers"]}
