"""What a chunk server answers: storage.api requests on one side, a block store and its committer on the other.

Small requests are handled on the loop; from ``_THREAD_BYTES`` of hashing or reading up the work goes to threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Optional, Protocol

import trio

from node.wire.errors import Code, FsError, ProtocolError
from node.wire.limits import (
    GET_BYTES_MAX, GET_RANGES_MAX, GROUP_DIGESTS_MAX, KIB, LOCATE_BLOCKS_MAX, PIECE_BYTES, PUT_BLOCKS_MAX,
    PUT_BYTES_MAX, STORE_PENDING_BYTES_MAX, SUSPECTS_MAX, TABLE_WAIT_S, UNCONFIRMED_MAX,
)
from node.wire.types import BLOCK_ID_BYTES
from storage import api
from storage.block import verify
from storage.order import is_table_length
from storage.records import Kind
from storage.server.committer import Committer
from storage.server.tables import KnownTable
from storage.store import EPOCH_MAX, BlockStore, Operation

_THREAD_BYTES = 64 * KIB  # below, the hop to a thread costs more than the work
_INLINE_GET_BYTES = 2 * PIECE_BYTES + 4 * KIB  # at most: read on the loop while the disk is fast
_INLINE_S_MAX = 0.0005
_SMOOTHING = 0.1
_VERIFY_THREADS = 2
_FETCH_THREADS = 4
_log = logging.getLogger(__name__)


class Call(Protocol):
    """What this module needs of a request (node.rpc.server.Call)."""

    request: Any
    data: list[memoryview]
    deadline: float

    def reply(self, body: Any, data: Sequence[Any] = ()) -> None: ...

    def fail(self, error: FsError) -> None: ...


Forward = Callable[[api.Put, list[memoryview], float], "ForwardResult"]  # the last: deadline on trio's clock


class ForwardResult(Protocol):
    """A put on its way down the pipeline, while it is being stored here."""

    async def wait(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (copies by block beyond this server, servers that failed)."""


class Service:
    """The handlers. ``run`` must be running; ``status`` makes the reply to GetServerStatus, ``table`` is the placement
    table as far as it is known."""

    def __init__(
        self, store: BlockStore, committer: Committer, status: Callable[[], api.ServerStatus],
        forward: Optional[Forward] = None, table: Optional[KnownTable] = None, directory: str = "",
    ) -> None:
        self._store = store
        self._committer = committer
        self._status = status
        self._forward = forward
        self._table = table or KnownTable()
        self._directory = directory
        self._nursery: Optional[trio.Nursery] = None
        self._verifying = trio.CapacityLimiter(_VERIFY_THREADS)
        self._fetching = trio.CapacityLimiter(_FETCH_THREADS)
        self._pending_bytes = 0  # payload of puts that are not answered yet
        self._tasks = 0
        self._usual_get_s = 0.0  # how long small gets took to read lately
        self._idle = trio.Event()
        self._counts = {"puts": 0, "gets": 0, "touches": 0, "overloaded": 0, "rejected_blocks": 0}

    def handlers(self) -> dict[int, Callable[[Any], None]]:
        """Return the handlers by method number."""
        return {
            0x100: self.put, 0x101: self.touch, 0x102: self.get, 0x103: self.delete, 0x104: self.get_status,
            0x108: self.list_unconfirmed, 0x109: self.list_blocks, 0x10A: self.find_blocks, 0x10B: self.group_digests,
            0x10C: self.list_group, 0x10D: self.suspect, 0x10E: self.locate,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Host the tasks of larger requests until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def finish(self) -> None:
        """Return when every request taken so far is answered. For after the last one was taken."""
        while self._tasks:
            self._idle = trio.Event()
            await self._idle.wait()
        await self._committer.flush()

    async def _task(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self._tasks += 1
        try:
            await work(*arguments)
        finally:
            self._tasks -= 1
            if not self._tasks:
                self._idle.set()

    # -- put, touch, delete

    def put(self, call: Call) -> None:
        """Verify, store, and answer when durable (here, and as far down the pipeline as it got)."""
        request: api.Put = call.request
        size_bytes = _check_put(request, call.data)
        if self._pending_bytes + size_bytes > STORE_PENDING_BYTES_MAX:
            self._counts["overloaded"] += 1
            raise FsError(Code.OVERLOADED, f"{self._pending_bytes} bytes of puts are waiting for the disk")
        self._counts["puts"] += 1
        self._table.heard(request.pg_epoch)
        stale = self._table.stale([info.block for info in request.blocks], request.pg_epoch)
        self._pending_bytes += size_bytes
        if size_bytes < _THREAD_BYTES and not request.forward:
            operations = _verified(request, call.data, stale)
            self._committer.submit(operations, partial(self._put_done, call, operations, size_bytes))
        else:
            assert self._nursery is not None
            self._nursery.start_soon(self._task, self._put_large, call, size_bytes, stale)

    async def _put_large(self, call: Call, size_bytes: int, stale: Collection[int]) -> None:
        request: api.Put = call.request
        onward = None
        if request.forward and self._forward is not None and not stale:
            onward = self._forward(request, call.data, call.deadline)
        work = partial(_verified, request, call.data, stale)
        operations = await trio.to_thread.run_sync(work, limiter=self._verifying)
        stored = trio.Event()
        self._committer.submit(operations, stored.set)
        await stored.wait()
        copies: tuple[int, ...] = (0,) * len(operations)
        failed: tuple[int, ...] = request.forward if request.forward and onward is None else ()
        if onward is not None:
            copies, failed = await onward.wait()
        self._put_done(call, operations, size_bytes, copies, failed)

    def _put_done(
        self, call: Call, operations: list[Operation], size_bytes: int,
        copies: Optional[tuple[int, ...]] = None, failed: tuple[int, ...] = (),
    ) -> None:
        self._pending_bytes -= size_bytes
        codes = tuple(int(operation.code) for operation in operations)
        self._counts["rejected_blocks"] += sum(code in (Code.CORRUPT_BLOCK, Code.PROTOCOL) for code in codes)
        beyond = copies or (0,) * len(codes)
        here = tuple(more + (code == 0) for code, more in zip(codes, beyond))
        table = self._table.news(call.request.pg_epoch)
        call.reply(api.PutReply(codes=codes, copies=here, failed=failed, table=table))

    def touch(self, call: Call) -> None:
        """Raise touch epochs, durably."""
        request: api.Touch = call.request
        _check_touched(request.blocks, request.touch_epoch)
        _check_epoch(request.pg_epoch)
        self._counts["touches"] += 1
        self._table.heard(request.pg_epoch)
        operations = [Operation(Kind.TOUCH, block, request.touch_epoch) for block in request.blocks]
        for at in self._table.stale(request.blocks, request.pg_epoch):
            operations[at].code = Code.STALE_EPOCH
        self._committer.submit(operations, partial(self._touch_done, call, operations))

    def _touch_done(self, call: Call, operations: list[Operation]) -> None:
        if any(operation.code == Code.NO_SPACE for operation in operations):
            call.fail(FsError(Code.NO_SPACE, "the disk is full"))
            return
        stale = tuple(at for at, operation in enumerate(operations) if operation.code == Code.STALE_EPOCH)
        missing = tuple(at for at, operation in enumerate(operations) if operation.code == Code.MISSING_BLOCK)
        call.reply(api.TouchReply(missing, stale, self._table.news(call.request.pg_epoch)))

    def delete(self, call: Call) -> None:
        """Quarantine what was not touched since the epoch, durably."""
        request: api.Delete = call.request
        _check_touched(request.blocks, request.epoch)
        _check_epoch(request.pg_epoch)
        if not self._store.options.deletion:
            raise FsError(Code.NOT_SUPPORTED, "deletion of blocks is switched off")
        self._table.heard(request.pg_epoch)
        known = self._table.table
        if request.pg_epoch > known.epoch:
            assert self._nursery is not None
            self._nursery.start_soon(self._task, self._delete_later, call)
        elif known.epoch and not request.pg_epoch:
            raise FsError(Code.STALE_EPOCH, f"a delete of no placement table, here it is of epoch {known.epoch}")
        else:
            self._delete(call)

    async def _delete_later(self, call: Call) -> None:
        """The deleter knows of a change of rows that this server has not heard of: after that, or not at all."""
        wanted = call.request.pg_epoch
        if await self._table.wait_for(wanted, TABLE_WAIT_S):
            self._delete(call)
        else:
            known = self._table.table.epoch
            call.fail(FsError(Code.STALE_EPOCH, f"a delete by the placement table {wanted}, known here is {known}"))

    def _delete(self, call: Call) -> None:
        request: api.Delete = call.request
        operations = [Operation(Kind.DELETE, block, request.epoch) for block in request.blocks]
        for at in self._table.stale(request.blocks, request.pg_epoch):
            operations[at].code = Code.STALE_EPOCH
        self._committer.submit(operations, partial(self._delete_done, call, operations))

    def _delete_done(self, call: Call, operations: list[Operation]) -> None:
        if any(operation.code == Code.NO_SPACE for operation in operations):
            call.fail(FsError(Code.NO_SPACE, "the disk is full"))
            return
        kept = tuple([at for at, operation in enumerate(operations) if operation.code == Code.STALE_EPOCH])
        call.reply(api.DeleteReply(deleted=sum(operation.code == 0 for operation in operations), kept=kept))

    def list_unconfirmed(self, call: Call) -> None:
        """List blocks that the volume may not know of, after noting what it knows by now."""
        request: api.ListUnconfirmed = call.request
        if request.store != self._store.identity:
            raise FsError(Code.STALE, "this is another store by now")
        if not 0 <= request.limit <= UNCONFIRMED_MAX or not 0 <= request.epoch <= EPOCH_MAX:
            raise ProtocolError(f"a list of {request.limit} blocks touched in epoch {request.epoch}")
        assert self._nursery is not None
        self._nursery.start_soon(self._task, self._list_unconfirmed, call)

    async def _list_unconfirmed(self, call: Call) -> None:
        request: api.ListUnconfirmed = call.request
        store = self._store

        def look() -> tuple[list[bytes], tuple[int, int], bool, int]:
            store.confirm(request.confirm)
            return *store.unconfirmed(request.epoch, request.limit), store.unconfirmed_bytes

        blocks, place, more, left_bytes = await trio.to_thread.run_sync(look, limiter=self._fetching)
        call.reply(api.Unconfirmed(tuple(blocks), place, more, left_bytes))

    def list_blocks(self, call: Call) -> None:
        """List what is here, for an auditor."""
        request: api.ListBlocks = call.request
        if not 0 < request.limit <= UNCONFIRMED_MAX or len(request.after) > BLOCK_ID_BYTES:
            raise ProtocolError(f"a list of {request.limit} blocks after a name of {len(request.after)} bytes")
        assert self._nursery is not None
        self._nursery.start_soon(self._task, self._list_blocks, call)

    async def _list_blocks(self, call: Call) -> None:
        request: api.ListBlocks = call.request

        def look() -> list[api.StoredBlock]:
            found = self._store.listed(request.after, request.limit + 1)
            return [api.StoredBlock(block, entry.epoch, entry.state) for block, entry in found]

        found = await trio.to_thread.run_sync(look, limiter=self._fetching)
        call.reply(api.ListBlocksReply(tuple(found[: request.limit]), len(found) > request.limit))

    def find_blocks(self, call: Call) -> None:
        """Say which of some blocks are here."""
        request: api.FindBlocks = call.request
        _check_names(request.blocks, UNCONFIRMED_MAX)
        assert self._nursery is not None
        self._nursery.start_soon(self._task, self._find_blocks, call)

    async def _find_blocks(self, call: Call) -> None:
        request: api.FindBlocks = call.request

        def look() -> list[api.StoredBlock]:
            found = [(block, self._store.find(block)) for block in request.blocks]
            return [api.StoredBlock(block, entry.epoch, entry.state) for block, entry in found if entry is not None]

        found = await trio.to_thread.run_sync(look, limiter=self._fetching)
        call.reply(api.FindBlocksReply(tuple(found)))

    def group_digests(self, call: Call) -> None:
        """Say what groups add up to."""
        request: api.GroupDigests = call.request
        _check_groups(request.groups, request.wanted)
        self._check_meant(request.server)
        call.reply(api.GroupDigestsReply(tuple([digest_of(self._store, g, request.groups) for g in request.wanted])))

    def _check_meant(self, server: int) -> None:
        own = self._status().server
        if server and server != own:
            raise FsError(Code.STALE, f"this is chunk server {own}, not {server}")

    def list_group(self, call: Call) -> None:
        """List what is here of a group."""
        request: api.ListGroup = call.request
        _check_groups(request.groups, (request.group,))
        self._check_meant(request.server)
        if not 0 < request.limit <= UNCONFIRMED_MAX or len(request.after) not in (0, BLOCK_ID_BYTES):
            raise ProtocolError(f"a list of {request.limit} blocks after a name of {len(request.after)} bytes")
        assert self._nursery is not None
        self._nursery.start_soon(self._task, self._list_group, call)

    async def _list_group(self, call: Call) -> None:
        request: api.ListGroup = call.request

        def look() -> list[api.GroupBlock]:
            found = self._store.group_blocks(request.group, request.groups, request.after, request.limit + 1)
            return [api.GroupBlock(block, entry.epoch, entry.plain, entry.stored) for block, entry in found]

        found = await trio.to_thread.run_sync(look, limiter=self._fetching)
        call.reply(api.GroupBlocks(tuple(found[: request.limit]), len(found) > request.limit))

    def suspect(self, call: Call) -> None:
        """Look at copies that a reader found bad."""
        request: api.Suspect = call.request
        _check_names(request.blocks, SUSPECTS_MAX)
        assert self._nursery is not None
        self._nursery.start_soon(self._task, self._suspect, call)

    async def _suspect(self, call: Call) -> None:
        request: api.Suspect = call.request
        ours = [block for block in request.blocks if self._table.is_member(block)]  # not by an old table

        def look() -> int:
            return sum(not self._store.intact(block) for block in ours)

        call.reply(api.SuspectReply(bad=await trio.to_thread.run_sync(look, limiter=self._fetching)))

    # -- get

    def get(self, call: Call) -> None:
        """Read blocks, or the pieces that cover parts of them."""
        request: api.Get = call.request
        if not 0 < len(request.ranges) <= GET_RANGES_MAX:
            raise ProtocolError(f"{len(request.ranges)} ranges in one get")
        _check_epoch(request.pg_epoch)
        self._counts["gets"] += 1
        self._table.heard(request.pg_epoch)
        size_bytes = sum(map(self._estimate, request.ranges))
        if size_bytes > GET_BYTES_MAX and len(request.ranges) > 1:
            raise FsError(Code.TOO_BIG, f"a get of up to {size_bytes} bytes; ask for at most {GET_BYTES_MAX} at once")
        if size_bytes < _THREAD_BYTES or (size_bytes <= _INLINE_GET_BYTES and self._usual_get_s <= _INLINE_S_MAX):
            self._get_done(call, self._fetch_timed(request.ranges))
        else:
            assert self._nursery is not None
            self._nursery.start_soon(self._task, self._get_large, call)

    async def _get_large(self, call: Call) -> None:
        small = sum(map(self._estimate, call.request.ranges)) <= _INLINE_GET_BYTES
        work = partial(self._fetch_timed if small else self._fetch_all, call.request.ranges)
        self._get_done(call, await trio.to_thread.run_sync(work, limiter=self._fetching))

    def _fetch_timed(self, ranges: Sequence[api.BlockRange]) -> list[tuple[int, bytes]]:
        """As _fetch_all, for few bytes: on the loop while that takes less than handing it to a thread."""
        begun = time.perf_counter()
        found = self._fetch_all(ranges)
        self._usual_get_s += _SMOOTHING * (time.perf_counter() - begun - self._usual_get_s)
        return found

    def _fetch_all(self, ranges: Sequence[api.BlockRange]) -> list[tuple[int, bytes]]:
        """Return (code, frame) for each range. Any thread."""
        found: list[tuple[int, bytes]] = []
        for wanted in ranges:
            try:
                found.append((0, self._store.fetch(wanted.block, wanted.offset, wanted.length)))
            except FsError as error:
                found.append((error.code, b""))
        return found

    def _get_done(self, call: Call, found: list[tuple[int, bytes]]) -> None:
        request: api.Get = call.request
        codes = [code for code, _ in found]
        for at, wanted in enumerate(request.ranges):
            if codes[at] == Code.MISSING_BLOCK and request.pg_epoch and not self._table.is_member(wanted.block):
                codes[at] = Code.STALE_EPOCH
        call.reply(api.GetReply(tuple(codes), self._table.news(request.pg_epoch)), [frame for _, frame in found])

    def locate(self, call: Call) -> None:
        """Say where blocks lie in the files of the store."""
        request: api.Locate = call.request
        if not self._directory:
            raise FsError(Code.NOT_SUPPORTED, "this store has no files")
        _check_names(request.blocks, LOCATE_BLOCKS_MAX)
        assert self._nursery is not None
        self._nursery.start_soon(self._task, self._locate, call)

    async def _locate(self, call: Call) -> None:
        request: api.Locate = call.request

        def look() -> tuple[api.Located, ...]:
            return tuple(map(self._place_of, request.blocks))

        places = await trio.to_thread.run_sync(look, limiter=self._fetching)
        call.reply(api.LocateReply(self._directory, self._store.identity, places))

    def _place_of(self, block: bytes) -> api.Located:
        """Any thread."""
        try:
            entry = self._store.locate(block)
        except FsError:
            return api.Located()
        return api.Located(entry.segment, entry.offset, entry.stored, entry.plain)

    def _estimate(self, wanted: api.BlockRange) -> int:
        """Return at most how many bytes the frame for a range will have."""
        try:
            stored = self._store.locate(wanted.block).stored
        except FsError:
            return 0
        if not wanted.length:
            return stored
        first, last = wanted.offset // PIECE_BYTES, (wanted.offset + wanted.length - 1) // PIECE_BYTES
        return min(stored, (last - first + 1) * PIECE_BYTES)

    # -- about itself

    def get_status(self, call: Call) -> None:
        """Answer with the server's own view."""
        call.reply(self._status())

    def statistics(self) -> dict[str, int]:
        """Return counters since the start."""
        return {**self._counts, "pending_bytes": self._pending_bytes}


def _check_put(request: api.Put, data: Sequence[memoryview]) -> int:
    """Check the shape of a put; return its payload in bytes. Contents are checked block by block later."""
    if len(request.blocks) != len(data):
        raise ProtocolError(f"a put of {len(request.blocks)} blocks with {len(data)} frames")
    if not 0 < len(data) <= PUT_BLOCKS_MAX:
        raise ProtocolError(f"a put of {len(data)} blocks")
    size_bytes = sum(map(len, data))
    if size_bytes > PUT_BYTES_MAX:
        raise ProtocolError(f"a put of {size_bytes} bytes")
    if not 0 <= request.touch_epoch <= EPOCH_MAX:
        raise ProtocolError(f"touch epoch {request.touch_epoch}")
    _check_epoch(request.pg_epoch)
    return size_bytes


def _check_names(names: Sequence[bytes], most: int) -> None:
    if len(names) > most or any(len(name) != BLOCK_ID_BYTES for name in names):
        raise ProtocolError(f"{len(names)} block names, or one of a wrong length")


def _check_touched(names: Sequence[bytes], epoch: int) -> None:
    _check_names(names, PUT_BLOCKS_MAX)
    if not 0 <= epoch <= EPOCH_MAX:
        raise ProtocolError(f"epoch {epoch}")


def _check_epoch(pg_epoch: int) -> None:
    if not 0 <= pg_epoch <= EPOCH_MAX:
        raise ProtocolError(f"placement epoch {pg_epoch}")


def _check_groups(groups: int, wanted: Sequence[int]) -> None:
    if not is_table_length(groups) or len(wanted) > GROUP_DIGESTS_MAX:
        raise ProtocolError(f"{len(wanted)} groups of a table of {groups}")
    if any(not 0 <= group < groups for group in wanted):
        raise ProtocolError(f"a group that a table of {groups} does not have")


def digest_of(store: BlockStore, group: int, groups: int) -> api.GroupDigest:
    """Return what a store has of a group."""
    found = store.group_sum(group, groups)
    return api.GroupDigest(group, found.blocks, found.stored_bytes, found.digest, found.touches)


def _verified(request: api.Put, data: Sequence[memoryview], stale: Collection[int]) -> list[Operation]:
    """Return an operation for each block; ``stale`` ones, and those that are not what they claim, have their code set.
    Any thread."""
    operations = []
    for at, (info, frame) in enumerate(zip(request.blocks, data)):
        operation = Operation(Kind.DATA, info.block, request.touch_epoch, info.length, frame)
        operations.append(operation)
        if at in stale:
            operation.code = Code.STALE_EPOCH
            continue
        try:
            verify(frame, info.block, info.length)
        except FsError as error:
            _log.warning("refused a put: %s", error)
            operation.code = error.code
    return operations
