"""Fragmented files, put together again at leisure: many small extents of one chunk become one block.

Whoever wrote them does it, some time after the last write, one chunk at a time and at a low rate. What a mount that
ended has left undone is done by whoever reads it, later, so that the writer comes first where he lives. The commit
names the version of the data that was read, so that it is refused where anybody has written meanwhile; it changes
neither size nor times. Holes stay holes. Nothing depends on it: what nobody reads stays fragmented, and is bounded by
EXTENTS_PER_CHUNK_MAX all the same.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import trio

from fusefs.client import chunking
from fusefs.client.codec import Codec
from fusefs.client.files import Files
from fusefs.client.reader import Reader
from fusefs.client.results import expect
from fusefs.client.session import Session
from fusefs.client.writer import Writer
from metadata.api import Attr, Commit, Committed, Extent, Failed
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, COMPACT_BYTES_PER_S, COMPACT_EXTENTS_MIN, COMPACT_FOUND_S, COMPACT_QUIET_S
from node.wire.types import Buffer

log = logging.getLogger(__name__)

TICK_S = 1.0
CHUNKS_MAX = 8192  # that wait; the longest waiting are forgotten
STEP_TIMEOUT_S = 30.0


class Compactor:
    """Chunks of which this mount knows that they are fragmented."""

    def __init__(self, session: Session, files: Files, reader: Reader, codec: Codec, writer: Writer) -> None:
        self._session = session
        self._files = files
        self._reader = reader
        self._codec = codec
        self._writer = writer
        self._since: OrderedDict[tuple[int, int], float] = OrderedDict()  # (inode, chunk) -> last write, oldest first
        self._found: OrderedDict[tuple[int, int], float] = OrderedDict()  # the same -> first met by a reader
        self._left: OrderedDict[tuple[int, int], None] = OrderedDict()  # met, and as good as they can be
        self._merged = 0
        self._bytes = 0

    def fragmented(self, ino: int, chunk: int) -> None:
        """Small extents were committed to this chunk, and it may have many by now."""
        self._since[ino, chunk] = trio.current_time()
        self._since.move_to_end((ino, chunk))
        self._found.pop((ino, chunk), None)
        self._left.pop((ino, chunk), None)
        if len(self._since) > CHUNKS_MAX:
            self._since.popitem(last=False)

    def found(self, ino: int, chunk: int) -> None:
        """Somebody reads this chunk, which has many extents; perhaps nobody lives who wrote them."""
        key = ino, chunk
        if key in self._since or key in self._found or key in self._left or len(self._found) >= CHUNKS_MAX:
            return
        self._found[key] = trio.current_time()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await trio.sleep(TICK_S)
            await self.turn()

    async def turn(self) -> None:
        """Put together what has been quiet for long enough."""
        await self._work_off(self._since, COMPACT_QUIET_S)
        await self._work_off(self._found, COMPACT_FOUND_S)

    async def _work_off(self, waiting: OrderedDict[tuple[int, int], float], quiet_s: float) -> None:
        for (ino, chunk), since in list(waiting.items()):
            if since + quiet_s > trio.current_time():
                return
            if waiting.get((ino, chunk)) != since:
                continue  # written again while others were put together
            del waiting[ino, chunk]
            file = self._files.get(ino)
            if file is not None and not file.idle_data:
                continue  # its commit will say so again
            try:
                read_bytes = await self._merge(ino, chunk)
            except FsError as error:
                log.debug("chunk %d of inode %d stays fragmented: %s", chunk, ino, error)
                continue
            await trio.sleep(read_bytes / COMPACT_BYTES_PER_S)

    async def _merge(self, ino: int, chunk: int) -> int:
        """Put one chunk together; return how much was read."""
        deadline = trio.current_time() + STEP_TIMEOUT_S
        start = chunk * BLOCK_BYTES_MAX
        attr, extents = await self._reader.extents(ino, start, start + BLOCK_BYTES_MAX, deadline)
        extents = [extent for extent in extents if chunking.chunk_of(extent.offset) == chunk]
        if not worthwhile(extents):
            self._leave(ino, chunk)
            return 0
        runs = [run for run in chunking.runs_without_gap(extents) if len(run) > 1]
        plain: list[list[Buffer]] = []
        for run in runs:
            end = run[-1].offset + run[-1].length
            plain.append(await self._reader.assemble((), run, run[0].offset, end, deadline))
        encoded = await self._codec.encode(plain)
        touched = await self._writer.put(encoded, deadline)
        merged = [
            extent
            for run, one in zip(runs, encoded)
            for extent in chunking.extents_of(run[0].offset, one.block, one.length)
        ]
        version, pg_epoch = attr.data_version, touched.pg_epoch
        commit = Commit(ino, tuple(merged), 0, 0, touched.epoch, base_version=version, pg_epoch=pg_epoch, merge=True)
        (result,) = await self._session.submit(commit, deadline=deadline)
        read_bytes = sum(one.length for one in encoded)
        if isinstance(result, Failed):
            raise FsError(Code.VERSION_MISMATCH, result.detail)
        self._noted(ino, chunk, len(extents) - sum(len(run) - 1 for run in runs), expect(result, Committed).attr)
        self._merged += 1
        self._bytes += read_bytes
        return read_bytes

    def _leave(self, ino: int, chunk: int) -> None:
        """Readers need not tell of this chunk again, until something is written to it here."""
        self._left[ino, chunk] = None
        if len(self._left) > CHUNKS_MAX:
            self._left.popitem(last=False)

    def _noted(self, ino: int, chunk: int, extents: int, attr: Attr) -> None:
        file = self._files.get(ino)
        if file is not None:
            file.note(attr)
            if file.idle_data:
                file.extents[chunk] = extents

    def statistics(self) -> dict[str, Any]:
        return {"waiting": len(self._since), "found": len(self._found), "chunks": self._merged, "bytes": self._bytes}


def worthwhile(extents: Sequence[Extent]) -> bool:
    """Whether putting the extents of a chunk together leaves clearly fewer, or frees much of their blocks."""
    runs = len(chunking.runs_without_gap(extents))
    if len(extents) < 2 * runs:
        return False
    blocks = {extent.block: extent.block_length for extent in extents}
    wasted = sum(blocks.values()) - sum(extent.length for extent in extents)
    return len(extents) >= COMPACT_EXTENTS_MIN or wasted > BLOCK_BYTES_MAX // 2
