"""Snapshots between members: one view of the state, in chunks that are checked, resumed and kept to a rate.

The sender walks a read transaction of its engine, so it goes on serving; a broken connection is resumed at the chunk
where it broke, as long as the view lives. The receiver spools (``metadata.store.snapshot``) and answers each chunk
with the number of the next one that it wants. When it has all it builds the new state beside the old one, in a thread,
while it goes on following. Only then is the Raft message stepped that lets the core install the snapshot, which is a
switch. Until then the leader's core knows it as under way, so it does not begin another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import trio

from metadata.raft.log import RaftLog
from metadata.raft.messages import SnapshotMeta
from metadata.server.wire import OfferSnapshot, SnapshotPiece, SnapshotPosition
from metadata.state.tables import SnapshotView
from metadata.store.disk import Disk
from metadata.store.snapshot import SnapshotName, SnapshotSource, SnapshotSpool
from node.host.logging import get_logger
from node.rpc.client import Connection
from node.rpc.server import Call
from node.wire.errors import Code, FsError, ProtocolError
from node.wire.limits import SNAPSHOT_BYTES_PER_S, SNAPSHOT_LOAD_S, SNAPSHOT_STALL_S

log = get_logger(__name__)

Items = Iterable[tuple[bytes, bytes]]

_TIMEOUT_S = 10.0
_RETRY_S = 0.2
_RESUMABLE = frozenset({Code.UNREACHABLE, Code.TIMEOUT, Code.OVERLOADED, Code.RETRY, Code.CORRUPT_BLOCK})


def _always() -> bool:
    return True


def _require(current: Callable[[], bool]) -> None:
    if not current():
        raise FsError(Code.NOT_LEADER, "leadership is lost")


async def stream_snapshot(
    connection: Connection,
    view: SnapshotView,
    meta: SnapshotMeta,
    *,
    member: int,
    incarnation: bytes,
    target_incarnation: bytes,
    current: Callable[[], bool] = _always,
    bytes_per_s: float = SNAPSHOT_BYTES_PER_S,
    stall_s: float = SNAPSHOT_STALL_S,
    load_s: float = SNAPSHOT_LOAD_S,
) -> bool:
    """Bring one view to a peer. True: it has loaded everything. False: it needs none of it.

    Broken connections and damaged chunks are resumed; FsError where nothing moved for ``stall_s``, or loading took
    longer than ``load_s``, or as soon as ``current`` says that it is nobody's business any more: streams of an earlier
    and of the present leader would take the receiver's one place from each other for ever.
    """
    source = SnapshotSource(view, SnapshotName(meta, os.urandom(16)))
    offer = OfferSnapshot(member, incarnation, target_incarnation, source.name)
    moved_s = trio.current_time()
    delivered = False
    while True:
        _require(current)
        try:
            position: SnapshotPosition = (await connection.call(offer, timeout_s=_TIMEOUT_S)).body
            if not position.wanted:
                return False
            if delivered and position.following == 0:
                raise FsError(Code.IO, "the receiver could not load it")
            while source.chunks is None or position.following < source.chunks:
                _require(current)
                began_s = trio.current_time()
                chunk = source.chunk(position.following)
                piece = SnapshotPiece(source.name.nonce)
                position = (await connection.call(piece, [chunk], timeout_s=_TIMEOUT_S)).body
                moved_s = trio.current_time()
                await trio.sleep_until(began_s + len(chunk) / bytes_per_s)
            if position.loaded:
                return True
            delivered = True
            if trio.current_time() - moved_s > load_s:
                raise FsError(Code.TIMEOUT, f"not loaded within {load_s:g} s")
        except FsError as error:
            patience_s = load_s if source.chunks is not None else stall_s
            if error.code not in _RESUMABLE or trio.current_time() - moved_s > patience_s:
                raise
        await trio.sleep(_RETRY_S)


def wanted(log: RaftLog, meta: SnapshotMeta) -> bool:
    """Whether a member can use a snapshot: it is news, and none is about to be installed, which must stay in its place
    until it is."""
    return log.snapshot is None and meta.index > log.committed


class Receiver:
    """The receiving end: one snapshot at a time, spooled in ``path``, loaded by ``load`` in a thread.

    A newer offer replaces one that is not complete; what is being loaded is finished first.
    """

    def __init__(
        self, disk: Disk, path: str, *, wants: Callable[[SnapshotMeta], bool], load: Callable[[Items], int]
    ) -> None:
        self._disk = disk
        self._path = path
        self._wants = wants
        self._load = load
        self._spool: SnapshotSpool | None = None
        self._complete = trio.Event()
        self._loading = False
        self._loaded: int | None = None  # what the engine wants to be told at the switch
        self.received = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load what is complete, until cancelled (which waits for a load that runs)."""
        task_status.started()
        while True:
            await self._complete.wait()
            self._complete = trio.Event()
            spool = self._spool
            if spool is None or not spool.complete or self._loaded is not None:
                continue
            self._loading = True
            try:
                log.info("loading a snapshot", index=spool.name.meta.index, chunks=spool.next_chunk)
                self._loaded = await trio.to_thread.run_sync(self._load, spool.items())
            except FsError as error:
                log.error("a received snapshot could not be loaded", reason=error.detail)
                self.discard()
            finally:
                self._loading = False

    def offer(self, call: Call) -> None:
        """Begin or continue a snapshot; tell where to go on."""
        request: OfferSnapshot = call.request
        if self._spool is None or self._spool.name != request.name:
            if not self._wants(request.name.meta):
                call.reply(SnapshotPosition(0, wanted=False))
                return
            if self._loading:
                raise FsError(Code.RETRY, "another snapshot is being loaded")
            self.close()
            self._spool = SnapshotSpool(self._disk, self._path, request.name)
            self._notice()
        call.reply(self._position())

    def piece(self, call: Call) -> None:
        """Keep a chunk. RETRY for one of another snapshot: the sender offers again."""
        request: SnapshotPiece = call.request
        if len(call.data) != 1:
            raise ProtocolError("a snapshot piece has one payload frame")
        if self._spool is None or request.nonce != self._spool.name.nonce:
            raise FsError(Code.RETRY, "another snapshot is on its way")
        self.received += 1
        self._spool.add(bytes(call.data[0]))
        self._notice()
        call.reply(self._position())

    def _notice(self) -> None:
        if self._spool is not None and self._spool.complete:
            self._complete.set()

    def _position(self) -> SnapshotPosition:
        assert self._spool is not None
        return SnapshotPosition(self._spool.next_chunk, loaded=self._loaded is not None)

    @property
    def ready(self) -> SnapshotMeta | None:
        """What the loaded snapshot is called, None where there is none."""
        return self._spool.name.meta if self._spool is not None and self._loaded is not None else None

    def take(self, meta: SnapshotMeta) -> int:
        """What the engine wants to be told to switch to the loaded snapshot ``meta``."""
        assert self._loaded is not None and self.ready == meta, (self.ready, meta)
        return self._loaded

    def discard(self) -> None:
        """It is installed, or of no use: forget it."""
        if self._spool is not None:
            self._spool.discard()
            self._spool = None
        self._loaded = None

    def close(self) -> None:
        """Close the file; what it holds can be continued."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._loaded = None
