"""Server processes of one host: started with their logs, watched, told to stop, waited for."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from fusefs.cli.layout import MEMBER_PREFIX, Layout
from node.host.paths import replace_file

_TAIL_BYTES = 16_384
_POLL_S = 0.05
_CREDENTIALS = struct.Struct("3i")
NOTIFY_BYTES_MAX = 4096


@dataclass(slots=True)
class Child:
    """One server process that this command started. ``pidfd`` is readable once it has ended."""

    name: str
    process: subprocess.Popen[bytes]
    pidfd: int
    log: Path
    log_start: int
    ready: bool = False
    status: str = ""
    extended_until: float = field(default=0.0)  # time.monotonic; from EXTEND_TIMEOUT_USEC

    def last_words(self) -> str:
        """Return the last line that it wrote to its log since it was started, without the drawing of tracebacks."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self.log_start, size - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        words = (line.strip("|+-^ ") for line in reversed(lines))
        return next((line for line in words if line), "")


def command_of(layout: Layout, name: str) -> list[str]:
    """Return the command line of a server. It names cluster.toml, by which scripts find the process."""
    module = "metadata.server" if name.startswith(MEMBER_PREFIX) else "storage.server"
    # -P: what lies in the working directory must not be taken for our modules
    return [sys.executable, "-P", "-m", module, "--cluster", str(layout.config_path), "--name", name]


def start(layout: Layout, name: str, notify_address: str) -> Child:
    """Start one server in a session of its own, so that Ctrl-C reaches only the command that watches it."""
    log = layout.log(name)
    log.parent.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        log_start = os.fstat(fd).st_size
        process = subprocess.Popen(
            command_of(layout, name),
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "NOTIFY_SOCKET": notify_address},
        )
    finally:
        os.close(fd)
    replace_file(layout.pid(name), f"{process.pid}\n".encode())
    return Child(name, process, os.pidfd_open(process.pid), log, log_start)


class Notifications:
    """The receiving end of sd_notify for the servers that this command starts."""

    def __init__(self) -> None:
        self.address = f"@fusefs-{os.getpid()}-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + self.address[1:])
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    async def receive(self, children: dict[int, Child]) -> Child:
        """Wait for one message of one of the children, by pid, note what it says and return the child."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with contextlib.suppress(BlockingIOError):
                data, ancillary, _, _ = self._socket.recvmsg(NOTIFY_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size))
                child = children.get(_sender(ancillary))
                if child is not None:
                    _note(child, data.decode(errors="replace"))
                    return child


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0])
    return 0


def _note(child: Child, text: str) -> None:
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "READY" and value == "1":
            child.ready = True
        elif key == "STATUS":
            child.status = value
        elif key == "EXTEND_TIMEOUT_USEC" and value.isdigit():
            child.extended_until = time.monotonic() + int(value) / 1e6


class Ending:
    """A process on its way out, found by the lock it holds. Made before it is told to stop, so as not to miss its end.

    The lock may go a moment before the process does; both count.
    """

    def __init__(self, holder: Callable[[], int | None]) -> None:
        self._holder = holder
        self.pid = holder()
        self._pidfd: int | None = None
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(self.pid)

    def terminate(self) -> None:
        """Ask it to stop; one that has gone already is as good."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False when that takes too long."""
        deadline = time.monotonic() + timeout_s
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            ended = bool(poll.poll(timeout_s * 1000))
            os.close(self._pidfd)
            self._pidfd = None
            if not ended:
                return False
        while self._holder() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
