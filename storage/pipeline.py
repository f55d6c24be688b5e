"""One put on its way down the chain of chunk servers, as one server of the chain sees it. Sans-IO.

The chain is client -> first -> next -> last. A server passes a put on, with the rest of the chain, before it has stored
it itself; the acknowledgements come back the same way, each server adding its own. When the next server fails, it is
left out and the one behind it is asked: it may then get the same blocks twice, which is harmless, because a put of a
block that is there only touches it. A server counts as failed only when it did not answer; one that answered counts
with the blocks that it has durably.

Time comes in as an argument; the caller sends what ``step`` says and reports what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True, slots=True)
class Send:
    """Pass the put on to this server, with this rest of the chain, and wait this long for the answer."""

    server: int
    forward: tuple[int, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """How many servers beyond this one hold each block durably, and which did not answer."""

    copies: tuple[int, ...]
    failed: tuple[int, ...]


class Pipeline:
    """The downstream half of one put.

    Invariants: each server of the chain is sent to at most once by us; ``copies`` never counts a server twice, and
    never one whose answer did not come.
    """

    def __init__(self, chain: Sequence[int], blocks: int) -> None:
        self._chain = tuple(chain)
        self._blocks = blocks
        self._failed: list[int] = []
        self._finished: Finished | None = None
        self._waiting = False

    def step(self, remaining_s: float) -> Union[Send, Finished]:
        """Return what to do next, given how long the client still waits. Not while an answer is out."""
        assert not self._waiting
        if self._finished is not None:
            return self._finished
        if not self._chain or remaining_s <= 0:
            self._finished = Finished((0,) * self._blocks, (*self._failed, *self._chain))
            return self._finished
        self._waiting = True
        # A share for each server still to come and one for the way back: one that hangs leaves time for the others.
        return Send(self._chain[0], self._chain[1:], remaining_s / (len(self._chain) + 1))

    def answered(self, copies: Sequence[int], failed: Sequence[int]) -> None:
        """The server answered: with this many copies of each block, its own and those beyond, and these failures."""
        assert self._waiting
        self._waiting = False
        behind = len(self._chain)  # no honest answer claims more copies than servers
        if len(copies) != self._blocks or not all(0 <= count <= behind for count in copies):
            self._leave_out()
            return
        lost = [server for server in failed if server in self._chain]
        self._finished = Finished(tuple(copies), (*self._failed, *lost))

    def not_answered(self) -> None:
        """The server is down, refused, or took too long."""
        assert self._waiting
        self._waiting = False
        self._leave_out()

    def _leave_out(self) -> None:
        self._failed.append(self._chain[0])
        self._chain = self._chain[1:]
