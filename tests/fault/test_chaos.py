"""Two mounts with many programs at work on each, three members and three chunk servers, three copies, all on hosts of
their own: one process after the other is killed, stopped or cut off, mounts too. Nothing that was told is lost, nothing
is wrong, nobody hangs, and nothing fails but on a mount that was itself hit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.wire.limits import SESSION_LEASE_S
from tests.fault.chaos_worker import HUNG_S, NAME, verify
from tests.fault.wired import Wired, wired
from tests.harness import LONG, need_fuse, run, seed, wait_for

KINDS = (
    "files", "database", "records", "replaced", "mapped", "counter", "sqlite", "copies", "commits", "queue", "tail",
    "lockfile", "watched_pages", "links", "shapes", "moved", "attributes",
)  # fmt: skip
PROGRAMS = len(KINDS) if LONG else 8  # on each mount
ROUNDS = 20 if LONG else 1
FAULTS = 15 if LONG else 5  # of each round
CALM_S = (0.5, 3.0)
MIB = 1 << 20
DISK_BYTES = 1024 * MIB
EXCUSED_S = 15.0  # after a mount is back, what was lost is told at the next fsync or close


class Faults:
    """One at a time, each undone before the next. ``hit``: which mount suffered itself, from when until when."""

    def __init__(self, made: Wired, mounts: list[Path], rng: random.Random) -> None:
        self.made, self.mounts, self.rng = made, mounts, rng
        self.hit: list[tuple[Path, float, float]] = []

    def pause(self) -> None:
        time.sleep(self.rng.uniform(*CALM_S))

    def name(self, kind: str) -> str:
        return self.rng.choice([name for name in self.made.server_pids() if name.startswith(kind)])

    def kill(self, name: str) -> None:
        self.made.kill(self.made.server_pids()[name])
        self.pause()
        self.made.start(name)

    def stop(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_member(self) -> None:
        self.kill(self.name("metadata"))

    def kill_leader(self) -> None:
        self.kill(self.leader())

    def leader(self) -> str:
        return self.made.leader() or self.name("metadata")

    def stop_member(self) -> None:
        self.stop(self.made.server_pids()[self.name("metadata")], self.rng.uniform(0.2, 5))

    def kill_server(self) -> None:
        self.kill(self.name("storage"))

    def stop_server(self) -> None:
        self.stop(self.made.server_pids()[self.name("storage")], self.rng.uniform(0.2, 5))

    def fill_server(self) -> None:
        """One of three: the two others take what is written."""
        ballast = self.made.directory / self.name("storage") / "ballast"
        try:
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(MIB))
            assert ballast.stat().st_size > MIB, "it was full before"
            self.pause()
        finally:
            ballast.unlink()

    def cut_off(self, host: str, seconds: float, other: str = "") -> None:
        """Nothing that is sent from this host arrives at the other, or anywhere, nor the other way round."""
        try:
            if other:
                self.made.net.cut(host, other)
            else:
                self.made.net.isolate(host)
            time.sleep(seconds)
        finally:
            self.made.net.heal()

    def cut_leader(self) -> None:
        """The others choose another one."""
        self.cut_off(self.made.host[self.leader()], self.rng.uniform(0.2, 8))

    def cut_server(self) -> None:
        self.cut_off(self.made.host[self.name("storage")], self.rng.uniform(0.2, 8))

    def cut_mount(self) -> None:
        """So shortly that nothing is lost."""
        self.cut_off(self.made.host_of(self.rng.choice(self.mounts)), self.rng.uniform(0.2, SESSION_LEASE_S / 3))

    def cut_mount_for_long(self) -> None:
        mount = self.rng.choice(self.mounts)
        with self.hitting(mount):
            self.cut_off(self.made.host_of(mount), SESSION_LEASE_S + self.rng.uniform(-2, 5))

    def cut_apart(self) -> None:
        """A mount and the leader; both reach everybody else."""
        mount, leader = self.rng.choice(self.mounts), self.leader()
        with self.hitting(mount):
            self.cut_off(self.made.host_of(mount), self.rng.uniform(0.2, 8), self.made.host[leader])

    @contextlib.contextmanager
    def hitting(self, *mounts: Path) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.hit += [(mount, began, time.monotonic() + EXCUSED_S) for mount in mounts]

    def remount(self, mount: Path) -> None:
        subprocess.run(["umount", "-l", str(mount)], capture_output=True)
        self.made.mount(mount)

    def kill_mount(self) -> None:
        mount = self.rng.choice(self.mounts)
        with self.hitting(mount):
            self.made.kill(self.made.mount_pid(mount))
            self.pause()
            self.remount(mount)

    def stop_mount(self) -> None:
        """So shortly that nothing is lost."""
        self.stop(self.made.mount_pid(self.rng.choice(self.mounts)), self.rng.uniform(0.2, SESSION_LEASE_S / 3))

    def stop_mount_for_long(self) -> None:
        mount = self.rng.choice(self.mounts)
        with self.hitting(mount):
            self.stop(self.made.mount_pid(mount), SESSION_LEASE_S + self.rng.uniform(-2, 5))

    def kill_everything(self) -> None:
        with self.hitting(*self.mounts):
            self.made.kill_all()
            self.pause()
            self.made.up()
            for mount in self.mounts:
                self.remount(mount)

    def all(self) -> None:
        deck: list[Callable[[], None]] = [
            self.kill_member, self.kill_leader, self.stop_member, self.kill_server, self.stop_server, self.kill_mount,
            self.stop_mount, self.stop_mount_for_long, self.kill_everything, self.fill_server, self.cut_leader,
            self.cut_server, self.cut_mount, self.cut_mount_for_long, self.cut_apart,
        ]  # fmt: skip
        self.rng.shuffle(deck)
        for fault in deck[:FAULTS]:
            began = time.monotonic()
            fault()
            print(f"{began:.1f} {fault.__name__} {time.monotonic() - began:.1f} s", flush=True)
            self.pause()

    def excused(self, mount: Path, began: float, ended: float) -> bool:
        return any(one == mount and began < until and ended > since for one, since, until in self.hit)


@contextlib.contextmanager
def small_disks(data: Path) -> Iterator[None]:
    """Give each of three chunk servers a disk that can be filled."""
    disks = [data / f"storage-{number + 1}" for number in range(3)]
    try:
        for disk in disks:
            disk.mkdir(mode=0o700, parents=True)
            run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", disk)
        yield
    finally:
        for disk in disks:
            subprocess.run(["umount", "-l", str(disk)], capture_output=True)


def judge(faults: Faults, journal: Path, mount: Path) -> None:
    """Nothing was wrong, nothing failed on a mount that was well, and nothing hung."""
    for line in journal.read_text().splitlines():
        words = line.split(" ", 3)
        assert words[0] != "wrong", f"{journal.name}: {line}"
        if words[0] in ("failed", "slow", "missed"):
            began, ended = float(words[1]), float(words[2])
            print(journal.name, line)
            assert ended - began < HUNG_S, f"{journal.name} hung: {line}"
            may = words[0] == "slow" or any(
                faults.excused(one, began, ended) for one in ((mount,) if words[0] == "failed" else faults.mounts)
            )
            assert may, f"{journal.name}: {line}"


@pytest.mark.timeout(7200 if LONG else 600)
def test_chaos(tmp_path: Path) -> None:
    need_fuse()
    rng = random.Random(seed("chaos"))
    data = tmp_path / "data"
    with small_disks(data), wired(data, 3) as made:
        mounts = [made.mount(tmp_path / name) for name in ("a", "b")]
        (mounts[0] / NAME).mkdir()
        faults = Faults(made, mounts, rng)
        kinds = rng.sample(KINDS, PROGRAMS)
        print(*kinds)
        workers: dict[Path, tuple[Path, subprocess.Popen[bytes]]] = {}
        try:
            for number, mount in enumerate(mounts, 1):
                for kind in kinds:
                    journal = tmp_path / f"{kind}-{number}"
                    arguments = [kind, mount, journal, number, rng.randrange(1 << 30)]
                    command = [sys.executable, "-m", "tests.fault.chaos_worker", *map(str, arguments)]
                    workers[journal] = mount, subprocess.Popen(command)
            faults.pause()
            for _ in range(ROUNDS):
                faults.all()
                for journal, (_, worker) in workers.items():
                    assert worker.poll() is None, f"{journal.name} has ended by itself"
            for _, worker in workers.values():
                worker.terminate()
            for journal, (_, worker) in workers.items():
                assert wait_for(lambda worker=worker: worker.poll() is not None, HUNG_S, f"{journal.name} to end")
                assert not worker.returncode, journal.name
        finally:
            for _, worker in workers.values():
                worker.kill()
                worker.wait(60)
        for journal, (mount, _) in workers.items():
            judge(faults, journal, mount)
        fresh = made.mount(tmp_path / "fresh")
        told = verify(fresh / NAME, list(workers))
        print(f"{told} words were given, hit {len(faults.hit)} times")
        assert told > 100 * ROUNDS
