"""Which process is it, and does it certainly not exist any more?

A process is named by the boot of its kernel, its namespaces, its pid and when it began. Whoever judges must be able to
see the very same processes: same kernel and boot, same pid namespace, same time namespace (by whose clock the kernel
tells when a process began). Elsewhere, and in any doubt, a process counts as living; so a wrong "gone" would need
a clone of a running kernel, with which nothing tells two processes apart.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STATE, _THREADS, _STARTED = 0, 17, 19  # fields of /proc/PID/stat behind the name, which may hold anything


def own_identity() -> str:
    """The name of this process among all that ever were; "" where this host does not tell."""
    try:
        started = _stat("self")[_STARTED]
    except (OSError, ValueError, IndexError):
        return ""
    view = _view()
    return f"{view}/{os.getpid()}/{started}" if view else ""


def certainly_gone(identity: str) -> bool:
    """Whether no instruction of the process that called itself ``identity`` will ever run again.

    False also for what cannot be judged here: another host, boot or namespace, or a process that is hidden from us.
    """
    view, _, rest = identity.rpartition("/")
    view, _, pid = view.rpartition("/")
    if not view or view != _view() or not pid.isdecimal() or not rest.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it exists, or we may not know
    try:
        fields = _stat(pid)
        if fields[_STARTED] != rest:
            return True  # another process has the number now
        # A process that nobody has reaped yet: dead, once the last of its threads is.
        return fields[_STATE] in ("Z", "X") and int(fields[_THREADS]) <= 1
    except (OSError, ValueError, IndexError):
        return False


def is_ending(pid: int) -> bool:
    """Whether the main thread of a process has gone, and so its program, while the kernel has it still."""
    try:
        return _stat(str(pid))[_STATE] in ("Z", "X")
    except (OSError, IndexError):
        return False


def _stat(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()


@cache
def _view() -> str:
    """What this process sees: the boot and the namespaces. "" where /proc shows the processes of another namespace."""
    try:
        if int(Path("/proc/self/stat").read_text(errors="replace").split()[0]) != os.getpid():
            return ""
        boot = _BOOT.read_text().strip()
        namespaces = [str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in ("pid", "time")]
    except (OSError, ValueError, IndexError):
        return ""
    return "/".join([boot, *namespaces]) if boot else ""
