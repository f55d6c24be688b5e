"""Blocks from chunk servers, verified, and a cache of their plaintext.

A block never changes, so what is cached is true for ever. Fetches of whole blocks are shared by all who want the
block and run in tasks of their own; a part of a block is fetched by whoever wants it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Optional

import trio

from fusefs.client.codec import Codec
from fusefs.client.placement import Placement
from node.wire.errors import Code, FsError
from node.wire.limits import KIB
from node.wire.types import Buffer
from storage.api import BlockRange, Get

log = logging.getLogger(__name__)

TRY_TIMEOUT_S = 5.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 0.5
SMALL_BLOCK_BYTES = 64 * KIB  # at most: always fetched whole, and several in one request
BATCH_BLOCKS_MAX = 64
ENTRY_COST = 300  # bytes of bookkeeping for a cached block
FETCHES_AHEAD_MAX = 16  # whole blocks under way; beyond, nothing is fetched on suspicion

_PASSING = frozenset({Code.UNREACHABLE, Code.TIMEOUT, Code.OVERLOADED, Code.SHUTTING_DOWN, Code.RETRY})


class BlockCache:
    """Plaintext of whole blocks, least recently used first out, within a budget of bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._blocks: OrderedDict[bytes, Buffer] = OrderedDict()
        self._bytes_max = bytes_max
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, block: bytes) -> Optional[Buffer]:
        plain = self._blocks.get(block)
        if plain is None:
            self.misses += 1
            return None
        self.hits += 1
        self._blocks.move_to_end(block)
        return plain

    def __contains__(self, block: bytes) -> bool:
        return block in self._blocks

    def put(self, block: bytes, plain: Buffer) -> None:
        if block in self._blocks or len(plain) > self._bytes_max:
            return
        self._blocks[block] = plain
        self.bytes += len(plain) + ENTRY_COST
        while self.bytes > self._bytes_max:
            _, dropped = self._blocks.popitem(last=False)
            self.bytes -= len(dropped) + ENTRY_COST


class _Fetch:
    """A whole block under way."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.plain: Optional[Buffer] = None
        self.error: Optional[FsError] = None


class Blocks:
    """Where plaintext comes from."""

    def __init__(
        self, placement: Placement, codec: Codec, nursery: trio.Nursery, *, cache_bytes_max: int, timeout_s: float
    ) -> None:
        self._placement = placement
        self._codec = codec
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._fetches: dict[bytes, _Fetch] = {}
        self._turn = 0
        self.cache = BlockCache(cache_bytes_max)
        self._requests = 0
        self._bad = 0

    def prefetch(self, block: bytes, length: int) -> None:
        """Fetch a whole block on suspicion."""
        if block not in self.cache and block not in self._fetches and len(self._fetches) < FETCHES_AHEAD_MAX:
            self._start(block, length)

    def want(self, blocks: Sequence[tuple[bytes, int]]) -> None:
        """Fetch whole blocks (name, length) that ``whole`` will be asked for in a moment: small ones of one server in
        one request, large ones side by side."""
        batches: dict[int, list[tuple[bytes, int]]] = {}
        for block, length in blocks:
            if block in self.cache or block in self._fetches:
                continue
            servers = self._order(block) if length <= SMALL_BLOCK_BYTES else ()
            if not servers:
                self._start(block, length)
                continue
            self._fetches[block] = _Fetch()
            batch = batches.setdefault(servers[0], [])
            batch.append((block, length))
            if len(batch) == BATCH_BLOCKS_MAX:
                self._nursery.start_soon(self._fetch_batch, servers[0], batches.pop(servers[0]))
        for server, batch in batches.items():
            self._nursery.start_soon(self._fetch_batch, server, batch)

    async def whole(self, block: bytes, length: int, deadline: float) -> Buffer:
        """Return the plaintext of a block. IO, with a log line that names it, when no server has it intact."""
        while True:
            plain = self.cache.get(block)
            if plain is not None:
                return plain
            fetch = self._fetches.get(block)
            mine = fetch is None
            if fetch is None:
                fetch = self._start(block, length)
            with trio.move_on_at(deadline):
                await fetch.done.wait()
            if fetch.plain is not None:
                return fetch.plain
            if fetch.error is None:
                raise FsError(Code.TIMEOUT, f"block {block.hex()} did not come in time")
            if mine or fetch.error.code is not Code.TIMEOUT or trio.current_time() >= deadline:
                raise FsError(fetch.error.code, fetch.error.detail)

    async def part(self, block: bytes, offset: int, length: int, block_length: int, deadline: float) -> Buffer:
        """Return part of the plaintext of a block; only the pieces that it touches travel."""
        plain = self.cache.get(block)
        if plain is not None:
            return memoryview(plain)[offset : offset + length]
        if length == block_length or block in self._fetches:
            plain = await self.whole(block, block_length, deadline)
            return memoryview(plain)[offset : offset + length]
        return await self._fetch(block, offset, length, block_length, deadline)

    def _start(self, block: bytes, length: int) -> _Fetch:
        fetch = self._fetches[block] = _Fetch()
        self._nursery.start_soon(self._fetch_whole, fetch, block, length)
        return fetch

    async def _fetch_whole(self, fetch: _Fetch, block: bytes, length: int) -> None:
        try:
            deadline = trio.current_time() + self._timeout_s
            self._finish(block, await self._fetch(block, 0, length, length, deadline))
        except FsError as error:
            fetch.error = error
        except Exception:  # a bug costs this read, not the mount
            log.exception("the fetch of block %s failed unexpectedly", block.hex())
            fetch.error = FsError(Code.IO, f"block {block.hex()}: the fetch failed unexpectedly")
        finally:
            if self._fetches.get(block) is fetch:
                del self._fetches[block]
            fetch.done.set()

    async def _fetch_batch(self, server: int, batch: Sequence[tuple[bytes, int]]) -> None:
        """Fetch small blocks in one request; what does not come that way is fetched one by one, from anywhere."""
        left = dict(batch)
        try:
            if len(batch) > 1:
                ranges = tuple(BlockRange(block) for block, _ in batch)
                answer = await self._placement.call(server, Get(ranges), (), TRY_TIMEOUT_S)
                self._requests += 1
                for (block, length), code, frame in zip(batch, answer.body.codes, answer.data):
                    if not code:
                        plain = await self._codec.decode(frame, block, 0, length, length)
                        self._finish(block, plain)
                        del left[block]
        except FsError as error:
            log.info("%d blocks from %s: %s", len(left), self._placement.name_of(server), error)
        except Exception:
            log.exception("a fetch of %d blocks failed unexpectedly", len(left))
        finally:
            for block, length in left.items():
                self._nursery.start_soon(self._fetch_whole, self._fetches[block], block, length)

    def _finish(self, block: bytes, plain: Buffer) -> None:
        fetch = self._fetches.pop(block)
        fetch.plain = plain
        self.cache.put(block, plain)
        fetch.done.set()

    async def _fetch(self, block: bytes, offset: int, length: int, block_length: int, deadline: float) -> Buffer:
        pause_s = PAUSE_S_MIN
        refreshed = False
        while True:
            await self._placement.ready(deadline)
            failures: list[tuple[int, FsError]] = []
            for server in self._order(block):
                try:
                    return await self._ask(server, block, offset, length, block_length, deadline)
                except FsError as error:
                    failures.append((server, error))
                    self._report(server, block, error)
            passing = not failures or any(error.code in _PASSING for _, error in failures)
            late = trio.current_time() + pause_s >= deadline
            if late or (refreshed and not passing):
                story = "; ".join(f"{self._placement.name_of(server)}: {error}" for server, error in failures)
                log.error("block %s cannot be read: %s", block.hex(), story or "no chunk server is known")
                code = Code.TIMEOUT if passing else Code.IO
                raise FsError(code, f"block {block.hex()} cannot be read: {story}")
            if passing:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
            await self._placement.refresh(deadline)
            refreshed = True

    async def _ask(
        self, server: int, block: bytes, offset: int, length: int, block_length: int, deadline: float
    ) -> Buffer:
        timeout_s = max(0.001, min(TRY_TIMEOUT_S, deadline - trio.current_time()))
        whole = length == block_length
        wanted = BlockRange(block) if whole else BlockRange(block, offset, length)
        answer = await self._placement.call(server, Get((wanted,)), (), timeout_s)
        self._requests += 1
        if len(answer.body.codes) != 1 or len(answer.data) != 1:
            raise FsError(Code.PROTOCOL, "not one frame for one block")
        code = answer.body.codes[0]
        if code:
            raise FsError(Code.CORRUPT_BLOCK if code == Code.CORRUPT_BLOCK else Code.MISSING_BLOCK, "")
        return await self._codec.decode(answer.data[0], block, offset, length, block_length)

    def _order(self, block: bytes) -> list[int]:
        """The servers of a block, each read beginning with the next one."""
        servers = list(self._placement.servers_of(block))
        if len(servers) > 1:
            self._turn += 1
            first = self._turn % len(servers)
            servers = servers[first:] + servers[:first]
        return servers

    def _report(self, server: int, block: bytes, error: FsError) -> None:
        if error.code in _PASSING:
            log.info("block %s from %s: %s", block.hex(), self._placement.name_of(server), error)
        else:
            self._bad += 1
            log.warning("block %s from %s: %s", block.hex(), self._placement.name_of(server), error)

    def statistics(self) -> dict[str, Any]:
        return {
            "cache_bytes": self.cache.bytes,
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "requests": self._requests,
            "fetching": len(self._fetches),
            "bad": self._bad,
        }
