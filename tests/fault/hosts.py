"""A cluster on hosts of its own: a network namespace, a small disk and clocks for each metadata member and mount."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.fault.wired import Wired
from tests.harness import FUSEFS, profile, run, wait_for
from tests.netns import Network

DISK = "size=320m"  # a log segment is 64 MiB, and one is made ahead
ORIGIN_S_MAX = 10_000_000
CLOCKWORK = Path(__file__).with_name("clockwork")
NS = 1_000_000_000
LOG_LINES = 80


class Clock:
    """What one machine's wall clock, and the clock that goes on while it sleeps, are off by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._set(0, 0)

    def _set(self, wall_ns: int, boot_ns: int) -> None:
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:  # in place: it is mapped
            file.write(struct.pack("<qq", wall_ns, boot_ns))
        self.wall_ns, self.boot_ns = wall_ns, boot_ns

    def set_wall(self, off_s: float) -> None:
        """Have the wall clock go wrong by ``off_s``; forward or back."""
        self._set(round(off_s * NS), self.boot_ns)

    def sleep(self, seconds: float) -> None:
        """Let the machine have slept: only the wall clock and the boot-time clock went on."""
        self._set(self.wall_ns + round(seconds * NS), self.boot_ns + round(seconds * NS))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "FUSEFS_TEST_CLOCK": str(self.path), "PYTHONPATH": str(CLOCKWORK)}


class Hosts(Wired):
    """Three members at first, one chunk server, and mounts; members may move to spare hosts."""

    def __init__(self, path: Path, net: Network, hosts: Iterable[str], rng: random.Random) -> None:
        self.spare = list(hosts)
        host = {f"metadata-{i + 1}": self.spare.pop(0) for i in range(3)} | {"storage-1": "s1"}
        super().__init__(path, net, host, operator="c1", members=3, servers=1)
        self.rng = rng
        self.numbers = 3  # given to members so far
        self.disks: list[Path] = []
        self.clocks: dict[str, Clock] = {}  # of members and mounts

    def members(self) -> list[str]:
        return [name for name in self.host if name.startswith("metadata-")]

    def create(self) -> None:
        super().create()
        for name in self.members():
            self.give_disk(name)

    def give_disk(self, name: str) -> None:
        path = self.directory / name
        path.mkdir(mode=0o700, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"{DISK},mode=0700", "tmpfs", path)
        self.disks.append(path)

    def mount_on(self, host: str, path: Path) -> Path:
        self.mounted[path] = host
        return self.mount(path, "-o", "timeout=10s")

    def clock(self, name: str) -> Clock:
        return self.clocks.setdefault(name, Clock(self.directory.parent / f"clock-{name}"))

    def environment(self, name: str) -> dict[str, str]:
        return self.clock(name).environment

    def inside(self, host: str, name: str) -> list[str]:
        """On a host, as if it had been up for some time of its own."""
        origin = str(self.rng.randrange(ORIGIN_S_MAX))
        return [*super().inside(host, name), "unshare", "--time", "--monotonic", origin, "--boottime", origin]

    def insist(self, *words: str | Path) -> None:
        """Repeat a command of the operator until it succeeds."""
        wait_for(lambda: not self.command(*words).returncode, 60, f"fusefs {words}")

    def row(self, name: str) -> dict[str, Any]:
        done = self.command("member", "list", self.config, "--json")
        rows = json.loads(done.stdout)["members"] if done.stdout.strip() else []
        return next((row for row in rows if row["name"] == name), {"state": "", "role": ""})

    def statistics(self, mount: Path) -> dict[str, float]:
        """Gauges and counters of the process that serves a mount."""
        found: dict[str, float] = profile(mount)["statistics"]
        return found

    def account(self) -> str:
        """What everybody thinks of the state of affairs, for whoever has to find out why something does not go on."""
        told = []
        names = self.server_pids()
        pids = {name: pid for name, pid in names.items() if name in self.clocks}
        for index, mount in enumerate(self.mounts):
            with contextlib.suppress(AssertionError):
                pids[f"c{index + 1}"] = self.mount_pid(mount)
            told.append(f"--- profile {mount}\n{run(FUSEFS, 'profile', mount, '--json', check=False).stdout}")
        for name, pid in pids.items():
            os.kill(pid, signal.SIGUSR1)
            os.kill(pid, signal.SIGUSR2)
            tasks = Path(f"{self.clocks[name].path}.{pid}.tasks")
            with contextlib.suppress(AssertionError):
                wait_for(tasks.exists, 5, "its tasks")
                told.append(f"--- tasks of {name}\n{tasks.read_text()}")
                tasks.unlink()
        for host in ("c1", "c2"):
            told.append(f"--- status from {host}\n{json.dumps(self.status_from(host), indent=1)}")
        for log in sorted((self.directory / "log").iterdir()):
            lines = log.read_text(errors="replace").splitlines()
            told.append("\n".join([f"--- {log.name}", *lines[-LOG_LINES:]]))
        return "\n".join(told)

    @contextlib.contextmanager
    def accounting(self) -> Iterator[None]:
        """Where a call on a mount fails, say why that may be."""
        try:
            yield
        except (OSError, AssertionError):
            print(self.account(), flush=True)
            raise

    def _clean(self) -> None:
        super()._clean()
        for disk in self.disks:
            subprocess.run(["umount", "-l", str(disk)], capture_output=True)
