"""What the client asks of a connection: one call. Real ones are node.rpc's; tests bring their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from node.wire.types import Buffer


class Answer(Protocol):
    """A reply: the decoded body and the payload frames."""

    @property
    def body(self) -> Any: ...

    @property
    def data(self) -> list[memoryview]: ...


class Caller(Protocol):
    """A connection to one peer, made again for ever."""

    @property
    def connected(self) -> bool:
        """Whether it stands."""
        ...

    async def call(self, request: msgspec.Struct, data: Sequence[Buffer] = (), *, timeout_s: float) -> Answer:
        """Send a request and wait for its reply.

        Raises FsError: the peer's own code; TIMEOUT at the deadline and UNREACHABLE when the peer is down or the
        connection broke; after these two the request may or may not have been executed.
        """
        ...

    def close(self) -> None:
        """Hang up; what is under way fails with UNREACHABLE."""
        ...
