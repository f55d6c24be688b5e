"""Blocks from chunk servers, verified, and a cache of their plaintext.

A block never changes, so what is cached is true for ever. Fetches of whole blocks are shared by all who want the
block and run in tasks of their own; a part of a block is fetched by whoever wants it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import trio

from fusefs.client.codec import Codec
from fusefs.client.fetching import Fetcher, Logged, Wanted
from fusefs.client.placement import Placement
from metadata.api import Extents, Result
from node.wire.errors import Code, FsError
from node.wire.limits import KIB, MIB, PIECE_BYTES
from node.wire.types import Buffer
from storage.api import name_block

log = logging.getLogger(__name__)

SMALL_BLOCK_BYTES = 64 * KIB  # at most: always fetched whole, and several in one request
BATCH_BLOCKS_MAX = 64
BATCH_BYTES_MAX = 2 * MIB  # of plaintext, in one request that nobody waits for yet
ENTRY_COST = 300  # bytes of bookkeeping for a cached block
FETCHES_AHEAD_MAX = 256  # whole blocks under way; beyond, nothing is fetched on suspicion
PARTS_MAX = 4  # pieces of one block; then it comes whole: sparse readers lose 4 %, dense ones gain 40 % (measured)
PARTS_HERE_MAX = 8  # where it lies on this host, because the next piece costs less there
WATCHED_MAX = 1024  # blocks whose pieces are counted


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
        self,
        placement: Placement,
        codec: Codec,
        nursery: trio.Nursery,
        logged: Logged,
        *,
        cache_bytes_max: int,
        timeout_s: float,
        short_circuit: bool = False,
    ) -> None:
        self._nursery = nursery
        self._timeout_s = timeout_s
        self._fetcher = Fetcher(placement, codec, nursery, logged, short_circuit=short_circuit)
        self.short = self._fetcher.short
        self._fetches: dict[bytes, _Fetch] = {}
        self._parts: OrderedDict[bytes, int] = OrderedDict()  # block -> pieces of it that were fetched
        self.cache = BlockCache(cache_bytes_max)

    def came(self, block: bytes, plain: bytes) -> None:
        """The bytes of a block came with an answer about extents."""
        if block not in self.cache and name_block(plain) == block:
            self.cache.put(block, plain)

    # --- on suspicion -----------------------------------------------------------------------------------------------

    def ahead(self, blocks: Sequence[tuple[bytes, int]]) -> None:
        """Fetch whole blocks (name, length) that a reader will come to, in this order.

        While the first of them is there or on its way, and only a few are not, more are waited for: one request
        brings several.
        """
        missing = [one for one in dict(blocks).items() if one[0] not in self.cache and one[0] not in self._fetches]
        if not missing or len(self._fetches) >= FETCHES_AHEAD_MAX:
            return
        if 2 * len(missing) < len(blocks) and missing[0] != blocks[0] and missing[-1] == blocks[-1]:
            return
        self._batches(missing[: FETCHES_AHEAD_MAX - len(self._fetches)])

    def bring(self, blocks: Sequence[tuple[bytes, int]]) -> None:
        """Fetch whole blocks (name, length) of several files, as far as not too many are under way."""
        missing = [one for one in dict(blocks).items() if one[0] not in self.cache and one[0] not in self._fetches]
        if len(self._fetches) < FETCHES_AHEAD_MAX:
            self._batches(missing[: FETCHES_AHEAD_MAX - len(self._fetches)])

    def again(self, results: Iterable[Result]) -> None:
        """These were asked for because who reads a file that others change comes back to it soon."""
        self.want([
            (extent.block, extent.block_length)
            for result in results if isinstance(result, Extents)
            for extent in result.extents[-BATCH_BLOCKS_MAX:] if extent.block_length <= SMALL_BLOCK_BYTES
        ])

    def want(self, blocks: Sequence[tuple[bytes, int]]) -> None:
        """Fetch whole blocks (name, length) that ``whole`` will be asked for in a moment: small ones of one server in
        one request, large ones side by side."""
        small: list[tuple[bytes, int]] = []
        for block, length in blocks:
            if block in self.cache or block in self._fetches:
                continue
            if length <= SMALL_BLOCK_BYTES:
                small.append((block, length))
            else:
                self._start(block, length)
        self._batches(small)

    def _batches(self, blocks: Sequence[tuple[bytes, int]]) -> None:
        """Ask for blocks that are not on their way, those of one server together."""
        batches: dict[int, list[tuple[bytes, int]]] = {}
        for block, length in blocks:
            if block in self._fetches:
                continue  # named twice
            servers = self._fetcher.order(block)
            if not servers or self.short.knows(block):
                self._start(block, length)
                continue
            self._fetches[block] = _Fetch()
            server = next((one for one in servers if one in batches), servers[0])  # of its replicas one that is asked
            if sum(size for _, size in batches.get(server, ())) + length > BATCH_BYTES_MAX and server in batches:
                self._nursery.start_soon(self._fetch_batch, server, batches.pop(server))
                server = servers[0]
            batch = batches.setdefault(server, [])
            batch.append((block, length))
            if len(batch) == BATCH_BLOCKS_MAX:
                self._nursery.start_soon(self._fetch_batch, server, batches.pop(server))
        for server, batch in batches.items():
            self._nursery.start_soon(self._fetch_batch, server, batch)

    # --- for a reader -----------------------------------------------------------------------------------------------

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
        start = offset - offset % PIECE_BYTES
        end = min(block_length, start + PIECE_BYTES)
        if offset + length > end:
            return await self._fetcher.fetch(Wanted(block, offset, length, block_length), deadline)
        piece = await self._piece(block, start, end - start, block_length, deadline)
        return memoryview(piece)[offset - start : offset - start + length]

    async def _piece(self, block: bytes, start: int, length: int, block_length: int, deadline: float) -> Buffer:
        """Return one piece, which is kept like a small block."""
        key = block + (start // PIECE_BYTES).to_bytes(1, "big")
        piece = self.cache.get(key)
        if piece is None:
            self._count_part(block, block_length)
            piece = await self._fetcher.fetch(Wanted(block, start, length, block_length), deadline)
            self.cache.put(key, piece)
        return piece

    def _count_part(self, block: bytes, block_length: int) -> None:
        """Where many pieces of a block are read, have the whole of it come."""
        count = self._parts.pop(block, 0) + 1
        if count >= (PARTS_HERE_MAX if self.short.knows(block) else PARTS_MAX):
            if len(self._fetches) < FETCHES_AHEAD_MAX:
                self._start(block, block_length)
            return
        self._parts[block] = count
        if len(self._parts) > WATCHED_MAX:
            self._parts.popitem(last=False)

    # --- whole blocks under way -------------------------------------------------------------------------------------

    def _start(self, block: bytes, length: int) -> _Fetch:
        fetch = self._fetches[block] = _Fetch()
        self._nursery.start_soon(self._fetch_whole, fetch, block, length)
        return fetch

    async def _fetch_whole(self, fetch: _Fetch, block: bytes, length: int) -> None:
        try:
            deadline = trio.current_time() + self._timeout_s
            self._finish(block, await self._fetcher.fetch(Wanted(block, 0, length, length), deadline))
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
        """Fetch blocks in one request; what does not come that way is fetched one by one, from anywhere."""
        left = dict(batch)
        try:
            if len(batch) > 1:
                for block, plain in (await self._fetcher.batch(server, batch)).items():
                    self._finish(block, plain)
                    del left[block]
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

    def statistics(self) -> dict[str, Any]:
        return {
            "cache_bytes": self.cache.bytes,
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "fetching": len(self._fetches),
            **self._fetcher.statistics(),
        }
