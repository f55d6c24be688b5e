"""Three metadata members and two mounts, each on a host of its own, while a nemesis kills, stops and cuts them.

Every call of the workload is recorded; the histories must be linearizable, every acknowledged fsync must be there
after healing, and the members must agree.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.nemesis_worker import RECORD
from tests.harness import FUSEFS, LONG, Cluster, need_fuse, run, seed, wait_for
from tests.linear import directory
from tests.linear.checker import NEVER, UNKNOWN, Operation, explain
from tests.netns import Network, network

MEMBERS = ("m1", "m2", "m3")
WORKLOAD_S = 300 if LONG else 30


class Hosts(Cluster):
    """A cluster whose processes and mounts run on separate hosts of a network."""

    def __init__(self, path: Path, net: Network) -> None:
        super().__init__(path)
        self.net = net
        self.host = {"metadata-1": "m1", "metadata-2": "m2", "metadata-3": "m3", "storage-1": "s1"}

    def create(self) -> None:
        address = [f"--address={name}={self.net.address[host]}:7000" for name, host in self.host.items()]
        run(FUSEFS, "up", self.directory, "--members=3", "--servers=1", "--transport=tcp", *address, "--no-start")

    def start(self, name: str) -> None:
        run(*self.net.inside(self.host[name]), FUSEFS, "up", self.directory, "--only", name, "--detach")

    def mount_on(self, host: str, path: Path) -> Path:
        path.mkdir()
        run(*self.net.inside(host), FUSEFS, "mount", self.config, path, "-o", "timeout=10s")
        self.mounts.append(path)
        return path

    def status_from(self, host: str) -> dict[str, Any]:
        done = run(*self.net.inside(host), FUSEFS, "status", self.config, "--json", check=False)
        return json.loads(done.stdout) if done.stdout.strip() else {"health": "down", "members": []}

    def leader(self) -> str | None:
        for member in self.status_from("c1")["members"]:
            if member["role"] == "leader":
                return str(member["name"])
        return None


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    need_fuse()
    with network(*MEMBERS, "s1", "c1", "c2") as net:
        made = Hosts(tmp_path / "data", net)
        try:
            made.create()
            for name in made.host:
                made.start(name)
            wait_for(lambda: made.status_from("c1")["health"] == "healthy", 60, "a healthy cluster")
            yield made
        finally:
            net.heal()
            made.clean()


class Nemesis:
    """Faults, one at a time, each undone before the next."""

    def __init__(self, hosts: Hosts, rng: random.Random) -> None:
        self.hosts, self.rng = hosts, rng
        self.done: list[str] = []

    def strike(self) -> None:
        fault = self.rng.choice([self.kill, self.kill_leader, self.stop, self.isolate, self.one_way, self.bridge])
        began = time.monotonic()
        self.done.append(fault.__name__)
        fault()
        self.hosts.net.heal()
        print(f"{fault.__name__} {time.monotonic() - began:.1f} s", flush=True)

    def _pause(self) -> None:
        time.sleep(self.rng.uniform(0.5, 4))

    def _member(self) -> str:
        return self.rng.choice(["metadata-1", "metadata-2", "metadata-3"])

    def _kill(self, name: str) -> None:
        self.hosts.kill(self.hosts.server_pids()[name])
        self._pause()
        self.hosts.start(name)

    def kill(self) -> None:
        self._kill(self._member())

    def kill_leader(self) -> None:
        self._kill(self.hosts.leader() or self._member())

    def stop(self) -> None:
        pid = self.hosts.server_pids()[self._member()]
        os.kill(pid, signal.SIGSTOP)
        self._pause()
        os.kill(pid, signal.SIGCONT)

    def isolate(self) -> None:
        self.hosts.net.isolate(self.rng.choice(MEMBERS))
        self._pause()

    def one_way(self) -> None:
        source, target = self.rng.sample(MEMBERS, 2)
        self.hosts.net.block(source, target)
        self._pause()

    def bridge(self) -> None:
        """Two members that cannot reach each other, though each reaches the third."""
        self.hosts.net.cut(*self.rng.sample(MEMBERS, 2))
        self._pause()


SPLIT = {"link": directory.split_link, "rename": directory.split_rename}


def _whole(operation: Operation, _number: int) -> list[Operation]:
    return [operation]


def histories(journals: list[Path]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = defaultdict(list)
    for journal in journals:
        for line in journal.read_text().splitlines():
            record = json.loads(line)
            call = tuple(record["call"])
            result = record.get("result", UNKNOWN)
            if call == ("list",) and result is not UNKNOWN and result != "ENOENT":
                result = frozenset(result)
            if record["object"].startswith("log") and result == "ENOENT":
                result = []
            end = record.get("end", NEVER)
            if end == NEVER and call[0] in ("read", "list"):
                continue  # it changed nothing
            operation = Operation(call, result, record["start"], end, record["process"])
            history = found[record["object"]]
            history += SPLIT.get(call[0], _whole)(operation, len(history))
    return found


STEPS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "names": (directory.EMPTY, directory.step),
    "register": (0, directory.register_step),
    "log": ((), directory.log_step),
}


def check(found: dict[str, list[Operation]]) -> None:
    for name, history in found.items():
        initial, step = STEPS[name.split("/")[0]]
        wrong = explain(history, initial, step)
        assert not wrong, f"{name} is not linearizable:\n" + "\n".join(map(str, sorted(wrong, key=lambda o: o.start)))


def check_durable(top: Path, found: dict[str, list[Operation]]) -> int:
    """Every acknowledged append is in its file, once."""
    checked = 0
    for name, history in found.items():
        if not name.startswith("log/"):
            continue
        data = (top / f"log{name.split('/')[1]}").read_bytes()
        assert len(data) % RECORD == 0
        values = [int(line) for line in data.split()]
        assert len(values) == len(set(values)), f"{name}: a record is there twice"
        for operation in history:
            if operation.call[0] == "append" and operation.end != NEVER:
                assert operation.call[1] in values, f"{name}: lost {operation}"
                checked += 1
    return checked


@pytest.mark.timeout(1800 if LONG else 600)
def test_history_is_linearizable_under_faults(hosts: Hosts, tmp_path: Path) -> None:
    rng = random.Random(seed("nemesis"))
    mounts = [hosts.mount_on("c1", tmp_path / "a"), hosts.mount_on("c2", tmp_path / "b")]
    (mounts[0] / "w").mkdir()
    workers, journals = [], []
    for process, kind in enumerate(("names", "names", "names", "names", "register", "register", "log", "log")):
        journal = tmp_path / f"journal{process}"
        journals.append(journal)
        arguments = [kind, mounts[process % 2] / "w", journal, rng.randrange(1 << 30), process + 1, WORKLOAD_S]
        workers.append(subprocess.Popen([sys.executable, "-m", "tests.fault.nemesis_worker", *map(str, arguments)]))
    nemesis = Nemesis(hosts, rng)
    try:
        end = time.monotonic() + WORKLOAD_S
        while time.monotonic() < end:
            nemesis.strike()
            time.sleep(rng.uniform(0.2, 1.5))
        for worker in workers:
            assert worker.wait(60) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(20)
    wait_for(lambda: hosts.status_from("c1")["health"] == "healthy", 60, "healing")
    found = histories(journals)
    operations = sum(map(len, found.values()))
    unknown = sum(o.end == NEVER for h in found.values() for o in h)
    check(found)
    checked = check_durable(mounts[1] / "w", found)
    print(f"{operations} operations ({unknown} unknown) in {len(found)} histories, {checked} fsyncs; {nemesis.done}")
    assert operations > 300 and checked > 20, "hardly anything was done: the test has no power"
    wait_for(lambda: _agree(hosts), 60, "the members to agree")


def _agree(hosts: Hosts) -> bool:
    members = hosts.status_from("c1")["members"]
    return len(members) == 3 and len({m["applied"] for m in members}) == 1 and len({m["term"] for m in members}) == 1
