"""A chunk server comes to a cluster on tcp while everything runs: nobody knows its key yet, and nobody is restarted."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from tests.harness import FUSEFS, Cluster, free_port, need_fuse, run, wait_for

FILES = 400  # of 64 KiB that do not shrink: enough that chance spreads them evenly
FILE_BYTES = 64 << 10


def servers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    rows = json.loads(run(FUSEFS, "server", "list", cluster.config, "--json").stdout)["servers"]
    return {row["name"]: row for row in rows}


def write(directory: Path, seed: int, count: int) -> None:
    for number in range(count):
        with open(directory / f"{seed}-{number}", "wb") as file:
            file.write(random.Random(seed * 1000 + number).randbytes(FILE_BYTES))
    descriptor = os.open(directory / f"{seed}-{count - 1}", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def check(directory: Path, seed: int, count: int) -> None:
    for number in range(count):
        found = (directory / f"{seed}-{number}").read_bytes()
        assert found == random.Random(seed * 1000 + number).randbytes(FILE_BYTES), number


def test_a_server_is_added_over_tcp_and_nothing_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    need_fuse()
    cluster.flags = ["--servers", "2", "--replicas", "2", "--transport", "tcp", "--capacity", "256MiB"]
    run(FUSEFS, "up", cluster.directory, *cluster.flags, "--no-start")
    with open(cluster.config, "a") as file:
        file.write('\n[metadata]\nsilent = "5s"\ncompare = "500ms"\n[storage]\nheartbeat_interval = "300ms"\n')
        file.write('[client]\nblock_cache_bytes = "0"\n')
    cluster.up()
    mount = cluster.mount(tmp_path / "mnt")
    write(mount, 1, FILES)
    before, leaves = set(cluster.pids()), cluster.server_pids()["storage-1"]
    address = f"127.0.0.1:{free_port()}"
    added = json.loads(run(FUSEFS, "server", "add", cluster.config, "storage-3", "--address", address, "--json").stdout)
    assert added["introduced"] and added["address"] == f"tcp://{address}"
    taken = run(FUSEFS, "server", "add", cluster.config, "storage-4", "--address", address, check=False)
    assert taken.returncode == 1 and "storage-3 answers at" in taken.stderr
    assert "storage-4" not in cluster.config.read_text()
    run(FUSEFS, "up", cluster.directory, "--only", "storage-3", "--detach")
    wait_for(lambda: servers(cluster).get("storage-3", {}).get("groups"), 120, "storage-3 to get groups")
    write(mount, 2, 20)  # by the mount that was there before, some of it to the new one
    done = json.loads(run(FUSEFS, "rebalance", cluster.config, "--json", timeout_s=240).stdout)
    stored = {row["name"]: row["stored_bytes"] for row in done["servers"]}
    mean = sum(stored.values()) / 3
    assert all(abs(found - mean) <= mean / 10 for found in stored.values()), stored
    run(FUSEFS, "server", "drain", cluster.config, "storage-1", timeout_s=240)
    run(FUSEFS, "server", "remove", cluster.config, "storage-1")
    check(mount, 1, FILES)
    check(mount, 2, 20)
    write(mount, 3, 5)
    check(mount, 3, 5)
    wait_for(lambda: before - set(cluster.pids()) == {leaves}, 30, "storage-1, and nobody else, to have ended")
    audit = run(FUSEFS, "fsck", cluster.config, "--json", check=False)
    assert audit.returncode == 0, audit.stdout
