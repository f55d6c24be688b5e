"""Faults, one at a time, each undone before the next: processes, network, disks, clocks and the membership."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.fault.hosts import Hosts
from tests.harness import wait_for

MIB = 1 << 20
DAY_S = 86_400.0
SLEEP_S_MAX = 30.0


class Nemesis:
    """Deals faults from a shuffled deck, so that each kind comes as often as every other."""

    def __init__(self, hosts: Hosts, mounts: list[Path], rng: random.Random) -> None:
        self.hosts, self.mounts, self.rng = hosts, mounts, rng
        self.done: list[str] = []
        self._deck: list[Callable[[], None]] = []

    def strike(self) -> None:
        if not self._deck:
            self._deck = [
                self.kill, self.kill_leader, self.stop, self.isolate, self.one_way, self.bridge, self.fill_disk,
                self.fill_disk_of_leader, self.set_wall_clock, self.sleep_mount, self.replace_member,
            ]  # fmt: skip
            self.rng.shuffle(self._deck)
        fault = self._deck.pop()
        began = time.monotonic()
        self.done.append(fault.__name__)
        fault()
        self.hosts.net.heal()
        print(f"{fault.__name__} {time.monotonic() - began:.1f} s", flush=True)

    def _pause(self) -> None:
        time.sleep(self.rng.uniform(0.5, 4))

    def _member(self) -> str:
        return self.rng.choice(self.hosts.members())

    def _leader(self) -> str:
        return self.hosts.leader() or self._member()

    def _member_hosts(self, count: int) -> list[str]:
        return self.rng.sample([self.hosts.host[name] for name in self.hosts.members()], count)

    # --- processes --------------------------------------------------------------------------------------------

    def _kill(self, name: str) -> None:
        self.hosts.kill(self.hosts.server_pids()[name])
        self._pause()
        self.hosts.start(name)

    def kill(self) -> None:
        self._kill(self._member())

    def kill_leader(self) -> None:
        self._kill(self._leader())

    def stop(self) -> None:
        pid = self.hosts.server_pids()[self._member()]
        os.kill(pid, signal.SIGSTOP)
        self._pause()
        os.kill(pid, signal.SIGCONT)

    # --- the network ------------------------------------------------------------------------------------------

    def isolate(self) -> None:
        self.hosts.net.isolate(*self._member_hosts(1))
        self._pause()

    def one_way(self) -> None:
        self.hosts.net.block(*self._member_hosts(2))
        self._pause()

    def bridge(self) -> None:
        """Two members that cannot reach each other, though each reaches the third."""
        self.hosts.net.cut(*self._member_hosts(2))
        self._pause()

    # --- disks ------------------------------------------------------------------------------------------------

    def _fill(self, name: str) -> None:
        pid = self.hosts.server_pids()[name]
        ballast = self.hosts.directory / name / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(MIB))
        assert ballast.stat().st_size > MIB, "it was full before"  # the member may give up its reserve at once
        self._pause()
        ballast.unlink()
        assert self.hosts.server_pids().get(name) == pid, "a full disk ended the member"

    def fill_disk(self) -> None:
        self._fill(self._member())

    def fill_disk_of_leader(self) -> None:
        self._fill(self._leader())

    # --- clocks -----------------------------------------------------------------------------------------------

    def set_wall_clock(self) -> None:
        """Of anybody, by seconds or by a day, to either side; it stays wrong, as a clock without a battery does."""
        name = self.rng.choice([self._leader(), *self.hosts.members(), "c1", "c2"])
        self.hosts.clock(name).set_wall(self.rng.choice((-1, 1)) * DAY_S ** self.rng.random())
        self._pause()

    def sleep_mount(self) -> None:
        """The machine of a mount is suspended; when it wakes, its clocks say for how long, or for longer."""
        index = self.rng.randrange(len(self.mounts))
        pid = self.hosts.mount_pid(self.mounts[index])
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        self._pause()
        slept_s = max(time.monotonic() - began, self.rng.uniform(0, SLEEP_S_MAX))
        self.hosts.clock(f"c{index + 1}").sleep(slept_s)
        os.kill(pid, signal.SIGCONT)

    # --- the membership ---------------------------------------------------------------------------------------

    def replace_member(self) -> None:
        """A new member comes, votes, perhaps leads; an old one goes, which may be the leader. Or someone is killed."""
        hosts = self.hosts
        hosts.numbers += 1
        name, host = f"metadata-{hosts.numbers}", hosts.spare.pop(0)
        hosts.give_disk(name)
        hosts.insist("member", "add", hosts.config, name, "--address", f"{hosts.net.address[host]}:7000")
        old = self._member()
        hosts.host[name] = host
        hosts.start(name)
        if self.rng.random() < 0.4:
            self._kill(self._leader())
        wait_for(lambda: hosts.row(name)["state"] == "replicate", 60, f"{name} to catch up")
        hosts.insist("member", "promote", hosts.config, name)
        if self.rng.random() < 0.5:
            hosts.insist("member", "transfer-leader", hosts.config, name)
        hosts.insist("member", "remove", hosts.config, old)
        assert old not in hosts.server_pids(), "whoever is removed ends"
        hosts.spare.append(hosts.host.pop(old))
