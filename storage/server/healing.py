"""Carries out the leader's orders about placement groups: makes groups complete from other servers, drops groups.

Orders come again with each heartbeat until their report was heard; they are forgotten when the process ends. What was
done is durable block by block, so doing it again finds little to do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional, Union

import trio

from node.wire.errors import Code, FsError
from node.wire.limits import (
    DROP_BATCH_BLOCKS, SYNC_BYTES_PER_S, SYNC_CALL_S, SYNC_GROUPS_MAX, SYNC_PAGE_BLOCKS, SYNC_SOURCES_MAX,
)
from storage import api
from storage.block import verify
from storage.entry import State
from storage.order import group_of, is_table_length
from storage.records import Kind
from storage.server.committer import Committer
from storage.server.forward import Connection
from storage.server.pacer import Pacer
from storage.server.service import digest_of
from storage.server.tables import KnownTable
from storage.store import BlockStore, Operation
from storage.syncing import Action, AskDigest, AskList, GroupSync, Pull, Raise

_DROPPABLE = frozenset({State.LIVE, State.DAMAGED})
_COMPLAINTS_MAX = 4096
_log = logging.getLogger(__name__)

Key = tuple[int, int]  # groups, group
Connect = Callable[[int], Awaitable[Optional[Connection]]]


@dataclass(slots=True)
class _Sync:
    """A SyncGroup order and how far it is."""

    order: api.SyncGroup
    core: GroupSync
    changed: trio.Event
    again: bool = False  # blocks of the group were found damaged meanwhile


@dataclass(slots=True)
class _Drop:
    """A DropGroup order and how far it is."""

    order: api.DropGroup
    left: int = -1  # -1: not counted yet


class Healing:
    """The orders of one server about groups, and its reports. ``take`` and the others from the trio thread only.

    ``own`` returns the server's id; ``finished`` is called when an order is done, so that a heartbeat may tell of it;
    ``in_thread`` runs what takes long, as trio.to_thread.run_sync does.
    Groups are made complete in the order in which they were ordered, a few at a time.
    """

    def __init__(
        self, store: BlockStore, committer: Committer, connect: Connect, *, own: Callable[[], int],
        finished: Callable[[], None], bytes_per_s: float = SYNC_BYTES_PER_S, table: Optional[KnownTable] = None,
        in_thread: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
    ) -> None:
        self._store = store
        self._committer = committer
        self._connect = connect
        self._own = own
        self._finished = finished
        self._table = table or KnownTable()
        self._in_thread = in_thread
        self._pacer = Pacer(bytes_per_s)
        self._jobs: dict[Key, Union[_Sync, _Drop]] = {}
        self._queue: dict[Key, None] = {}  # in this order
        self._arrived = trio.Event()
        self._nursery: Optional[trio.Nursery] = None
        self._threads = trio.CapacityLimiter(1)
        self._told: dict[Key, Union[api.GroupReport, api.DropReport]] = {}  # as last acknowledged
        self._totals = dict.fromkeys(("synced", "dropped", "pulled", "pulled_bytes", "touched", "bad_copies"), 0)
        self._complained: set[tuple[int, int, int]] = set()  # source, group, order: one line each

    # -- orders

    def take(self, order: Union[api.SyncGroup, api.DropGroup]) -> None:
        """Take an order. One that is known, contradicts a later epoch, or makes no sense changes nothing."""
        if not is_table_length(order.groups) or not 0 <= order.group < order.groups:
            _log.error("an order for group %d of %d makes no sense", order.group, order.groups)
            return
        key = order.groups, order.group
        job = self._jobs.get(key)
        if job is not None:
            if job.order == order:
                self._told.pop(key, None)  # the leader has not heard, or is another one
                return
            if order.pg_epoch < job.order.pg_epoch:
                return
            if isinstance(order, api.DropGroup) and isinstance(job, _Sync) and order.pg_epoch == job.order.pg_epoch:
                _log.error("group %d is not dropped: epoch %d has it here", order.group, order.pg_epoch)
                return
            if isinstance(job, _Sync):
                job.changed.set()
        if isinstance(order, api.DropGroup):
            self._jobs[key] = _Drop(order)
        else:
            self._jobs[key] = self._sync(order)
        self._told.pop(key, None)
        self._enqueue(key)

    def _sync(self, order: api.SyncGroup) -> _Sync:
        sources = [server for server in order.sources[:SYNC_SOURCES_MAX] if server != self._own()]
        return _Sync(order, GroupSync(sources), trio.Event())

    def _enqueue(self, key: Key) -> None:
        self._queue.setdefault(key)
        self._arrived.set()

    def damaged(self, block: bytes) -> None:
        """A block of ours turned out to be bad: where its group was ordered to be complete here, it is pulled again."""
        for length in {groups for groups, _ in self._jobs}:
            key = length, group_of(block, length)
            job = self._jobs.get(key)
            if isinstance(job, _Sync) and job.core.progress.complete and not job.again:
                self._jobs[key] = self._sync(job.order)
                self._enqueue(key)
            elif isinstance(job, _Sync):
                job.again = True

    def reports(self, limit: int) -> list[Union[api.GroupReport, api.DropReport]]:
        """Return what changed since it was last acknowledged, of orders that were begun. What is done is told once."""
        found: list[Union[api.GroupReport, api.DropReport]] = []
        for key, job in self._jobs.items():
            told = self._told.get(key)
            done = isinstance(told, api.GroupReport) and told.complete and self._complete(job)
            if key not in self._queue and not done and len(found) < limit:
                report = self._report(job)
                if report != told:
                    found.append(report)
        return found

    def _complete(self, job: Union[_Sync, _Drop]) -> bool:
        return isinstance(job, _Sync) and job.core.progress.complete and not job.again

    def _report(self, job: Union[_Sync, _Drop]) -> Union[api.GroupReport, api.DropReport]:
        order = job.order
        if isinstance(job, _Drop):
            left = job.left if job.left >= 0 else 1
            return api.DropReport(order.order, order.group, order.groups, order.pg_epoch, left)
        state, digest = job.core.progress, digest_of(self._store, order.group, order.groups)
        return api.GroupReport(
            order.order, order.group, order.groups, order.pg_epoch, self._complete(job), state.missing,
            state.missing_bytes, state.pulled, digest.blocks, digest.stored_bytes, digest.digest, digest.touches,
            state.failed,
        )

    def acknowledged(self, report: Union[api.GroupReport, api.DropReport]) -> None:
        """The leader has heard this."""
        self._told[report.groups, report.group] = report

    # -- the work

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out orders until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            free = trio.Semaphore(SYNC_GROUPS_MAX)
            while True:
                await free.acquire()
                while not self._queue:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                key = next(iter(self._queue))
                del self._queue[key]
                nursery.start_soon(self._work, key, free)

    async def _work(self, key: Key, free: trio.Semaphore) -> None:
        job = self._jobs[key]
        try:
            if isinstance(job, _Drop):
                await self._drop(key, job)
            else:
                await self._make_complete(key, job)
        finally:
            free.release()

    async def _make_complete(self, key: Key, job: _Sync) -> None:
        """Work until the group is complete, the order is replaced, or a pause is due: then others have their turn."""
        async with trio.open_nursery() as nursery:
            while self._jobs.get(key) is job:
                job.changed = trio.Event()
                actions = job.core.actions(trio.current_time())
                for action in actions:
                    nursery.start_soon(self._do, job, action)
                if job.core.progress.complete or job.core.resume_s() is not None:
                    break
                if not actions:
                    await job.changed.wait()
            nursery.cancel_scope.cancel()
        if self._jobs.get(key) is not job:
            return
        resume_s = job.core.resume_s()
        if resume_s is not None:
            assert self._nursery is not None
            self._nursery.start_soon(self._go_on, key, job, resume_s)
        elif job.again:
            self._jobs[key] = self._sync(job.order)
            self._enqueue(key)
        else:
            self._totals["synced"] += 1
            self._finished()

    async def _go_on(self, key: Key, job: _Sync, resume_s: float) -> None:
        await trio.sleep_until(resume_s)
        if self._jobs.get(key) is job:
            self._enqueue(key)

    async def _do(self, job: _Sync, action: Action) -> None:
        try:
            if isinstance(action, Raise):
                await self._raise(job, action)
            elif isinstance(action, Pull):
                await self._pull(job, action)
            else:
                await self._ask(job, action)
        except FsError as error:
            self._complain(job, action, error)
            job.core.failed(action, self._local)
        job.changed.set()

    def _complain(self, job: _Sync, action: Action, error: FsError) -> None:
        server = 0 if isinstance(action, Raise) else action.server
        about = server, job.order.group, job.order.order
        if about not in self._complained:
            if len(self._complained) >= _COMPLAINTS_MAX:
                self._complained.clear()
            self._complained.add(about)
            _log.warning("group %d: server %d as a source: %s", job.order.group, server, error)

    async def _call(self, server: int, request: Any) -> Any:
        connection = await self._connect(server)
        if connection is None:
            raise FsError(Code.UNREACHABLE, f"server {server} is not known here")
        return await connection.call(request, timeout_s=SYNC_CALL_S)

    async def _ask(self, job: _Sync, action: Union[AskDigest, AskList]) -> None:
        order = job.order
        if isinstance(action, AskDigest):
            question = api.GroupDigests(order.groups, (order.group,), action.server)
            digests = (await self._call(action.server, question)).body.digests
            if len(digests) != 1 or digests[0].group != order.group:
                raise FsError(Code.PROTOCOL, f"digests of {[digest.group for digest in digests]}")
            own = digest_of(self._store, order.group, order.groups)
            job.core.digested(action.server, digests[0], own)
            return
        wanted = api.ListGroup(order.groups, order.group, action.after, SYNC_PAGE_BLOCKS, action.server)
        page = (await self._call(action.server, wanted)).body
        alien = [found for found in page.blocks if group_of(found.block, order.groups) != order.group]
        if alien or len(page.blocks) > SYNC_PAGE_BLOCKS:
            raise FsError(Code.PROTOCOL, f"a list of {len(page.blocks)} blocks, {len(alien)} of other groups")
        job.core.listed(action.server, page.blocks, page.more, self._local)

    def _local(self, block: bytes) -> Optional[int]:
        entry = self._store.find(block)
        if entry is None or entry.state == State.DAMAGED:
            return None
        return entry.epoch if entry.state == State.LIVE else -1

    async def _raise(self, job: _Sync, action: Raise) -> None:
        operations = [Operation(Kind.TOUCH, block, epoch) for block, epoch in action.touches]
        await self._commit(operations)
        missing = {operation.block for operation in operations if operation.code}
        self._totals["touched"] += len(operations) - len(missing)
        job.core.raised(action, missing)

    async def _pull(self, job: _Sync, pull: Pull) -> None:
        await self._pacer.spend(sum(each.stored for each in pull.blocks))
        reply = await self._call(pull.server, api.Get(tuple(api.BlockRange(each.block) for each in pull.blocks)))
        if not len(reply.body.codes) == len(reply.data) == len(pull.blocks):
            raise FsError(Code.PROTOCOL, f"{len(reply.data)} frames for {len(pull.blocks)} blocks")
        check = partial(_verified, pull, reply.body.codes, reply.data)
        operations = await self._in_thread(check, limiter=self._threads)
        good = [operation for operation in operations if not operation.code]
        for operation in operations:
            if operation.code:
                what = f"block {operation.block.hex()}: {Code(operation.code).name}"
                self._totals["bad_copies"] += 1
                self._complain(job, pull, FsError(Code.CORRUPT_BLOCK, what))
        await self._commit(good)
        stored = {operation.block for operation in good if not operation.code}
        self._totals["pulled"] += len(stored)
        self._totals["pulled_bytes"] += sum(len(operation.payload) for operation in good if not operation.code)
        job.core.pulled(pull, stored, {operation.block for operation in good if operation.code})

    async def _commit(self, operations: Sequence[Operation]) -> None:
        """Return when these are durable, or have their codes set. The caller must not be cancelled meanwhile for what
        it counts to be true; what is on the disk is right all the same."""
        done = trio.Event()
        self._committer.submit(operations, done.set)
        await done.wait()

    # -- dropping

    async def _drop(self, key: Key, job: _Drop) -> None:
        order = job.order

        def allowed() -> bool:
            return self._table.may_drop(order.group, order.groups, order.pg_epoch)

        while self._jobs.get(key) is job:
            if not allowed():  # somebody puts here by a newer table, or this server is back in the row
                assert self._nursery is not None
                self._nursery.start_soon(self._drop_later, key, job)
                return
            look = partial(
                self._store.group_blocks, order.group, order.groups, b"", DROP_BATCH_BLOCKS, _DROPPABLE
            )
            found = await self._in_thread(look, limiter=self._threads)
            if self._jobs.get(key) is not job:
                return
            if not allowed():  # from here on, what is put comes after the deletes
                continue
            total = self._store.group_sum(order.group, order.groups)
            job.left = total.blocks + total.damaged
            if not found:
                break
            operations = [Operation(Kind.DELETE, block, entry.epoch, outright=True) for block, entry in found]
            await self._commit(operations)
            self._totals["dropped"] += sum(not operation.code for operation in operations)
            if all(operation.code not in (0, Code.MISSING_BLOCK) for operation in operations):
                _log.error("group %d cannot be dropped: %s", order.group, Code(operations[0].code).name)
                return
        self._finished()

    async def _drop_later(self, key: Key, job: _Drop) -> None:
        await self._table.wait_changed()
        if self._jobs.get(key) is job:
            self._enqueue(key)

    def statistics(self) -> dict[str, int]:
        """Return counters since the start."""
        return {**self._totals, "orders": len(self._jobs), "orders_waiting": len(self._queue)}


def _verified(pull: Pull, codes: Sequence[int], frames: Sequence[memoryview]) -> list[Operation]:
    """Return an operation for each block that was pulled; the code of those that are not what they should be is set."""
    operations = []
    for each, code, frame in zip(pull.blocks, codes, frames):
        operation = Operation(Kind.DATA, each.block, each.epoch, each.length, frame, code)
        if not code:
            try:
                verify(frame, each.block, each.length)
            except FsError as error:
                operation.code = error.code
        operations.append(operation)
    return operations
