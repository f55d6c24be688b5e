"""Start a mount: in a process of its own that is detached once it serves, or in place of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.host.exitcodes import Exit

SERVING = b"serving\n"
_FAILED = b"failed "


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where. Both paths are absolute; ``options`` are texts as ``-o`` takes them, already checked."""

    cluster_path: Path
    mount: str
    options: Sequence[str] = field(default=())

    def command(self) -> list[str]:
        """The command line of the mount process. It names cluster.toml, by which scripts find the process."""
        # -P: what lies in the working directory must not be taken for our modules
        words = [sys.executable, "-P", "-m", "fusefs.mount", "--cluster", str(self.cluster_path), "--mount", self.mount]
        for text in self.options:
            words += ["-o", text]
        return words


class MountFailed(Exception):
    """The mount process ended before it served. ``code`` is its exit code, the text one line for a person."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


def start_background(request: MountRequest) -> subprocess.Popen[bytes]:
    """Start the mount and return when it serves. Raises MountFailed.

    The child stays in this process group until it has mounted: on an automount point the kernel lets only the
    group of the helper through.
    """
    read_fd, write_fd = os.pipe()
    try:
        process = subprocess.Popen(
            [*request.command(), "--ready-fd", str(write_fd)], stdin=subprocess.DEVNULL, pass_fds=[write_fd]
        )
    finally:
        os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        answer = pipe.read()
    if answer == SERVING:
        return process
    code = process.wait()
    text = answer.removeprefix(_FAILED).decode(errors="replace").strip()
    text = text or f"the mount process ended with {code} and said nothing"
    raise MountFailed(code if code > 0 else Exit.FAILED, text)


def replace_process(request: MountRequest) -> None:
    """Become the mount process, in the foreground. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = request.command()
    os.execv(command[0], command)


class Announcer:
    """The mount process's end of the pipe: exactly one word, that it serves or why not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def serving(self) -> None:
        self._tell(SERVING)

    def failed(self, text: str) -> None:
        self._tell(_FAILED + text.encode(errors="replace") + b"\n")

    def _tell(self, word: bytes) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, word)
        except BrokenPipeError:
            pass  # whoever waited has gone; the mount does not mind
        finally:
            os.close(fd)
