"""Blocks to chunk servers: each to all servers of its placement group, many small ones in one request.

A block takes either of two ways to its servers. *Fan-out*: this client sends it to each. *Chain*: it sends it to the
first, which passes it on while it stores it, and so on to the last; the answer counts the copies. A chain loads this
client's line once instead of R times, but is only as fast as its slowest member: so it is an option, only for large
blocks, and a chain that failed or was slow is made good by fan-out (a put of what is there only touches it), which
also takes the next blocks for a while.

What waits for a server while a request is under way to it goes out together in the next one; full blocks do not
wait, up to a bound. A put succeeds when enough servers hold each block durably (Placement.durable_min); the others
are still given it, unless they lag behind.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import trio

from fusefs.client.codec import Encoded
from fusefs.client.placement import Placement
from fusefs.client.session import Session
from node.wire.errors import Code, FsError
from node.wire.limits import KIB, MIB, PUT_BLOCKS_MAX, PUT_BYTES_MAX
from storage.api import BlockInfo, Put

log = logging.getLogger(__name__)

TRY_TIMEOUT_S = 10.0
IN_FLIGHT_MAX = 4  # requests to one server
BATCH_BYTES = 2 * MIB  # enough waiting to begin another request beside those in flight
LAG_BYTES_MAX = 8 * MIB  # beyond, a server is not given what is durable without it
CHAIN_BYTES_MIN = 64 * KIB  # smaller blocks go to each server, many in one request
CHAIN_TIMEOUT_S = 3.0  # then its blocks are given to each server
CHAIN_AVOIDED_S = 10.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 0.5

TRANSIENT = frozenset(
    {Code.UNREACHABLE, Code.TIMEOUT, Code.OVERLOADED, Code.SHUTTING_DOWN, Code.RETRY, Code.STALE_EPOCH}
)


class Touched(NamedTuple):
    """What a commit must tell of its blocks: the oldest epochs they were put with."""

    epoch: int
    pg_epoch: int


class _Round:
    """One attempt to put some blocks by the table of ``pg_epoch``; done when each is durable enough or cannot become
    so."""

    def __init__(self, pg_epoch: int) -> None:
        self.pg_epoch = pg_epoch
        self.open = 0
        self.failed: list[tuple[Encoded, FsError]] = []
        self.epoch = 0  # the oldest touch epoch used; 0: none yet
        self.done = trio.Event()


class _Item:
    """One block of a round on its way to its servers."""

    __slots__ = ("round", "encoded", "needed", "chances")

    def __init__(self, round_: _Round, encoded: Encoded, needed: int, servers: int) -> None:
        self.round = round_
        self.encoded = encoded
        self.needed = needed  # durable copies still missing
        self.chances = servers  # servers that have not answered
        round_.open += 1

    def stored(self, epoch: int) -> None:
        """One server has it durably."""
        self.round.epoch = min(self.round.epoch or epoch, epoch)
        self.chances -= 1
        self.needed -= 1
        if self.needed == 0:
            self._close()

    def refused(self, error: FsError) -> None:
        """One server has it not."""
        self.chances -= 1
        if 0 < self.needed and self.chances == self.needed - 1:
            self.round.failed.append((self.encoded, error))
            self._close()

    def chained(self, epoch: int, copies: int, servers: int, error: FsError) -> None:
        """So many of the servers of a chain have it durably."""
        for _ in range(copies):
            self.stored(epoch)
        for _ in range(servers - copies):
            self.refused(error)

    def _close(self) -> None:
        self.round.open -= 1
        if self.round.open == 0:
            self.round.done.set()


Route = tuple[int, ...]  # one server, or a chain of them


class _Outbox:
    """What waits for one route, and how much is under way on it."""

    def __init__(self) -> None:
        self.waiting: deque[_Item] = deque()
        self.waiting_bytes = 0
        self.in_flight = 0


class Writer:
    """Puts blocks. Requests run in ``nursery``, so that a caller who is cancelled takes nobody else's block along."""

    def __init__(
        self, session: Session, placement: Placement, nursery: trio.Nursery, *, chain: bool = False
    ) -> None:
        self._session = session
        self._placement = placement
        self._nursery = nursery
        self._chain = chain
        self._avoided: dict[Route, float] = {}  # chains, until when
        self._outboxes: dict[Route, _Outbox] = {}
        self._chained = 0
        self._puts = 0
        self._blocks = 0
        self._bytes = 0

    async def put(self, blocks: Sequence[Encoded], deadline: float) -> Touched:
        """Return, once all blocks are durable on enough servers, the oldest epochs they were put with.

        Raises NO_SPACE and the like at once; what may pass is tried again until the deadline, then TIMEOUT. What was
        put to a group that has changed since is put again, so the placement epoch is that of the newest known table.
        """
        pause_s = PAUSE_S_MIN
        epoch = 0
        stored: dict[bytes, tuple[Encoded, int]] = {}  # and by which table
        while True:
            await self._placement.ready(deadline)
            attempt = self._begin(blocks)
            with trio.move_on_at(deadline):
                await attempt.done.wait()
            if not attempt.done.is_set():
                raise FsError(Code.TIMEOUT, "the chunk servers did not answer in time")
            epoch = min(epoch or attempt.epoch, attempt.epoch or epoch)
            failed = {encoded.block for encoded, _ in attempt.failed}
            stored |= {one.block: (one, attempt.pg_epoch) for one in blocks if one.block not in failed}
            if not attempt.failed:
                blocks = [one for one, put in stored.values() if self._placement.changed(one.block, put)]
                if not blocks:
                    return Touched(epoch, self._placement.pg_epoch)
                if trio.current_time() >= deadline:
                    raise FsError(Code.TIMEOUT, "the placement of the data changed again and again")
                continue
            error = _worst(attempt.failed)
            if error.code not in TRANSIENT:
                raise error
            blocks = [encoded for encoded, _ in attempt.failed]
            learned = attempt.pg_epoch < self._placement.pg_epoch
            if learned and error.code is Code.STALE_EPOCH and trio.current_time() < deadline:
                continue  # who refused has told why
            if trio.current_time() + pause_s >= deadline:
                raise FsError(Code.TIMEOUT, f"the chunk servers did not take the data in time; last: {error}")
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            await self._placement.refresh(deadline)

    def _begin(self, blocks: Sequence[Encoded]) -> _Round:
        attempt = _Round(self._placement.pg_epoch)
        touched: set[Route] = set()
        needed = self._placement.durable_min
        for encoded in blocks:
            servers = self._placement.writers_of(encoded.block)
            if len(servers) < needed:
                error = FsError(Code.UNREACHABLE, f"{len(servers)} chunk servers for a block that needs {needed}")
                attempt.failed.append((encoded, error))
                continue
            item = _Item(attempt, encoded, needed, len(servers))
            for route in self._routes(servers, len(encoded.frame)):
                outbox = self._outboxes.setdefault(route, _Outbox())
                outbox.waiting.append(item)
                outbox.waiting_bytes += len(encoded.frame)
                touched.add(route)
        if not attempt.open:
            attempt.done.set()
        for route in touched:
            self._pump(route)
        return attempt

    def _routes(self, servers: Sequence[int], size_bytes: int) -> Sequence[Route]:
        """The ways of a block: one chain, or each server."""
        chain = tuple(servers)
        if self._chain and len(chain) > 1 and size_bytes >= CHAIN_BYTES_MIN:
            if self._avoided.get(chain, 0.0) <= trio.current_time():
                return (chain,)
        return [(server,) for server in servers]

    def _pump(self, route: Route) -> None:
        """Begin requests as far as the rule of natural batching allows."""
        outbox = self._outboxes[route]
        while outbox.waiting and (
            not outbox.in_flight or (outbox.waiting_bytes >= BATCH_BYTES and outbox.in_flight < IN_FLIGHT_MAX)
        ):
            batch = self._batch(outbox)
            if batch:
                outbox.in_flight += 1
                self._nursery.start_soon(self._send, route, outbox, batch)

    def _batch(self, outbox: _Outbox) -> list[_Item]:
        batch: list[_Item] = []
        size = 0
        lagging = outbox.waiting_bytes > LAG_BYTES_MAX
        while outbox.waiting and len(batch) < PUT_BLOCKS_MAX:
            item = outbox.waiting[0]
            length = len(item.encoded.frame)
            if batch and size + length > PUT_BYTES_MAX:
                break
            outbox.waiting.popleft()
            outbox.waiting_bytes -= length
            if lagging and item.needed <= 0:
                continue  # durable without this server; repair brings it the block
            batch.append(item)
            size += length
        return batch

    async def _send(self, route: Route, outbox: _Outbox, batch: list[_Item]) -> None:
        server, chain = route[0], route[1:]
        epoch = self._session.gc_epoch
        request = Put(
            tuple(BlockInfo(item.encoded.block, item.encoded.length) for item in batch),
            epoch,
            min(item.round.pg_epoch for item in batch),  # whose rows lead here
            chain,
        )
        self._puts += 1
        self._blocks += len(batch)
        failure: Optional[FsError] = None
        codes: Sequence[int] = ()
        copies: Sequence[int] = ()
        try:
            frames = [item.encoded.frame for item in batch]
            self._bytes += sum(map(len, frames))
            timeout_s = CHAIN_TIMEOUT_S if chain else TRY_TIMEOUT_S
            answer = await self._placement.call(server, request, frames, timeout_s)
            codes, copies = answer.body.codes, answer.body.copies
            self._placement.learn(answer.body.table)
            if len(codes) != len(batch) or len(copies) != len(batch):
                failure = FsError(Code.PROTOCOL, f"{len(codes)} codes for {len(batch)} blocks")
                codes = copies = ()
        except FsError as error:
            failure = error
        except Exception:  # a bug costs these blocks this attempt, not the mount
            log.exception("a put to %s failed unexpectedly", self._placement.name_of(server))
            failure = FsError(Code.IO, "a put failed unexpectedly")
        finally:
            outbox.in_flight -= 1
        if failure is not None:
            log.info("put of %d blocks to %s failed: %s", len(batch), self._placement.name_of(server), failure)
        if chain:
            self._chain_ended(route, batch, codes, copies, epoch)
            self._pump(route)
            return
        for index, item in enumerate(batch):
            if failure is not None:
                item.refused(failure)
            elif codes[index]:
                item.refused(_error_of(codes[index], self._placement.name_of(server)))
            else:
                item.stored(epoch)
        self._pump(route)

    def _chain_ended(
        self, route: Route, batch: Sequence[_Item], codes: Sequence[int], copies: Sequence[int], epoch: int
    ) -> None:
        """Count the copies that a chain made; where one lacks, each server is asked, for the next ones too."""
        self._chained += len(batch)
        name = self._placement.name_of(route[0])
        for index, item in enumerate(batch):
            made = min(max(copies[index], 0), len(route)) if copies else 0
            if made == len(route):
                item.chained(epoch, made, len(route), FsError(Code.IO, ""))
                continue
            if codes and codes[index] == Code.STALE_EPOCH:
                item.chained(epoch, made, len(route), _error_of(codes[index], name))
                continue
            self._avoided[route] = trio.current_time() + CHAIN_AVOIDED_S
            error = FsError(Code.UNREACHABLE, f"a chain from {name} made {made} of {len(route)} copies")
            item.chained(epoch, made, len(route), error)  # whether that is final shows when each server is asked

    def statistics(self) -> dict[str, Any]:
        return {
            "puts": self._puts,
            "blocks": self._blocks,
            "chained": self._chained,
            "bytes": self._bytes,
            "waiting_bytes": sum(outbox.waiting_bytes for outbox in self._outboxes.values()),
        }


def _error_of(code: int, server: str) -> FsError:
    try:
        return FsError(Code(code), f"chunk server {server} refused a block")
    except ValueError:
        return FsError(Code.IO, f"chunk server {server} refused a block with code {code}")


def _worst(failed: Sequence[tuple[Encoded, FsError]]) -> FsError:
    """The error that decides: one that will not pass by itself, if there is any."""
    for _, error in failed:
        if error.code not in TRANSIENT:
            return error
    return failed[0][1]
