"""Drive a real cluster by its commands, for tests, fault programs and the bench.

Everything goes through the documented interface: ``fusefs up | down | mount | umount | status`` and the files
under DIR. Only processes of this cluster are ever signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from node.host.ports import free_ports

FUSEFS = str(Path(sys.executable).parent / "fusefs")
CI = os.environ.get("CI") == "true"
LONG = bool(os.environ.get("LONG"))
SETTLED_S, SETTLE_TIMEOUT_S = 3.0, 90.0  # what is stored stays the same for so long, and what that may take
AUDIT_AT_END = False  # clusters made from now on are audited when they are cleaned up


def seed(name: str) -> int:
    """Return the seed of this run, given by SEED or fresh, and print it so that a failure can be replayed."""
    value = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: SEED={value}")
    return value


def need_fuse() -> None:
    """Skip without root or /dev/fuse; under CI=true fail instead."""
    missing = [what for what, ok in (("root", os.geteuid() == 0), ("/dev/fuse", os.path.exists("/dev/fuse"))) if not ok]
    if missing and CI:
        pytest.fail(f"this test needs {' and '.join(missing)}")
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def write_synced(path: Path, text: str) -> None:
    """Write a file that survives whatever happens next: closing one that nobody else uses promises less."""
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def run(
    *command: str | Path, check: bool = True, timeout_s: float = 120, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command, its output captured; a failure shows what it printed."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, errors="replace", timeout=timeout_s, **kwargs
    )
    if check and done.returncode:
        raise AssertionError(f"{command} exited with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def profile(mount: Path) -> dict[str, Any]:
    """What the process that serves a mount tells of itself."""
    told: dict[str, Any] = json.loads(run(FUSEFS, "profile", mount, "--json").stdout)
    return told


def free_port() -> int:
    """Return a loopback port that nobody uses, nor any outgoing connection will."""
    return next(free_ports())


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll until ``condition`` returns something true. One that takes long, as a command does, is asked half the time
    at most: what is waited for needs the CPU, too."""
    end = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now > end:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(min(max(0.02, now - began), 0.5))


def rss_anon_bytes(pid: int) -> int:
    """Anonymous memory of a process; the databases' maps are page cache and do not count."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class Cluster:
    """A cluster of real processes under one directory, with any number of mounts."""

    def __init__(self, directory: Path, **flags: str | int) -> None:
        self.directory = directory
        self.flags = [part for key, value in flags.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        self.mounts: list[Path] = []
        self.lost: set[str] = set()  # names of blocks whose every copy the test has destroyed: the audit must find them
        self.audited = AUDIT_AT_END

    @property
    def config(self) -> Path:
        return self.directory / "cluster.toml"

    def up(self, *extra: str) -> None:
        run(FUSEFS, "up", self.directory, *self.flags, "--detach", *extra)

    def start(self, name: str) -> None:
        """Start one server."""
        run(FUSEFS, "up", self.directory, "--only", name, "--detach")

    def down(self) -> None:
        run(FUSEFS, "down", self.directory)
        self.mounts.clear()

    def mount(self, path: Path, *options: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        run(FUSEFS, "mount", self.config, path, *options)
        if path not in self.mounts:
            self.mounts.append(path)
        return path

    def umount(self, path: Path) -> None:
        run(FUSEFS, "umount", path)
        self.mounts.remove(path)

    def status(self) -> dict[str, Any]:
        done = run(FUSEFS, "status", self.config, "--json", check=False)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def stored_bytes(self) -> int:
        """What is stored on all servers, as they have told."""
        return int(self.status()["volume"]["stored_bytes"] or 0)

    def settled_bytes(self) -> int:
        """The same when no more comes: servers tell a moment later, and the log gives what it has a second later."""
        last, since = self.stored_bytes(), time.monotonic()
        deadline = since + SETTLE_TIMEOUT_S
        while time.monotonic() < since + SETTLED_S:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            if (now := self.stored_bytes()) != last:
                last, since = now, time.monotonic()
        return last

    def log(self, name: str) -> str:
        return (self.directory / "log" / f"{name}.log").read_text(errors="replace")

    def server_pids(self) -> dict[str, int]:
        """Living servers by name, as run/NAME.pid tells and /proc confirms."""
        found = {}
        pid_files = self.directory / "run"
        for file in sorted([*pid_files.glob("metadata-*.pid"), *pid_files.glob("storage-*.pid")]):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                if str(self.directory) in _command_line(pid):
                    found[file.stem] = pid
        return found

    def pids(self) -> list[int]:
        """Every process of this cluster on this host, the mounts' too: those that name its configuration."""
        mine = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid() and str(self.config) in _command_line(int(entry)):
                mine.append(int(entry))
        return mine

    def mount_pid(self, mount: Path) -> int:
        """The process that serves a mount of this cluster."""
        servers = set(self.server_pids().values())
        for pid in self.pids():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if pid not in servers and os.fsencode(mount) in words:
                return pid
        raise AssertionError(f"no process serves {mount}")

    def kill(self, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_for(lambda pid=pid: not _alive(pid), 60, f"{pid} to end")

    def kill_all(self) -> None:
        """Pull the plug: kill -9 of every process, then clear the dead mount points."""
        self.kill(*self.pids())
        for path in self.mounts:
            subprocess.run(["umount", "-l", str(path)], capture_output=True)

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the operator's, whatever comes of it."""
        return run(FUSEFS, *words, check=False)

    def audit(self, timeout_s: float = 240) -> None:
        """Mark and sweep (``fusefs fsck``) until nothing is found but what the test has destroyed: what is under way,
        and copies that come back by themselves, get their time. Chunk servers that do not run are started."""
        for name in self.down_servers():
            self.start(name)
        said = ""

        def clean() -> bool:
            nonlocal said
            done = self.command("fsck", self.config, "--json")
            said = done.stdout + done.stderr
            if done.returncode not in (0, 3):
                return False
            found = json.loads(done.stdout)
            return set(found["lost"]) == self.lost and not found["short"] and not found["unreferenced"]

        try:
            wait_for(clean, timeout_s, "the auditor to find nothing")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{said[-2000:]}") from None

    def down_servers(self) -> list[str]:
        """Chunk servers of the configuration that do not run."""
        names = [server["name"] for server in tomllib.loads(self.config.read_text()).get("servers", ())]
        return [name for name in names if name not in self.server_pids()]

    def living(self) -> bool:
        """Whether any member runs."""
        return any(name.startswith("metadata-") for name in self.server_pids())

    def clean(self) -> None:
        """Leave nothing behind, whatever happened. Where tests end with an audit, and this one has not failed yet, a
        cluster that lives is audited first."""
        try:
            if self.audited and sys.exc_info()[0] is None and self.living():
                self.audit()
        finally:
            self._clean()

    def _clean(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(FUSEFS, "down", self.directory, check=False, timeout_s=60)
        self.kill_all()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def cluster(
    directory: Path, settings: Mapping[str, Mapping[str, str]] | None = None, **flags: str | int
) -> Iterator[Cluster]:
    """A running cluster that is gone afterwards. ``settings``: sections that its configuration gets."""
    made = Cluster(directory, **flags)
    try:
        if settings:
            run(FUSEFS, "up", made.directory, *made.flags, "--no-start")
            with open(made.config, "a") as file:
                for section, keys in settings.items():
                    file.write(f"\n[{section}]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
        made.up()
        yield made
    finally:
        made.clean()
