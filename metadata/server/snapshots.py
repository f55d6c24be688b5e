"""Snapshots between members: one view of the state, in chunks that are checked, resumed and kept to a rate.

The sender walks a read transaction of its engine, so it goes on serving; a broken connection is resumed at the chunk
where it broke, as long as the view lives. The receiver spools (``metadata.store.snapshot``) and answers each chunk
with the number of the next one that it wants. Not before it has all is the Raft message stepped that lets the core
install the snapshot; the engine then builds the new state beside the old one and switches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import trio

from metadata.raft.messages import SnapshotMeta
from metadata.server.wire import OfferSnapshot, SnapshotPiece, SnapshotPosition
from metadata.state.tables import SnapshotView
from metadata.store.disk import Disk
from metadata.store.snapshot import SnapshotName, SnapshotSource, SnapshotSpool
from node.rpc.client import Connection
from node.rpc.server import Call
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.limits import SNAPSHOT_BYTES_PER_S, SNAPSHOT_STALL_S

_TIMEOUT_S = 10.0
_RETRY_S = 0.2
_RESUMABLE = frozenset({Code.UNREACHABLE, Code.TIMEOUT, Code.OVERLOADED, Code.RETRY, Code.CORRUPT_BLOCK})


async def stream_snapshot(
    connection: Connection,
    view: SnapshotView,
    meta: SnapshotMeta,
    *,
    member: int,
    incarnation: bytes,
    target_incarnation: bytes,
    bytes_per_s: float = SNAPSHOT_BYTES_PER_S,
    stall_s: float = SNAPSHOT_STALL_S,
) -> bool:
    """Bring one view to a peer. True: it has everything. False: it needs none of it.

    Broken connections and damaged chunks are resumed; FsError where nothing moved for ``stall_s``.
    """
    source = SnapshotSource(view, SnapshotName(meta, os.urandom(16)))
    offer = OfferSnapshot(member, incarnation, target_incarnation, source.name)
    moved_s = trio.current_time()
    while True:
        try:
            position: SnapshotPosition = (await connection.call(offer, timeout_s=_TIMEOUT_S)).body
            if not position.wanted:
                return False
            while source.chunks is None or position.following < source.chunks:
                began_s = trio.current_time()
                chunk = source.chunk(position.following)
                piece = SnapshotPiece(source.name.nonce)
                position = (await connection.call(piece, [chunk], timeout_s=_TIMEOUT_S)).body
                moved_s = trio.current_time()
                await trio.sleep_until(began_s + len(chunk) / bytes_per_s)
            return True
        except FsError as error:
            if error.code not in _RESUMABLE or trio.current_time() - moved_s > stall_s:
                raise
        await trio.sleep(_RETRY_S)


class Receiver:
    """The receiving end: one snapshot at a time, spooled in ``path``. A newer offer replaces an unfinished one."""

    def __init__(self, disk: Disk, path: str, *, wants: Callable[[SnapshotMeta], bool]) -> None:
        self._disk = disk
        self._path = path
        self._wants = wants
        self._spool: SnapshotSpool | None = None
        self.received = 0

    def offer(self, call: Call) -> None:
        """Begin or continue a snapshot; tell where to go on."""
        request: OfferSnapshot = call.request
        if not self._wants(request.name.meta):
            call.reply(SnapshotPosition(0, wanted=False))
            return
        if self._spool is None or self._spool.name != request.name:
            self.close()
            self._spool = SnapshotSpool(self._disk, self._path, request.name)
        call.reply(SnapshotPosition(self._spool.next_chunk))

    def piece(self, call: Call) -> None:
        """Keep a chunk. RETRY for one of another snapshot: the sender offers again."""
        request: SnapshotPiece = call.request
        if len(call.data) != 1:
            raise ProtocolError("a snapshot piece has one payload frame")
        if self._spool is None or request.nonce != self._spool.name.nonce:
            raise FsError(Code.RETRY, "another snapshot is on its way")
        self.received += 1
        call.reply(SnapshotPosition(self._spool.add(bytes(call.data[0]))))

    @property
    def complete(self) -> SnapshotMeta | None:
        """What the complete snapshot here is called, None where there is none."""
        return self._spool.name.meta if self._spool is not None and self._spool.complete else None

    def items(self, meta: SnapshotMeta) -> Iterator[tuple[bytes, bytes]]:
        """Walk the complete snapshot ``meta``, verified once more."""
        assert self._spool is not None and self.complete == meta, (self.complete, meta)
        return self._spool.items()

    def discard(self) -> None:
        """It is installed: forget it."""
        if self._spool is not None:
            self._spool.discard()
            self._spool = None

    def close(self) -> None:
        """Close the file; what it holds can be continued."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
