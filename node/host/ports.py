"""Loopback ports for servers that nobody gave an address."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

PORT_MIN = 10_000
EPHEMERAL_MIN = 32_768  # where Linux begins when it is not told otherwise
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 200


def free_ports() -> Iterator[int]:
    """Yield loopback ports that nobody uses; each stays bound until the generator goes, so that none comes twice.

    They lie below the range from which the kernel takes the ports of outgoing connections: else any program could
    take a server's port while the server is down, and who connects to it then might even reach itself.
    """
    with contextlib.ExitStack() as bound:
        while True:
            listener = bound.enter_context(socket.socket())
            _bind(listener)
            yield listener.getsockname()[1]


def _bind(listener: socket.socket) -> None:
    low = min(_ephemeral_min(), EPHEMERAL_MIN)
    for _ in range(_TRIES if low > PORT_MIN else 0):
        with contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", random.randrange(PORT_MIN, low)))
            return
    listener.bind(("127.0.0.1", 0))


def _ephemeral_min() -> int:
    try:
        return int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return EPHEMERAL_MIN
