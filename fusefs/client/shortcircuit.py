"""Blocks of chunk servers on this host, read from their files without asking them.

A server is asked once where the blocks of a file lie; from then on the mount reads them itself. That is only ever a
short cut: whatever does not work out here (no permission, another host, a file that is gone, a disk that does not
answer, bytes that are wrong) is None, and the block is asked for as always.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Optional

import trio

from fusefs.client.placement import Placement
from node.host.diskreads import DiskReads
from node.wire.errors import Code, FsError
from node.wire.limits import (
    LOCATE_BLOCKS_MAX, PIECE_BYTES, PIECE_TABLE_BYTES, PLACE_BYTES, PLACES_MAX, SHORT_CIRCUIT_AGAIN_S,
    SHORT_CIRCUIT_IDLE_S, SHORT_CIRCUIT_PAUSE_S, SHORT_CIRCUIT_READING_MAX, SHORT_CIRCUIT_S, SHORT_CIRCUIT_THREADS,
)
from node.wire.types import Buffer
from storage.api import Locate, Located, LocateReply, SegmentReader

log = logging.getLogger(__name__)

CALL_S = 5.0


class ShortCircuit:
    """Where blocks lie on this host. ``suspect`` is told (server, block) of bytes that are wrong there."""

    def __init__(
        self, placement: Placement, nursery: trio.Nursery, suspect: Callable[[int, bytes], None], *, on: bool
    ) -> None:
        self.on = on
        self._placement = placement
        self._nursery = nursery
        self._suspect = suspect
        self._places: OrderedDict[bytes, tuple[int, Located]] = OrderedDict()
        self._stores: dict[int, SegmentReader] = {}
        self._avoided: dict[int, float] = {}  # server -> when it may be tried again
        self._asked: set[bytes] = set()
        self._threads: Optional[trio.CapacityLimiter] = None
        self._reads = DiskReads(nursery)
        self._tidying = False
        self._reading = 0
        self.reads = 0
        self.failures = 0

    # --- where blocks are -------------------------------------------------------------------------------------------

    def knows(self, block: bytes) -> bool:
        """Whether ``read`` will probably have this block."""
        return block in self._places

    def hopes(self, block: bytes) -> bool:
        """Whether it makes sense to ``expect`` this block: it is not known where it lies, and may be here."""
        return self._hope(block) is not None

    def expect(self, blocks: Collection[bytes]) -> None:
        """These will be read: ask where they lie. Returns at once."""
        wanted: dict[int, list[bytes]] = {}
        for block in blocks:
            if len(self._asked) < PLACES_MAX and (server := self._hope(block)) is not None:
                wanted.setdefault(server, []).append(block)
                self._asked.add(block)
        for server, theirs in wanted.items():
            self._nursery.start_soon(self._locate, server, theirs)

    def _hope(self, block: bytes) -> Optional[int]:
        """A server that should have a block and may be on this host, where it is not known or asked for already."""
        if not self.on or block in self._places or block in self._asked:
            return None
        now_s = trio.current_time()
        servers = self._placement.servers_of(block)[: self._placement.complete_of(block)]
        return next((server for server in servers if self._avoided.get(server, 0.0) <= now_s), None)

    async def _locate(self, server: int, blocks: Sequence[bytes]) -> None:
        try:
            for at in range(0, len(blocks), LOCATE_BLOCKS_MAX):
                some = blocks[at : at + LOCATE_BLOCKS_MAX]
                answer = await self._placement.call(server, Locate(tuple(some)), (), CALL_S)
                if not await self._learn(server, some, answer.body):
                    return
        except FsError as error:
            log.info("%s does not say where blocks lie: %s", self._placement.name_of(server), error)
            self._avoid(server, SHORT_CIRCUIT_AGAIN_S if error.code is Code.NOT_SUPPORTED else SHORT_CIRCUIT_PAUSE_S)
        finally:
            self._asked.difference_update(blocks)

    async def _learn(self, server: int, blocks: Sequence[bytes], reply: LocateReply) -> bool:
        """Take an answer; False where this server's files are not for this process."""
        here = [(block, place) for block, place in zip(blocks, reply.places) if place.stored]
        store = self._stores.get(server)
        if store is None or (store.directory, store.store) != (reply.directory, reply.store):
            if not here:
                return True  # nothing to try it with
            store = SegmentReader(reply.directory, reply.store)
            if not await self._readable(server, store, here[0][1]):
                return False
            self._stores[server] = store
        for block, place in here:
            self._places[block] = server, place
        while len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)
        return True

    async def _readable(self, server: int, store: SegmentReader, place: Located) -> bool:
        with trio.move_on_after(SHORT_CIRCUIT_S):
            try:
                await trio.to_thread.run_sync(store.check, place, limiter=self._limiter(), abandon_on_cancel=True)
                self._keep_tidy()
                return True
            except (OSError, FsError) as error:
                log.debug("the files of %s are not read here: %s", self._placement.name_of(server), error)
        self._avoid(server, SHORT_CIRCUIT_AGAIN_S)
        return False

    def _avoid(self, server: int, pause_s: float) -> None:
        self._avoided[server] = trio.current_time() + pause_s
        self._stores.pop(server, None)
        for block in [block for block, (where, _) in self._places.items() if where == server]:
            del self._places[block]

    # --- their bytes ------------------------------------------------------------------------------------------------

    async def read(self, block: bytes, offset: int, length: int) -> Optional[Buffer]:
        """Return verified plaintext of part of a block; None where it has to be asked for."""
        server, place = self._places.get(block, (0, None))
        store = self._stores.get(server)
        if place is None or store is None or self._reading >= SHORT_CIRCUIT_READING_MAX:
            return None
        self._keep_tidy()
        self._reading += 1
        try:
            with trio.move_on_after(SHORT_CIRCUIT_S):
                plain = await self._little(store, place, block, offset, length) if length <= PIECE_BYTES else None
                if plain is None:
                    plain = await trio.to_thread.run_sync(
                        store.read, place, block, offset, length, limiter=self._limiter(), abandon_on_cancel=True
                    )
                self.reads += 1
                return plain
            log.warning("%s: its disk does not answer", self._placement.name_of(server))
            self._avoid(server, SHORT_CIRCUIT_PAUSE_S)
        except FileNotFoundError:
            self._places.pop(block, None)  # compaction has moved it
        except OSError as error:
            log.warning("%s: reading %s failed: %s", self._placement.name_of(server), store.directory, error)
            self._avoid(server, SHORT_CIRCUIT_PAUSE_S)
        except FsError as error:
            self._places.pop(block, None)
            if error.code is Code.CORRUPT_BLOCK:
                self._suspect(server, block)
            else:
                self._avoid(server, SHORT_CIRCUIT_PAUSE_S)
        finally:
            self._reading -= 1
        self.failures += 1
        return None

    async def _little(
        self, store: SegmentReader, place: Located, block: bytes, offset: int, length: int
    ) -> Optional[Buffer]:
        """As ``SegmentReader.read``, without a thread, which would cost more than the work; None where that cannot be
        done."""
        found = store.steps(place, block, offset, length)
        if found is None:
            return None
        file, steps = found
        try:
            wanted = next(steps)
            while True:
                came = await self._reads.read(file, [(count, place.offset + at) for count, at in wanted])
                if came is None:
                    return None
                wanted = steps.send(came)
        except StopIteration as end:
            plain: Buffer = end.value
            return plain

    def _keep_tidy(self) -> None:
        if not self._tidying:
            self._tidying = True
            self._nursery.start_soon(self._tidy)

    async def _tidy(self) -> None:
        """Let go of what is not read any more; ends when no file is open."""
        try:
            left = 1
            while left or self._reading:
                await trio.sleep(SHORT_CIRCUIT_IDLE_S)
                left = sum([store.tidy() for store in self._stores.values()])
        finally:
            self._tidying = False

    def _limiter(self) -> trio.CapacityLimiter:
        if self._threads is None:
            self._threads = trio.CapacityLimiter(SHORT_CIRCUIT_THREADS)
        return self._threads

    def statistics(self) -> dict[str, Any]:
        return {
            "short_circuit_reads": self.reads,
            "short_circuit_failures": self.failures,
            "places_bytes": len(self._places) * PLACE_BYTES
            + sum(store.tables for store in self._stores.values()) * PIECE_TABLE_BYTES,
        }
