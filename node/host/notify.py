"""sd_notify(3): tell the service manager how we are. Without NOTIFY_SOCKET all of it does nothing; nothing raises."""

from __future__ import annotations

import contextlib
import os
import socket


def ready(status_text: str = "") -> None:
    """The service serves."""
    _send("READY=1" + (f"\nSTATUS={_line(status_text)}" if status_text else ""))


def status(text: str) -> None:
    """One line for ``systemctl status``."""
    _send(f"STATUS={_line(text)}")


def stopping() -> None:
    """The service is on its way out."""
    _send("STOPPING=1")


def watchdog() -> None:
    """Still making progress. Send it from the task that makes it, not from a timer alone."""
    _send("WATCHDOG=1")


def extend_timeout(seconds: float) -> None:
    """Starting or stopping takes longer: the manager's time-out is at least ``seconds`` from now."""
    _send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def watchdog_interval_s() -> float | None:
    """How long the manager waits for watchdog(), None when it does not; send at half of it."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        interval_s = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return interval_s if interval_s > 0 else None


def _line(text: str) -> str:
    return text.replace("\n", " ")


def _send(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract name space
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.send(message.encode())
