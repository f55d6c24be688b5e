"""MooseFS, as Debian packages it (moosefs-master, moosefs-chunkserver, moosefs-client), for a comparison in one run.

It refuses to listen on 127/8, so it lives in a network namespace of its own that has nothing but a loopback with
addresses of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.bench.systems import Plain, drop_caches
from tests.harness import run, wait_for

PROGRAMS = ("mfsmaster", "mfschunkserver", "mfsmount", "mfssetgoal", "mfssettrashtime")
EMPTY = Path("/var/lib/mfs/metadata.mfs.empty")
MASTER = "198.18.255.1"


def missing() -> list[str]:
    """What is not installed of it."""
    return [program for program in PROGRAMS if shutil.which(program) is None] + ([] if EMPTY.exists() else [str(EMPTY)])


class MooseFs(Plain):
    """One master, a chunk server for each copy, one mount."""

    name = "moosefs"

    def __init__(self, base: Path, copies: int) -> None:
        self.top = base / "moosefs"
        self.top.mkdir()
        self._base = base / "moosefs-data"
        self._base.mkdir()
        self._space = f"fxm{os.getpid() % 100_000}"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._mount_process: subprocess.Popen[bytes] | None = None
        try:
            self._up(copies)
            self._mount()
            run(*self._inside("mfssetgoal", "-r", str(copies), str(self.top)))
            run(*self._inside("mfssettrashtime", "-r", "0", str(self.top)))
        except BaseException:
            self.close()
            raise

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._space}", *command]

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        log = open(self._base / "log", "ab")
        with log:
            return subprocess.Popen(self._inside(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _up(self, copies: int) -> None:
        run("ip", "netns", "add", self._space)
        run("ip", "-n", self._space, "link", "set", "lo", "up")
        for number in range(copies + 1):
            run("ip", "-n", self._space, "addr", "add", f"198.18.255.{number + 1}/32", "dev", "lo")
        shutil.copy(EMPTY, self._base / "metadata.mfs")
        self._write("exports", "* / rw,alldirs,admin,maproot=0:0")
        self._write("topology", "")
        listen = [f"{name}_LISTEN_HOST = {MASTER}" for name in ("MATOML", "MATOCS", "MATOCL")]
        files = [f"EXPORTS_FILENAME = {self._base}/exports", f"TOPOLOGY_FILENAME = {self._base}/topology"]
        who = ["WORKING_USER = root", "WORKING_GROUP = root"]
        self._write("master", *who, f"DATA_PATH = {self._base}", *files, *listen, "REPLICATIONS_DELAY_INIT = 5")
        self._daemons.append(self._start("mfsmaster", "-d", "-c", str(self._base / "master"), "start"))
        self._wait_port(MASTER, 9421)
        for number in range(1, copies + 1):
            address, home = f"198.18.255.{number + 1}", self._base / f"chunks-{number}"
            (home / "disk").mkdir(parents=True)
            self._write(f"disks-{number}", str(home / "disk"))
            places = [f"DATA_PATH = {home}", f"HDD_CONF_FILENAME = {self._base}/disks-{number}"]
            hosts = [f"MASTER_HOST = {MASTER}", f"BIND_HOST = {address}", f"CSSERV_LISTEN_HOST = {address}"]
            self._write(f"chunkserver-{number}", *who, *places, *hosts)
            config = str(self._base / f"chunkserver-{number}")
            self._daemons.append(self._start("mfschunkserver", "-d", "-c", config, "start"))
        for number in range(1, copies + 1):
            self._wait_port(f"198.18.255.{number + 1}", 9422)
        time.sleep(8)  # until the master gives chunks to the servers that it has just met

    def _write(self, name: str, *lines: str) -> None:
        (self._base / name).write_text("".join(f"{line}\n" for line in lines))

    def _wait_port(self, address: str, port: int) -> None:
        probe = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
        wait_for(lambda: run(*self._inside("python3", "-c", probe), check=False).returncode == 0, 30, f"port {port}")

    def _mount(self) -> None:
        self._mount_process = self._start("mfsmount", str(self.top), "-f", "-H", MASTER)
        wait_for(lambda: os.path.ismount(self.top), 30, "the mount")

    def _umount(self) -> None:
        if os.path.ismount(self.top):
            run("umount", self.top)
        if self._mount_process is not None:
            self._mount_process.wait(60)
            self._mount_process = None

    def cold(self) -> None:
        self._umount()
        drop_caches()
        self._mount()

    def pids(self) -> list[int]:
        return [process.pid for process in [*self._daemons, self._mount_process] if process is not None]

    def close(self) -> None:
        try:
            self._umount()
        finally:
            for process in reversed(self._daemons):
                process.terminate()
            for process in self._daemons:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            subprocess.run(["ip", "netns", "del", self._space], capture_output=True)
