"""Three metadata members and two mounts, each on a host of its own, while a nemesis kills, stops and cuts
them, fills their disks, sets their clocks and replaces them.

Every call of the workload is recorded; the histories must be linearizable, every acknowledged fsync must be there
after healing, and the members must agree.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fault import nemesis_worker
from tests.fault.hosts import Hosts
from tests.fault.nemesis import Nemesis
from tests.fault.nemesis_worker import RECORD
from tests.harness import LONG, need_fuse, seed, wait_for
from tests.linear import directory
from tests.linear.checker import NEVER, UNKNOWN, Operation, explain
from tests.netns import network

WORKLOAD_S = 300 if LONG else 45
KINDS = ("names", "names", "names", "names", "register", "register", "log", "log", "swap", "swap")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(seed("nemesis"))


@pytest.fixture
def hosts(tmp_path: Path, rng: random.Random) -> Iterator[Hosts]:
    need_fuse()
    places = ("m1", "m2", "m3", "m4")
    with network(*places, "s1", "c1", "c2") as net:
        made = Hosts(tmp_path / "data", net, places, rng)
        try:
            made.create()
            made.up()
            wait_for(lambda: made.status()["health"] == "healthy", 60, "a healthy cluster")
            yield made
        finally:
            net.heal()
            made.clean()


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
            if record["object"].startswith(("log", "cut")) and result == "ENOENT":
                result = []
            end = record.get("end", NEVER)
            if end == NEVER and call[0] in ("read", "list", "get"):
                continue  # it changed nothing
            operation = Operation(call, result, record["start"], end, record["process"])
            history = found[record["object"]]
            history += SPLIT.get(call[0], _whole)(operation, len(history))
    return found


STEPS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "names": (directory.EMPTY, directory.step),
    "register": (0, directory.register_step),
    "over": (0, directory.register_step),
    "log": ((), directory.log_step),
    "cut": ((), directory.log_step),
    "swap": ((), directory.swap_step),
}


def check(found: dict[str, list[Operation]]) -> None:
    for name, history in found.items():
        kind = name.split("/")[0]
        initial, step = STEPS[kind]
        if kind == "log":
            step = directory.log_step_for(history)
        wrong = explain(history, initial, step)
        assert not wrong, f"{name} is not linearizable:\n" + "\n".join(map(str, sorted(wrong, key=lambda o: o.start)))


def check_durable(top: Path, found: dict[str, list[Operation]]) -> int:
    """Every acknowledged append is in its file, once; every acknowledged swap is the version that it made."""
    checked = 0
    for name, history in found.items():
        if name.startswith("swap/"):
            checked += check_swaps(top / name.replace("/", ""), history)
        if not name.startswith("log/"):
            continue
        path = top / f"log{name.split('/')[1]}"
        data = path.read_bytes() if path.exists() else b""  # the only append to it may have ended with the workload
        assert len(data) % RECORD == 0
        values = [int(line) for line in data.split()]
        assert len(values) == len(set(values)), f"{name}: a record is there twice"
        for operation in history:
            if operation.call[0] == "append" and operation.end != NEVER:
                assert operation.call[1] in values, f"{name}: lost {operation}"
                checked += 1
    return checked


def check_swaps(where: Path, history: list[Operation]) -> int:
    done = [operation.call for operation in history if operation.call[0] == "swap" and operation.result == "ok"]
    for _, version, value in done:
        assert nemesis_worker.version_of(where, version) == value, f"{where}: lost version {version}"
    return len(done)


def run_workload(top: list[Path], tmp_path: Path, rng: random.Random, nemesis: Nemesis) -> list[Path]:
    """All kinds of work on both mounts at once while the nemesis strikes; return the journals."""
    workers, journals = [], []
    for process, kind in enumerate(KINDS):
        journal = tmp_path / f"journal{process}"
        journals.append(journal)
        arguments = [kind, top[process % 2], journal, rng.randrange(1 << 30), process + 1, WORKLOAD_S]
        workers.append(subprocess.Popen([sys.executable, "-m", "tests.fault.nemesis_worker", *map(str, arguments)]))
    try:
        end = time.monotonic() + WORKLOAD_S
        while time.monotonic() < end:
            nemesis.strike()
            time.sleep(rng.uniform(0.2, 1.0))
        for worker in workers:
            assert worker.wait(90) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(20)
    return journals


def look_again(top: Path, journals: list[Path], tmp_path: Path) -> Path:
    """Read everything once more, after all is over, as a part of every history; now each call has to be answered."""
    journal = tmp_path / "journal-last"
    names = {json.loads(line)["object"] for path in journals for line in path.read_text().splitlines()}
    with contextlib.closing(nemesis_worker.Recorder(journal, 99)) as record:
        for name in sorted(names):
            nemesis_worker.look(record, name, top)
            assert not record.failed, record.failed
    return journal


@pytest.mark.timeout(1800 if LONG else 600)
def test_history_is_linearizable_under_faults(hosts: Hosts, tmp_path: Path, rng: random.Random) -> None:
    mounts = [hosts.mount_on("c1", tmp_path / "a"), hosts.mount_on("c2", tmp_path / "b")]
    (mounts[0] / "w").mkdir()
    top = [mount / "w" for mount in mounts]
    nemesis = Nemesis(hosts, mounts, rng)
    journals = run_workload(top, tmp_path, rng, nemesis)
    wait_for(lambda: hosts.status()["health"] == "healthy", 60, "healing")
    with hosts.accounting():
        journals.append(look_again(top[0], journals, tmp_path))
    found = histories(journals)
    operations = sum(map(len, found.values()))
    unknown = sum(o.end == NEVER for h in found.values() for o in h)
    check(found)
    with hosts.accounting():
        checked = check_durable(top[1], found)
    for mount in mounts:
        wait_for(partial(_idle, hosts, mount), 30, f"{mount} to have nothing under way")
    swaps = sum(o.call[0] == "swap" and o.result == "ok" for h in found.values() for o in h)
    print(f"{operations} operations ({unknown} unknown) in {len(found)} histories, {checked} fsyncs, "
          f"{swaps} swaps; {nemesis.done}")
    assert operations > 300 and checked > 20 and swaps > 20, "hardly anything was done: the test has no power"
    wait_for(lambda: _agree(hosts), 60, "the members to agree")
    for name in (f"metadata-{number + 1}" for number in range(hosts.numbers)):
        assert "Traceback" not in hosts.log(name) and "differs from" not in hosts.log(name), name


def _idle(hosts: Hosts, mount: Path) -> bool:
    return not hosts.statistics(mount)["volume.session.in_flight"]


def _agree(hosts: Hosts) -> bool:
    members = hosts.status()["members"]
    return len(members) == 3 and len({m["applied"] for m in members}) == 1 and len({m["term"] for m in members}) == 1
