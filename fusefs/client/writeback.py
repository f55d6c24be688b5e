"""When dirty bytes go out, and who waits for them.

Each file has at most one task that writes it back, in the volume's nursery: nobody's cancellation disturbs it, and
commits of one file are in order by construction. It serves wishes (``Flush``: close, fsync, setattr, a timer) in
order, and between them streams chunks that are complete, in file order, so that a long write overlaps hashing,
transfer and commit. Dirty bytes of all files are bounded; above the bound writers wait.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Optional

import trio

from fusefs.client import chunking
from fusefs.client.commit import Committer, Group, groups_of
from fusefs.client.files import File, Files, Flush
from fusefs.client.handles import Handle
from fusefs.client.options import ClientOptions
from fusefs.client.parcels import Parcels
from fusefs.client.pipeline import Pipeline
from fusefs.client.streaming import EAGER_BYTES, next_complete
from metadata.api import Commit, Committed, Failed, Op, PunchHole, Result, SetAttr
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, FILE_BYTES_MAX

if TYPE_CHECKING:
    from fusefs.client.closing import Closing

log = logging.getLogger(__name__)

RETRY_S = 5.0  # after a failure, until anything but a close or fsync tries again
TICK_S = 0.25
GRACE_S = 1.0  # for the work task to say what went wrong, beyond its own deadline

OWN_OPS = (Commit, SetAttr, PunchHole)  # operations on nothing but the file itself

_LASTING = frozenset(
    {Code.NO_SPACE, Code.OVER_QUOTA, Code.STALE, Code.FILE_TOO_BIG, Code.READ_ONLY, Code.UNKNOWN_SESSION, Code.FENCED}
)


class WriteBack:
    """Dirty bytes of all files."""

    def __init__(
        self, files: Files, committer: Committer, nursery: trio.Nursery, options: ClientOptions,
        now_ns: Callable[[], int],
    ) -> None:
        self._files = files
        self._committer = committer
        self._nursery = nursery
        self._options = options
        self._now_ns = now_ns
        self._parcels = Parcels(committer, nursery, self._step)
        self._dirty: OrderedDict[File, None] = OrderedDict()  # files with dirty bytes, the longest dirty first
        self._room = trio.lowlevel.ParkingLot()
        self._moved = trio.lowlevel.ParkingLot()
        self._bytes = 0
        self._flushes = 0
        self._waits = 0
        self._lost_bytes = 0
        self.on_lost: Callable[[int], None] = lambda ino: None
        self._closing: Optional[Closing] = None

    # --- writing ------------------------------------------------------------------------------------------------

    async def write(self, handle: Handle, offset: int, data: bytes, *, paged: Optional[bool] = False) -> None:
        """Buffer bytes; wait while there are too many. Raises what this handle must still be told. ``paged``: they are
        of mapped pages, which the kernel writes back, maybe because it was told to forget them. None: they may be.

        Where others can see the file they see these bytes when this returns: it has committed them. Only an exclusive
        lease lets them stay here, because then others are not shown the file before it was asked back. Those of mapped
        pages others see after the next fsync.
        """
        file = handle.file
        self.check(handle)
        if self._bytes >= self._options.dirty_bytes_max:
            await self._wait_for_room(handle)
        while file.recalls or (file.late and paged is False) or (file.append_base is not None) != handle.append:
            if file.recalls:  # else who writes on and on could never give it back
                await self._given_back(file)
                self.check(handle)
                continue
            if file.late and paged is False:
                await self._bring_late(file)
                self.check(handle)
                continue
            if file.dirty or file.running or file.requests:
                await self.flush(file)  # appends and other writes are not mixed in one buffer
                self.check(handle)
                continue
            file.append_base = None
            if handle.append:
                file.append_base = offset if file.known is None else max(offset, file.known.size)
        if file.append_base is not None:
            size = self._closing.size(file.ino) if self._closing and not file.dirty else None
            if size is not None:  # others may have appended or truncated since we did
                file.append_base = max(size, file.append_base) if file.running or file.journaled else size
            offset = file.dirty.end or file.append_base
        if offset + len(data) > FILE_BYTES_MAX:
            raise FsError(Code.FILE_TOO_BIG, f"a write up to byte {offset + len(data)}")
        if not file.dirty:
            file.dirtied_at = trio.current_time()
            self._dirty[file] = None
        file.dirty.write(offset, data)
        file.unsealed = True
        file.exclusive = self.stays(file, paged is not False)
        file.mtime_ns = self._now_ns()
        file.behind = file.behind or offset < file.position
        self._account(file)
        if not file.exclusive and self._options.write_through:
            if paged:
                file.paging += 1
                self._nursery.start_soon(self._page, file)
            else:
                await self._through(handle)
            return
        end = offset + len(data)
        if file.dirty.bytes >= BLOCK_BYTES_MAX and not file.running and (
            chunking.chunk_of(offset) != chunking.chunk_of(end) or file.dirty.bytes > EAGER_BYTES
        ):
            if file.retry_at <= trio.current_time() and not (self._closing and self._closing.behind(file)):
                self._start(file)

    def stays(self, file: File, paged: bool = False) -> bool:
        """Whether bytes that are written to a file now may stay here until they are asked for."""
        closing = self._closing
        if file.exclusive or (closing is not None and closing.owned(file)):
            return True
        file.late = paged and closing is not None and closing.late(file)
        return file.late

    async def _bring_late(self, file: File) -> None:
        """What came from mapped pages when the leases were gone goes first, as part of the journal."""
        await self.flush(file)
        if not file.dirty and not file.journaled:
            file.exclusive = file.late = False

    async def _given_back(self, file: File) -> None:
        """Wait until the recalls of a file have been served; nothing of that waits for who writes."""
        await self._until(lambda: not file.recalls, "another mount asks for this file, and it could not be brought")

    async def _until(self, over: Callable[[], bool], story: str) -> None:
        with trio.move_on_after(self._options.request_timeout_s):
            while not over():
                await self._moved.park()
        if not over():
            raise FsError(Code.TIMEOUT, f"{story} in time")

    async def _through(self, handle: Handle) -> None:
        """Commit what was written; an error is told to who wrote it, now. Until then nobody here sees it either: what
        was seen once must be seen by everybody from then on."""
        handle.file.through += 1
        try:
            await self.flush(handle.file, carry=True)
        except FsError:
            handle.seen = handle.file.ledger.mark()
            raise
        finally:
            handle.file.through -= 1
            self._moved.unpark_all()

    async def _page(self, file: File) -> None:
        """Commit what the kernel has written back of mapped pages: it keeps them locked until it is answered, and a
        recall waits for such. Programs have been shown those bytes before, and are told of an error by fsync."""
        try:
            await self.flush(file)
        except FsError as error:
            log.info("pages of inode %d are not written back yet: %s", file.ino, error)
        finally:
            file.paging -= 1

    async def written_through(self, file: File) -> None:
        """Wait for writes that are committing now, whatever becomes of them. TIMEOUT: they still do."""
        await self._until(lambda: not file.through, "what is being written could not be committed")

    def recalled(self, files: Iterable[File]) -> None:
        """Exclusive leases of these are being given back: nobody writes to them meanwhile."""
        for file in files:
            file.recalls += 1

    def given_back(self, files: Iterable[File]) -> None:
        """That has ended."""
        for file in files:
            file.recalls -= 1
        self._moved.unpark_all()

    async def changed(self, files: Collection[File], deadline: float) -> None:
        """Return when no wish that changes one of these files is under way; they may be part of the journal, which the
        service has to have before a lease is given back. TIMEOUT at the deadline."""
        while any(file.changing for file in files):
            with trio.move_on_at(deadline) as scope:
                await self._moved.park()
            if scope.cancelled_caught:
                raise FsError(Code.TIMEOUT, "a change of a file did not reach the metadata service in time")

    def check(self, handle: Handle) -> None:
        """Raise an error of write-back that this handle has not been told of."""
        handle.file.check()
        error = handle.file.ledger.pending(handle.seen)
        handle.seen = handle.file.ledger.mark()
        if error is not None:
            raise FsError(error.code, error.detail)

    async def _wait_for_room(self, handle: Handle) -> None:
        """Wait below the bound, having others flushed; a full disk is told at once, silence at the deadline."""
        self._waits += 1
        deadline = self._deadline()
        while self._bytes >= self._options.dirty_bytes_max:
            failed = self._press()
            if failed is not None:
                raise FsError(failed.code, failed.detail)
            with trio.move_on_at(deadline) as scope:
                await self._room.park()
            self.check(handle)
            if scope.cancelled_caught:
                raise FsError(Code.TIMEOUT, "too much unwritten data, and no room in time")

    def _press(self) -> Optional[FsError]:
        """Have the longest dirty files written back; when none can be, return why."""
        coming = 0
        failed: Optional[FsError] = None
        now = trio.current_time()
        for file in list(self._dirty):
            if coming >= self._options.dirty_bytes_max // 2:
                break
            if not file.running:
                if file.retry_at > now:
                    failed = failed or file.ledger.last
                    continue
                if not (self._closing and self._closing.take(file)):
                    self._request(file)
            coming += file.cost
        return failed if not coming else None

    def _account(self, file: File) -> None:
        cost = file.dirty.cost
        self._bytes += cost - file.cost
        shrunk = cost < file.cost
        file.cost = cost
        if not file.dirty:
            self._dirty.pop(file, None)
        if shrunk and self._room and self._bytes < self._options.dirty_bytes_max:
            self._room.unpark_all()

    @property
    def bytes(self) -> int:
        """What all dirty bytes cost."""
        return self._bytes

    @property
    def dirty(self) -> bool:
        """Whether any file has bytes to write back."""
        return bool(self._dirty)

    # --- wishes -------------------------------------------------------------------------------------------------

    async def flush(
        self, file: File, *ops: Op, cut: Optional[int] = None, carry: bool = False
    ) -> tuple[Result, ...]:
        """Commit everything written before, then execute ``ops`` in the same step; return their results.

        ``carry``: little data may travel with its commit.
        ``cut``: ops truncate to there; bytes beyond need not be written, and are forgotten when the ops succeed.
        Raises the error of the commit; results of ops may be Failed. The bytes of a failed commit stay dirty.
        When cancelled or timed out the commit goes on, and ops may or may not be executed.
        """
        file.wishes += 1  # or the file might be forgotten when the journal is done with it, and begin anew beside this
        if self._closing is not None:
            self._closing.complete(file)
        own = all(isinstance(op, OWN_OPS) for op in ops)
        changing = own and bool(ops)
        file.changing += changing
        try:
            if self._closing is not None:
                await self._closing.settle(file, self._deadline())
            if own:
                return await self._flush(file, ops, cut, carry)
            await self._flush(file)  # what concerns others is not for the file's task, which may work for the journal
            return await self._committer.submit(file, ops, self._deadline())
        finally:
            file.wishes -= 1
            file.changing -= changing
            self._files.settle(file)
            if changing:
                self._moved.unpark_all()

    async def _flush(
        self, file: File, ops: tuple[Op, ...] = (), cut: Optional[int] = None, carry: bool = False
    ) -> tuple[Result, ...]:
        request = self._request(file, ops, cut)
        request.carry = carry
        try:
            await self._wait(file, request)
        finally:
            request.abandoned = not request.done.is_set()
        if request.abandoned:
            raise FsError(Code.TIMEOUT, "data could not be written back in time")
        if request.error is not None:
            raise FsError(request.error.code, request.error.detail)
        return request.results

    async def _wait(self, file: File, request: Flush) -> None:
        """Wait until the work task has granted a wish, or nothing has moved for so long that it never will."""
        while not request.done.is_set():
            with trio.move_on_at(max(request.deadline, file.moving_until) + GRACE_S) as scope:
                await request.done.wait()
            if scope.cancelled_caught and trio.current_time() >= max(request.deadline, file.moving_until) + GRACE_S:
                return

    def _request(self, file: File, ops: tuple[Op, ...] = (), cut: Optional[int] = None) -> Flush:
        request = Flush(file.dirty.seal(), ops, cut, self._deadline())
        file.requests.append(request)
        if not file.running:
            self._start(file)
        return request

    async def flush_all(self) -> None:
        """Commit everything written before, of all files; tries all and raises the first error."""
        requests = [self._request(file) for file in list(self._dirty)]
        for request in requests:
            await request.done.wait()
        for request in requests:
            if request.error is not None:
                raise FsError(request.error.code, request.error.detail)

    async def run(self) -> None:
        """Write back what has been dirty for long; until cancelled."""
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            for file in list(self._dirty):
                if now >= max(file.dirtied_at + self._options.flush_after_s, file.retry_at) and not file.requests:
                    file.dirtied_at = now
                    if not (self._closing and self._closing.take(file)):
                        self._request(file)

    # --- for the journal ----------------------------------------------------------------------------------------

    def journaling(self, closing: Closing) -> None:
        """From now on what is leased exclusively is written back by the journal."""
        self._closing = closing

    def unwritten(self) -> list[File]:
        """Files with bytes to write back, the longest dirty first."""
        return list(self._dirty)

    def reserve(self, file: File, generation: int, carry: bool) -> Optional[Group]:
        """Put what is dirty and not reserved, where that is one group and nobody else writes the file back; else
        None. Until ``unreserve``, once for each, nobody does. With ``carry`` it may travel with its commit instead."""
        if (file.running and not file.reserved) or file.requests or file.dead is not None:
            return None
        if file.append_base is not None and (self._closing is None or self._closing.size(file.ino) is None):
            return None  # it lands where the file ends, which others may move
        pieces = file.dirty.pieces(0, None, generation)
        pieces = [piece for piece in pieces if not file.reserved or piece.generation > file.taken]
        if not 0 < sum(len(piece.data) for piece in pieces) <= BLOCK_BYTES_MAX:
            return None
        first, *others = groups_of(pieces, generation)
        if others:
            return None
        first.mtime_ns = file.mtime_ns
        first.placed = file.append_base is not None
        file.reserve(generation)
        if not (carry and self._parcels.carry(file, first)):
            self._parcels.add(file, first)
        return first

    def hasten(self, *, carry: bool) -> None:
        """The journal waits for what it has reserved; with ``carry`` somebody waits for the journal."""
        self._parcels.hasten(carry=carry)

    def message(self, file: File, put: Group) -> Optional[Commit]:
        """The commit of a finished put; None where its chunk has to be rewritten."""
        return None if put.crowded else self._committer.message(file, [put])

    def landed(self, file: File, put: Group, committed: Committed) -> None:
        """A batch has committed a put."""
        self._flushes += 1
        self._committer.commits += 1
        self._committer.landed(file, [put], committed)
        self._committed(file, ())
        if not file.dirty:
            file.ledger.resolve()

    def unreserve(self, file: File) -> None:
        """The file may be written back by others again, once nothing of it is reserved."""
        if not file.release():
            return
        if file.requests:
            self._start(file)
        self._account(file)
        self._files.settle(file)
        self._room.unpark_all()

    def log_full(self) -> None:
        """What was to travel with a commit found no room."""
        self._committer.log_full()

    async def flush_for_journal(self, file: File, carry: bool) -> None:
        """Commit everything written before, by the file's own task; with ``carry`` it may travel with the commit."""
        await self._flush(file, carry=carry)

    # --- the task of one file -----------------------------------------------------------------------------------

    def _start(self, file: File) -> None:
        file.running = True
        self._nursery.start_soon(self._work, file)

    async def _work(self, file: File) -> None:
        try:
            while True:
                if file.requests:
                    await self._serve(file, file.requests.popleft())
                elif not await self._stream(file):
                    break
        except Exception:  # a bug costs this attempt, not the mount
            log.exception("write-back of inode %d failed unexpectedly", file.ino)
            error = FsError(Code.IO, "write-back failed unexpectedly")
            self._failed(file, error)
            while file.requests:
                request = file.requests.popleft()
                request.error = error
                request.done.set()
        finally:
            file.running = False
            self._account(file)
            self._files.settle(file)
            self._room.unpark_all()  # who waits for room must ask this file again, if there is still none

    async def _serve(self, file: File, request: Flush) -> None:
        """Grant one wish."""
        if request.abandoned and request.ops:
            return
        self._flushes += 1
        request.begun = True
        try:
            request.results = await self._serve_whole(file, request)
        except FsError as error:
            request.error = error
            self._failed(file, error)
        except Exception:
            request.error = FsError(Code.IO, "write-back failed unexpectedly")
            raise
        finally:
            request.done.set()

    async def _serve_whole(self, file: File, request: Flush) -> tuple[Result, ...]:
        if file.dead is not None:
            raise file.dead
        await self._committer.settle(file, self._step(file))
        cut = request.cut if file.append_base is None else None
        pieces = file.dirty.pieces(0, cut, request.generation)
        groups = groups_of(pieces, request.generation)
        results = await self._drain(file, lambda: next(groups, None), request.ops, request.carry)
        if cut is not None and results and not isinstance(results[0], Failed):
            file.dirty.clean(cut, None, request.generation)
            self._account(file)
        if not file.dirty:
            file.ledger.resolve()
        return results

    async def _stream(self, file: File) -> bool:
        """Write back complete chunks from the beginning of what is dirty; return whether there were any."""
        if file.dead is not None or file.retry_at > trio.current_time():
            return False
        file.position, file.behind = 0, False
        first = next_complete(file)
        if first is None:
            file.position = 0
            return False
        ready: deque[Group] = deque([first])
        try:
            await self._committer.settle(file, self._step(file))
            await self._drain(file, lambda: ready.popleft() if ready else next_complete(file), ())
        except FsError as error:
            self._failed(file, error)
        finally:
            file.position = 0
        return True

    def _deadline(self) -> float:
        return trio.current_time() + self._options.request_timeout_s

    def _step(self, file: File) -> float:
        """The deadline of a step that begins now. Much data may take many steps: those who wait go on waiting."""
        file.moving_until = self._deadline()
        return file.moving_until

    async def _drain(
        self, file: File, take: Callable[[], Optional[Group]], ops: tuple[Op, ...], carry: bool = False
    ) -> tuple[Result, ...]:
        """Put groups side by side, commit them in order; ops go with the last commit. With ``carry`` the only one may
        travel with its commit."""
        first = take()
        if first is None:
            return await self._committer.execute(file, ops, self._step(file)) if ops else ()
        second = take()
        if second is None:
            if not (carry and self._committer.carry(file, first)):
                await self._committer.put(file, first, self._step(file))
            results = await self._committer.commit(file, (first,), ops, self._step(file))
            self._committed(file, ())
            return results
        pipeline = Pipeline(
            self._committer, file, take, lambda: self._step(file), lambda flying: self._committed(file, flying)
        )
        return await pipeline.run((first, second), ops)

    def _committed(self, file: File, flying: Iterable[Group]) -> None:
        """Sync, after each commit: groups behind an append that landed elsewhere follow it."""
        moved, file.moved = file.moved, 0
        if moved:
            for group in flying:
                group.shift(moved)
            file.position += moved
        file.retry_at = 0.0
        self._account(file)

    # --- failure ------------------------------------------------------------------------------------------------

    def _failed(self, file: File, error: FsError) -> None:
        """Sync: who wrote is told; what is still dirty stays so, unless nobody is left who could ask for it again."""
        file.retry_at = trio.current_time() + RETRY_S
        if file.dirty:
            log.warning("inode %d: %d bytes are not written back: %s", file.ino, file.dirty.bytes, error)
            file.ledger.record(error)
            if not file.handles and error.code in _LASTING:
                self.lose(file, error)
        self._room.unpark_all()

    def orphaned(self, file: File) -> None:
        """Sync: the last handle is closed and bytes are dirty still. The timer goes on trying where that can help."""
        error = file.ledger.last
        if file.removed:
            self.drop(file)
            self._files.settle(file)
        elif error is not None and error.code in _LASTING:
            self.lose(file, error)
            self._files.settle(file)

    def lose(self, file: File, error: FsError) -> None:
        """Sync: drop dirty bytes that can never be committed, and say so."""
        if file.dirty:
            start, end = file.dirty.start, file.dirty.end
            log.error("inode %d: %d bytes in [%d, %d) are lost: %s", file.ino, file.dirty.bytes, start, end, error)
            self._lost_bytes += file.dirty.bytes
            file.ledger.record(error, lost=True)
            self.drop(file)
            self.on_lost(file.ino)

    def drop(self, file: File) -> None:
        """Sync: forget dirty bytes that nobody can read any more, or that are lost."""
        file.dirty.clean(0, None, file.dirty.seal())
        self._committer.forget(file)
        self._account(file)

    def end(self, file: File, error: FsError) -> None:
        """Sync: the session of this file has ended."""
        self.lose(file, error)
        self._committer.forget(file)
        file.dead = error
        self._room.unpark_all()

    def statistics(self) -> dict[str, Any]:
        return {
            "dirty_bytes": self._bytes,
            "dirty_files": len(self._dirty),
            "flushes": self._flushes,
            "commits": self._committer.commits,
            "rewrites": self._committer.rewrites,
            "waits_for_room": self._waits,
            "lost_bytes": self._lost_bytes,
        }
