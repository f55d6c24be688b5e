"""Has the kernel's connection of a mount end when its process is killed, whatever the kernel waits for.

The kernel ends a connection when the last thread of its process has gone. But a thread of ours that has something
invalidated may be waiting for a lock of the kernel, of a directory or a page, that a program holds while it waits for
an answer of ours. Killed then, we do not answer any more: the program and the thread would wait for each other for
ever, both unkillable, and whoever looks at the mount with them. So a small process beside ours waits for the end of our
main thread and aborts the connection.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from fusefs.mount import table
from node.host.logging import get_logger

log = get_logger(__name__)

# The main thread is asked for (PR_SET_PDEATHSIG counts from whichever thread made this process), because the process
# has not ended then. All signals are blocked, so what is sent to our group is not meant for it. No module of ours is
# imported and no name of ours is in its command line: it costs little memory, and is not killed along by name.
_PROGRAM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGUSR1), 0, 0, 0)
with open("/proc/" + sys.argv[1] + "/stat", "rb") as file:
    ended = file.read().rpartition(b")")[2].split()[0] in b"ZX"
if not ended:
    signal.sigwait([signal.SIGUSR1])
os.write(0, b"1")
"""


class Guard:
    """Of one connection. Made by the main thread."""

    def __init__(self, device: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._abort_fd = table.open_abort(device)
        if self._abort_fd is None:
            log.warning("nothing can end the connection to the kernel if this process is killed while it waits for it")
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid())],
                stdin=self._abort_fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
        except OSError as error:
            log.warning("no process guards the connection to the kernel", error=str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def end(self) -> None:
        """End the connection, so that there is nothing to guard: all who wait for it get an error. Once."""
        if self._abort_fd is None:
            log.warning("the connection to the kernel cannot be aborted")
            return
        try:
            os.write(self._abort_fd, b"1")
        except OSError as error:
            log.warning("the connection to the kernel cannot be aborted", error=str(error))
        os.close(self._abort_fd)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
