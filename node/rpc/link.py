"""The seam between the protocol (client, server) and what carries its messages (ZeroMQ, memory).

A link moves whole messages: a first frame (header and body) and payload frames. It knows nothing of what they mean.
All callbacks are synchronous and run on the link's owner task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from node.rpc.security import Security
from node.wire.errors import FsError
from node.wire.types import Buffer


class ClientEvents(Protocol):
    """What a client link reports."""

    def link_up(self) -> None:
        """There is a new connection and nothing was sent on it yet."""

    def link_down(self, reason: str) -> None:
        """The connection is gone (or an attempt failed); what was under way on it is lost."""

    def link_refused(self, error: FsError) -> None:
        """The peer, or this end, will not have the other; the link tries again later."""

    def link_message(self, head: bytes, data: list[memoryview]) -> None:
        """A message came in."""

    def link_turn(self) -> float:
        """Called whenever the owner task is about to wait: do what is due, return when to be called next."""


class ClientLink(Protocol):
    """One connection to one address, made again for ever."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the owner task."""

    def send(self, head: bytes, data: Sequence[Buffer]) -> bool:
        """Queue a message, never blocking. False: there is no connection."""

    def reset(self, error: FsError | None = None) -> None:
        """Give this connection up and make a new one: at once, or after a while when refused with ``error``."""

    @property
    def reaching(self) -> bool:
        """Whether somebody is at the address and how the introduction ends is still open: neither up nor refused."""

    def wake_at(self, deadline: float) -> None:
        """Have link_turn called at ``deadline`` (trio's clock) at the latest."""

    def close(self) -> None:
        """End ``run``."""


ServerReceive = Callable[[bytes, bytes, list[memoryview]], None]  # peer, first frame, payload frames


class ServerLink(Protocol):
    """One address that many peers connect to."""

    async def open(self) -> None:
        """Bind. OSError EADDRINUSE when somebody serves there."""

    async def run(self, receive: ServerReceive, turn: Callable[[], float]) -> None:
        """Be the owner task; closes the address at the end."""

    def send(self, peer: bytes, head: bytes, data: Sequence[Buffer]) -> bool:
        """Queue a message for a peer, never blocking. False: the peer is gone."""


class AnyTransport(Protocol):
    """Makes links: the real one in ``context``, one for tests and simulation in ``memory``."""

    def client_link(self, address: str, security: Security, events: ClientEvents) -> ClientLink: ...

    def server_link(self, address: str, security: Security) -> ServerLink: ...

    async def __aenter__(self) -> AnyTransport: ...

    async def __aexit__(self, *exc: Any) -> None: ...
