"""fusefs member: the membership of a serving cluster changes, members die and lie, and nobody loses anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import lmdb
import pytest

from metadata.state import keys
from metadata.state.records import decode_inode, encode
from node.host.cluster import load_cluster
from tests.harness import FUSEFS, Cluster, free_port, need_fuse, run, wait_for

pytestmark = pytest.mark.root


class Writer(threading.Thread):
    """Creates, writes and fsyncs file after file; knows what was acknowledged, what failed, and the longest pause."""

    def __init__(self, top: Path) -> None:
        super().__init__(daemon=True)
        self.top = top
        self.acknowledged: list[str] = []
        self.errors: list[OSError] = []
        self.pause_s = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.over.wait(0.01):
            number += 1
            began = time.monotonic()
            try:
                with open(self.top / f"f{number}", "x") as file:
                    file.write(f"content of {number}")
                    file.flush()
                    os.fsync(file.fileno())
                self.acknowledged.append(f"f{number}")
            except OSError as error:
                self.errors.append(error)
            self.pause_s = max(self.pause_s, time.monotonic() - began)

    def progress(self) -> None:
        """Wait until what begins now was acknowledged."""
        target = len(self.acknowledged) + 3
        wait_for(lambda: len(self.acknowledged) >= target or self.errors, 60, "the writer to go on")

    def finish(self) -> None:
        self.over.set()
        self.join(40)
        assert not self.is_alive() and not self.errors, self.errors[:3]
        assert len(self.acknowledged) > 20, "hardly anything was written: the test has no power"

    def verify(self, top: Path) -> None:
        for name in self.acknowledged:
            assert (top / name).read_text() == f"content of {name[1:]}"


def member(cluster: Cluster, *words: str, code: int = 0) -> Any:
    """Run ``fusefs member VERB CLUSTER ...``; return its document, or with ``code`` the line that it failed with."""
    verb, *rest = words
    done = run(FUSEFS, "member", verb, cluster.config, *rest, "--json", check=False)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    if code:
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip()
    return json.loads(done.stdout)


def rows(cluster: Cluster) -> dict[str, dict[str, Any]]:
    done = run(FUSEFS, "member", "list", cluster.config, "--json", check=False)
    return {row["name"]: row for row in json.loads(done.stdout)["members"]}


def leader(cluster: Cluster) -> str:
    def found() -> str | None:
        return next((name for name, row in rows(cluster).items() if row["role"] == "leader"), None)

    name: str = wait_for(found, 60, "a leader")
    return name


def follower(cluster: Cluster) -> str:
    leading = leader(cluster)
    return next(name for name, row in rows(cluster).items() if name != leading and row["role"] == "follower")


def join(cluster: Cluster, name: str, *arguments: str) -> int:
    """Add a member, start it, wait until it has caught up, promote it."""
    number = member(cluster, "add", name, *arguments)["id"]
    assert member(cluster, "add", name, *arguments)["id"] == number, "adding is safe to repeat"
    assert "has not received the state yet" in member(cluster, "promote", name, code=1)
    run(FUSEFS, "up", cluster.directory, "--only", name, "--detach")
    wait_for(lambda: rows(cluster)[name]["state"] == "replicate", 60, f"{name} to catch up")
    assert rows(cluster)[name]["role"] == "learner"
    promote = FUSEFS, "member", "promote", cluster.config, name
    wait_for(lambda: not run(*promote, check=False).returncode, 60, "promotion")
    wait_for(lambda: rows(cluster)[name]["role"] == "follower", 60, f"{name} to hear that it votes")
    return int(number)


@pytest.fixture
def three(cluster: Cluster, tmp_path: Path) -> Cluster:
    need_fuse()
    cluster.flags = ["--members", "3"]
    cluster.up()
    cluster.mount(tmp_path / "mnt")
    return cluster


def test_the_membership_changes_under_a_writer(three: Cluster, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "mnt")
    writer.start()
    writer.progress()
    assert join(three, "metadata-4") == 4
    member(three, "transfer-leader", "metadata-4")
    wait_for(lambda: leader(three) == "metadata-4", 60, "the new leader to be known")
    writer.progress()
    assert member(three, "remove", "metadata-1") == {"name": "metadata-1", "removed": True, "stopped": True}
    writer.progress()

    # A dead member is replaced while the others serve.
    three.kill(three.server_pids()["metadata-2"])
    assert rows(three)["metadata-2"]["role"] == "down"
    assert member(three, "remove", "metadata-2")["stopped"] is False
    assert join(three, "metadata-5") == 5
    writer.progress()

    # The leader itself is removed: it hands over first.
    assert member(three, "remove", "metadata-4")["stopped"] is True
    writer.progress()
    member(three, "transfer-leader", "metadata-5")  # a mount that was told of 1, 2 and 3 only
    writer.progress()
    writer.finish()
    assert set(rows(three)) == {"metadata-3", "metadata-5"} == {m.name for m in load_cluster(three.config).members}

    refused = member(three, "remove", "metadata-9", code=6)
    assert "no metadata member" in refused
    assert "the name of a member is metadata-" in member(three, "add", "other", code=2)
    three.kill(three.server_pids()["metadata-3"])
    assert "quorum" in member(three, "remove", "metadata-5", code=4)
    run(FUSEFS, "up", three.directory, "--only", "metadata-3", "--detach")
    wait_for(lambda: three.status()["health"] == "healthy", 60, "health")
    writer.verify(tmp_path / "mnt")
    three.down()
    three.flags = []
    three.up()
    writer.verify(three.mount(tmp_path / "again"))
    for number in range(1, 6):
        assert "different states" not in three.log(f"metadata-{number}"), "healthy members agree"
    print(f"{len(writer.acknowledged)} files fsynced, none lost; the longest pause was {writer.pause_s:.2f} s")


def test_one_member_grows_over_tcp_and_its_founder_goes(cluster: Cluster, tmp_path: Path) -> None:
    need_fuse()
    cluster.flags = ["--members", "1", "--transport", "tcp"]
    cluster.up()
    top = cluster.mount(tmp_path / "mnt")
    (top / "before").write_text("x")
    assert "--address" in member(cluster, "add", "metadata-2", code=2)
    address = f"127.0.0.1:{free_port()}"
    arguments = ["--address", address, "--peer-address", f"127.0.0.1:{free_port()}"]
    assert join(cluster, "metadata-2", *arguments) == 2
    assert rows(cluster)["metadata-2"]["address"] == f"tcp://{address}"
    assert (cluster.directory / "keys" / "metadata-2.key").stat().st_mode & 0o777 == 0o600
    member(cluster, "remove", "metadata-1")
    assert leader(cluster) == "metadata-2"
    (top / "after").write_text("y")
    assert (top / "before").read_text() == "x"
    wait_for(lambda: cluster.status()["health"] == "healthy", 60, "the chunk server to find the new leader")


def test_a_wiped_member_returns_only_as_a_new_one(three: Cluster, tmp_path: Path) -> None:
    (tmp_path / "mnt" / "before").write_text("x")
    victim = follower(three)
    number = rows(three)[victim]["id"]
    three.kill(three.server_pids()[victim])
    shutil.rmtree(three.directory / victim)
    done = run(FUSEFS, "up", three.directory, "--only", victim, "--detach", check=False)
    assert done.returncode == 7, (done.returncode, done.stderr)
    assert "remove it from the cluster and add it under a new one" in done.stderr and done.stderr.count("\n") == 1
    member(three, "remove", victim)
    shutil.rmtree(three.directory / victim, ignore_errors=True)
    assert join(three, victim) == 4 > number
    assert (tmp_path / "mnt" / "before").read_text() == "x"
    assert three.status()["health"] == "healthy"


def test_a_member_whose_state_differs_stops_for_good(three: Cluster, tmp_path: Path) -> None:
    top = tmp_path / "mnt"
    (top / "file").write_text("x")
    victim = follower(three)
    pid = three.server_pids()[victim]
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: victim not in three.server_pids(), 60, "the follower to stop")
    spoil(three.directory / victim / "state")
    run(FUSEFS, "up", three.directory, "--only", victim, "--detach")

    def stopped() -> bool:
        (top / "file").write_text(str(time.monotonic()))
        return victim not in three.server_pids()

    wait_for(stopped, 60, "the member to find out")
    said = [line for line in three.log(victim).splitlines() if line.startswith("fusefs-meta: ")]
    assert len(said) == 1 and "differs from that of most members" in said[0], three.log(victim)[-2000:]
    assert "Traceback" not in three.log(victim)
    done = run(FUSEFS, "up", three.directory, "--only", victim, "--detach", check=False)
    assert done.returncode == 7 and "add a new member" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    others = [row for name, row in rows(three).items() if name != victim]
    assert sorted(row["role"] for row in others) == ["follower", "leader"], "the healthy ones go on"
    (top / "after").write_text("y")


def spoil(state: Path) -> None:
    """Change one value of a state at rest: when the root directory was changed."""
    current = int((state / "CURRENT").read_text())
    with lmdb.open(str(state / f"state-{current:08d}.mdb"), subdir=False, max_dbs=0) as environment:
        with environment.begin(write=True) as transaction:
            value = transaction.get(keys.inode(1))
            assert value is not None
            inode = decode_inode(value)
            inode.btime_ns ^= 1
            assert transaction.put(keys.inode(1), encode(inode))
