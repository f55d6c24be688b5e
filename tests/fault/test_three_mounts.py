"""Three mounts, each on a host of its own with kernel caches on, and three members: histories of concurrent programs
are linearizable, while the leader is killed, a mount is stopped and goes on, and one is cut off and comes back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.wire.limits import SESSION_LEASE_S
from tests.fault.hosts import Hosts
from tests.fault.test_three_members import check, histories
from tests.harness import LONG, need_fuse, seed, wait_for
from tests.linear.checker import NEVER
from tests.netns import network

KINDS = ("names", "over", "log", "cut")
ROUNDS = 8 if LONG else 1
CALM_S = 2.0


@pytest.fixture
def rng() -> random.Random:
    return random.Random(seed("three-mounts"))


@pytest.fixture
def hosts(tmp_path: Path, rng: random.Random) -> Iterator[Hosts]:
    need_fuse()
    with network("m1", "m2", "m3", "s1", "c1", "c2", "c3") as net:
        made = Hosts(tmp_path / "data", net, ("m1", "m2", "m3"), rng)
        try:
            made.create()
            made.up()
            wait_for(lambda: made.status()["health"] == "healthy", 60, "a healthy cluster")
            yield made
        finally:
            net.heal()
            made.clean()


class Faults:
    """One after the other, each with all mounts at work before, meanwhile and after."""

    def __init__(self, hosts: Hosts, mounts: list[Path], rng: random.Random) -> None:
        self.hosts, self.mounts, self.rng = hosts, mounts, rng

    def kill_leader(self) -> None:
        name = wait_for(self.hosts.leader, 60, "a leader")
        self.hosts.kill(self.hosts.server_pids()[name])
        time.sleep(CALM_S)
        self.hosts.start(name)

    def stop_mount(self) -> None:
        pid = self.hosts.mount_pid(self.rng.choice(self.mounts))
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.rng.uniform(0.1, SESSION_LEASE_S + 2))
        finally:
            os.kill(pid, signal.SIGCONT)

    def cut_mount_off(self) -> None:
        self.hosts.net.isolate(self.rng.choice(("c1", "c2", "c3")))
        time.sleep(self.rng.uniform(0.1, SESSION_LEASE_S + 2))
        self.hosts.net.heal()

    def all(self) -> None:
        faults = [self.kill_leader, self.stop_mount, self.cut_mount_off]
        self.rng.shuffle(faults)
        for fault in faults:
            time.sleep(CALM_S)
            began = time.monotonic()
            fault()
            print(f"{fault.__name__} {time.monotonic() - began:.1f} s", flush=True)
        time.sleep(CALM_S)


@pytest.mark.timeout(1800 if LONG else 300)
def test_three_mounts_see_one_history(hosts: Hosts, tmp_path: Path, rng: random.Random) -> None:
    mounts = [hosts.mount_on(host, tmp_path / host) for host in ("c1", "c2", "c3")]
    (mounts[0] / "w").mkdir()
    workers, journals = [], []
    faults = Faults(hosts, mounts, rng)
    for process, (kind, mount) in enumerate((kind, mount) for kind in KINDS for mount in mounts):
        journal = tmp_path / f"journal{process}"
        journals.append(journal)
        arguments = [kind, mount / "w", journal, rng.randrange(1 << 30), process + 1]
        workers.append(subprocess.Popen([sys.executable, "-m", "tests.fault.three_worker", *map(str, arguments)]))
    try:
        for _ in range(ROUNDS):
            faults.all()
        for worker in workers:
            assert worker.poll() is None, f"{worker.args} has ended by itself"
            worker.terminate()
        for worker in workers:
            assert worker.wait(90) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(60)
    found = histories(journals)
    operations = sum(map(len, found.values()))
    unknown = sum(one.end == NEVER for history in found.values() for one in history)
    print(f"{operations} operations ({unknown} unknown) in {len(found)} histories")
    check(found)
    assert operations > 300 and {name.split("/")[0] for name in found} == set(KINDS)
