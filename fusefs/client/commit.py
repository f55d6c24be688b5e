"""From dirty bytes to durable blocks to one commit: what a group of runs goes through.

Rule 10: a commit is sent only after its blocks are durable on enough servers, or brings their bytes along (``carry``):
then they are as durable as it is. Rule 19: extents and size travel in
the same commit, and groups are committed in file order, so that no reader sees a size before the bytes below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Optional

import trio

from fusefs.client import chunking
from fusefs.client.blocks import SMALL_BLOCK_BYTES
from fusefs.client.codec import Codec, Encoded, join, named
from fusefs.client.dirty import Piece
from fusefs.client.files import File
from fusefs.client.logdata import LogData
from fusefs.client.reader import Reader
from fusefs.client.results import expect, raise_failed
from fusefs.client.mutation import Mutation
from fusefs.client.session import Session
from fusefs.client.tasks import together
from fusefs.client.writer import Touched, Writer
from metadata.api import Attr, AttrResult, Commit, Committed, Extent, Failed, GetAttr, Op, Result
from node.wire.errors import Code, FsError
from node.wire.limits import (
    BLOCK_BYTES_MAX, COMPACT_EXTENTS_MIN, EXTENTS_PER_CHUNK_MAX, GROUP_BYTES_MAX, PUT_BLOCKS_MAX, REWRITTEN_CHUNKS_MAX,
)
from node.wire.types import Buffer

_UNDECIDED = frozenset({Code.TIMEOUT, Code.NO_SPACE})  # another try may tell what became of the tries before


class Run:
    """Dirty bytes without a gap inside one chunk: they become one block."""

    __slots__ = ("start", "end", "parts")

    def __init__(self, start: int, end: int, parts: list[Buffer]) -> None:
        self.start = start
        self.end = end
        self.parts = parts

    @property
    def fills_chunk(self) -> bool:
        return self.end - self.start == BLOCK_BYTES_MAX


class Group:
    """Runs in file order that are put together and committed together; at most GROUP_BYTES_MAX."""

    def __init__(self, runs: list[Run], generation: int) -> None:
        self.runs = runs
        self.generation = generation
        self.encoded: list[Encoded] = []
        self.touched = Touched(0, 0)
        self.data: list[bytes] = []  # of each block, where they travel with the commit
        self.unsure: Optional[list[int]] = None  # chunks where the bound of extents does not settle it
        self.carrying = False  # their bytes shall travel with the commit where no chunk is crowded
        self.crowded: set[int] = set()  # chunks that would have too many extents
        self.placed = False  # it goes where it lies, though the file is appended to: nobody else moves its end
        self.done = trio.Event()
        self.error: Optional[FsError] = None
        self.mtime_ns = 0  # 0: the file's, when it is committed

    @property
    def carried_bytes(self) -> int:
        return sum(map(len, self.data))

    @property
    def start(self) -> int:
        return self.runs[0].start

    @property
    def end(self) -> int:
        return self.runs[-1].end

    @property
    def bytes(self) -> int:
        return sum(run.end - run.start for run in self.runs)

    def shift(self, delta: int) -> None:
        for run in self.runs:
            run.start += delta
            run.end += delta

    def extents(self) -> Iterator[Extent]:
        for run, encoded in zip(self.runs, self.encoded):
            yield from chunking.extents_of(run.start, encoded.block, encoded.length)


def runs_of(pieces: Iterable[Piece]) -> Iterator[Run]:
    """Join neighbouring pieces and cut them at the chunks."""
    run: Optional[Run] = None
    for piece in pieces:
        view = memoryview(piece.data)
        for start, end in chunking.spans(piece.offset, len(piece.data)):
            whole = end - start == len(piece.data)
            part: Buffer = piece.data if whole else view[start - piece.offset : end - piece.offset]
            if run is not None and run.end == start and start % BLOCK_BYTES_MAX:
                run.parts.append(part)
                run.end = end
                continue
            if run is not None:
                yield run
            run = Run(start, end, [part])
    if run is not None:
        yield run


def groups_of(pieces: Iterable[Piece], generation: int) -> Iterator[Group]:
    """Pack runs in order into groups of at most GROUP_BYTES_MAX."""
    runs: list[Run] = []
    size = 0
    for run in runs_of(pieces):
        length = run.end - run.start
        if runs and (size + length > GROUP_BYTES_MAX or len(runs) >= PUT_BLOCKS_MAX):
            yield Group(runs, generation)
            runs, size = [], 0
        runs.append(run)
        size += length
    if runs:
        yield Group(runs, generation)


class Committer:
    """Puts and commits groups of one file at a time; any number of files at once."""

    def __init__(
        self, session: Session, writer: Writer, reader: Reader, codec: Codec, logdata: LogData
    ) -> None:
        self._session = session
        self._logdata = logdata
        self._writer = writer
        self._reader = reader
        self._codec = codec
        self._doubtful: dict[File, tuple[Mutation, Sequence[Group]]] = {}
        self.fragmented: Callable[[int, int], None] = lambda _ino, _chunk: None
        self.commits = 0
        self.rewrites = 0

    def carry(self, file: File, group: Group) -> bool:
        """Have the bytes of a group travel with its commit, where they are few. Returns whether it may be committed at
        once; else it must be ``put`` first, which then need not be a put."""
        group.carrying = self._logdata.takes(group.bytes)
        if not group.carrying or self.unsure(file, group):
            return False
        self._take_along(group)
        return True

    def _take_along(self, group: Group) -> None:
        for run in group.runs:
            encoded, plain = named(run.parts)
            group.encoded.append(encoded)
            group.data.append(plain)
        self._logdata.commits += 1

    async def uncarry(self, groups: Sequence[Group], deadline: float) -> None:
        """Put what was to travel with its commit after all."""
        for group in groups:
            if group.data:
                group.data = []
                group.encoded = await self._codec.encode([run.parts for run in group.runs])
                await self._store(group, deadline)

    def log_full(self) -> None:
        """The service has no room for what was to travel with commits."""
        self._logdata.refused()

    async def put(self, file: File, group: Group, deadline: float) -> None:
        """Make the blocks of a group durable; find out meanwhile whether its chunks get crowded."""
        if group.carrying:
            await self._count(file, group, self.unsure(file, group), deadline)
            if not group.crowded:
                self._take_along(group)
                return
        group.encoded = await self._codec.encode([run.parts for run in group.runs])
        self._keep(group)
        unsure = [] if group.carrying else self.unsure(file, group)
        if not unsure:
            await self._store(group, deadline)
            return
        await together(
            lambda: self._count(file, group, unsure, deadline), lambda: self._store(group, deadline)
        )

    async def put_together(self, groups: Sequence[Group], deadline: float) -> None:
        """Make the blocks of groups durable, of any files, where no chunk gets crowded and nothing is carried."""
        encoded = await self._codec.encode([run.parts for group in groups for run in group.runs])
        at = 0
        for group in groups:
            group.encoded, at = encoded[at : at + len(group.runs)], at + len(group.runs)
            self._keep(group)
        touched = await self._writer.put(encoded, deadline)
        for group in groups:
            group.touched = touched

    def _keep(self, group: Group) -> None:
        """Remember what a small file consists of: who has just written it copies or reads it soon."""
        run = group.runs[0]
        if run.start == 0 and run.end <= SMALL_BLOCK_BYTES:
            self._reader.came(group.encoded[0].block, bytes(join(run.parts)))

    async def merge(self, file: File, group: Group, deadline: float) -> None:
        """Put crowded chunks whole, old bytes and new, so that the group can be committed along with others. Only where
        nobody else changes the file, and nothing else of it is under way."""
        runs: list[Run] = []
        for chunk, parts in _by_chunk(group.runs):
            runs += [(await self._whole(file, chunk, parts, deadline))[1]] if chunk in group.crowded else parts
        group.encoded = await self._codec.encode([run.parts for run in runs])
        group.runs = runs
        await self._store(group, deadline)
        for chunk in group.crowded:
            file.extents[chunk] = 1
        group.crowded.clear()
        self.rewrites += 1

    async def _whole(self, file: File, chunk: int, runs: Sequence[Run], deadline: float) -> tuple[Attr, Run]:
        """One run of all that a chunk has, and gets; and the attributes as of what it has: of the service, whose data
        version the journal may be ahead of."""
        start = chunk * BLOCK_BYTES_MAX
        attr, extents = await self._reader.committed(
            file.ino, start, start + BLOCK_BYTES_MAX, deadline, journal=True
        )
        end = max(runs[-1].end, min(attr.size, start + BLOCK_BYTES_MAX))
        pieces = [Piece(run.start, b"".join(run.parts), 0) for run in runs]
        return attr, Run(start, end, await self._reader.assemble(pieces, extents, start, end, deadline))

    async def _store(self, group: Group, deadline: float) -> None:
        group.touched = await self._writer.put(group.encoded, deadline)

    def unsure(self, file: File, group: Group) -> list[int]:
        """The chunks that may get crowded with this group; asked once for each, in the order of the file."""
        if group.unsure is None:
            group.unsure = self._estimate(file, group)
        return group.unsure

    def _estimate(self, file: File, group: Group) -> list[int]:
        """Raise the bounds of extents in each chunk; return the chunks where the bound does not settle it."""
        unsure = []
        for chunk, runs in _by_chunk(group.runs):
            if runs[0].fills_chunk:
                file.extents[chunk] = 1
                continue
            bound = file.extents.get(chunk, 0 if file.fresh else EXTENTS_PER_CHUNK_MAX)
            file.extents[chunk] = bound + 2 * len(runs)
            if file.extents[chunk] > EXTENTS_PER_CHUNK_MAX:
                unsure.append(chunk)
        return unsure

    async def _count(self, file: File, group: Group, chunks: Sequence[int], deadline: float) -> None:
        """Count exactly, on what is committed now."""
        wanted = set(chunks)
        for chunk, runs in _by_chunk(group.runs):
            if chunk not in wanted:
                continue
            start = chunk * BLOCK_BYTES_MAX
            attr, extents = await self._extents(file, start, start + BLOCK_BYTES_MAX, deadline)
            if file.append_base is not None and attr.size > start:
                # An append lands in the chunk of the true end, which need not be the one we believe in
                start = attr.size - attr.size % BLOCK_BYTES_MAX
                runs = [Run(attr.size, attr.size + 1, [])]
                if start != chunk * BLOCK_BYTES_MAX:
                    _, extents = await self._extents(file, start, start + BLOCK_BYTES_MAX, deadline)
            count = chunking.extents_after(extents, [(run.start, run.end) for run in runs])
            file.extents[chunk] = count
            if count > EXTENTS_PER_CHUNK_MAX:
                group.crowded.add(chunk)

    async def _extents(self, file: File, start: int, end: int, deadline: float) -> tuple[Attr, list[Extent]]:
        # What is committed, and without waiting for the journal, which may come to wait for this file meanwhile
        return await self._reader.extents(file.ino, start, end, deadline, journal=True)

    async def commit(
        self, file: File, groups: Sequence[Group], ops: tuple[Op, ...], deadline: float
    ) -> tuple[Result, ...]:
        """Commit groups that were put, next in file order, and execute ``ops`` in the same step; return their results.

        The caller has settled the file before it took the groups.

        On return the file's buffer has forgotten what was committed. An error leaves it dirty.
        """
        if not any(group.crowded for group in groups):
            try:
                return await self._commit(file, groups, ops, deadline)
            except FsError as error:
                if error.code is not Code.TOO_BIG:
                    raise
            await self.uncarry(groups, deadline)
            for group in groups:  # other mounts have added extents, and our bounds are wrong
                group.crowded = {chunk for chunk, runs in _by_chunk(group.runs) if not runs[0].fills_chunk}
        if file.append_base is not None:
            await self._rewrite_end(file, deadline)
            return await self._commit(file, groups, ops, deadline)
        for group in groups:
            if group.crowded:
                await self._rewrite(file, group, deadline)
            else:
                await self._commit(file, [group], (), deadline)
        return await self.execute(file, ops, deadline) if ops else ()

    async def execute(self, file: File, ops: tuple[Op, ...], deadline: float) -> tuple[Result, ...]:
        """Execute ops on a file that has nothing to commit."""
        return await self._session.submit(
            *ops, stop_on_error=True, incarnation=file.incarnation, deadline=deadline, journal=partial(in_journal, file)
        )

    async def submit(self, file: File, ops: tuple[Op, ...], deadline: float) -> tuple[Result, ...]:
        """Execute ops that concern others too."""
        return await self._session.submit(*ops, stop_on_error=True, incarnation=file.incarnation, deadline=deadline)

    async def settle(self, file: File, deadline: float) -> None:
        """Learn what became of an append whose outcome is unknown: it must not be made twice."""
        if file not in self._doubtful:
            return
        mutation, groups = self._doubtful[file]
        try:
            results = await self._session.finish(mutation, deadline)
        except FsError as error:
            if error.code not in _UNDECIDED:
                self.forget(file)
            raise
        self._doubtful.pop(file, None)
        if isinstance(results[0], Committed):
            self.landed(file, groups, results[0])

    async def _commit(
        self, file: File, groups: Sequence[Group], ops: tuple[Op, ...], deadline: float, base_version: int = 0
    ) -> tuple[Result, ...]:
        while True:
            commit = self.message(file, groups, base_version)
            results = await self._submit(file, groups, (commit, *ops), deadline)
            first = results[0]
            if not isinstance(first, Failed):
                break
            if first.code == Code.LOG_FULL:
                self.log_full()
                await self.uncarry(groups, deadline)
                continue
            if first.code != Code.STALE_EPOCH or trio.current_time() >= deadline:
                raise_failed(first)
            await self._session.learn_epochs(deadline)
            for group in groups:  # a put of what is there is a touch
                await self._store(group, deadline)
        self.commits += 1
        self.landed(file, groups, expect(first, Committed))
        return results[1:]

    def message(self, file: File, groups: Sequence[Group], base_version: int = 0) -> Commit:
        base = None if groups[0].placed else file.append_base
        return Commit(
            file.ino,
            tuple(extent for group in groups for extent in group.extents()),
            groups[-1].end,
            groups[-1].mtime_ns or file.mtime_ns,
            min(group.touched.epoch for group in groups),
            append=base is not None,
            expected_size=base or 0,
            base_version=base_version,
            pg_epoch=min(group.touched.pg_epoch for group in groups),
            data=b"".join([plain for group in groups for plain in group.data]),
        )

    async def _submit(
        self, file: File, groups: Sequence[Group], ops: tuple[Op, ...], deadline: float
    ) -> tuple[Result, ...]:
        if file.append_base is None:  # may be made again: it writes the same bytes to the same place
            return await self.execute(file, ops, deadline)
        mutation = await self._session.begin(
            *ops, stop_on_error=True, incarnation=file.incarnation, deadline=deadline, journal=partial(in_journal, file)
        )
        try:
            return await self._session.finish(mutation, deadline)
        except FsError as error:
            if file.dirty and error.code in _UNDECIDED and (mutation.doubtful or error.code is Code.TIMEOUT):
                self._doubtful[file] = mutation, groups
            raise
        finally:
            if file not in self._doubtful:  # one that stays under way for ever would end up stopping the session
                self._session.abandon(mutation)

    def landed(self, file: File, groups: Sequence[Group], committed: Committed) -> None:
        """Sync: the buffer forgets what is committed now."""
        for group in groups:
            for encoded, plain in zip(group.encoded, group.data):
                self._reader.came(encoded.block, plain)
        if not in_journal(file):  # else what is known by right of the lease may be ahead of it
            file.note(committed.attr)
        if file.append_base is not None:
            start, end = groups[0].start if groups[0].placed else file.append_base, groups[-1].end
            for group in groups:
                file.dirty.clean(group.start, group.end, group.generation)
            file.append_base = committed.offset + end - start
            self._tell_fragmented(file, groups)
            if committed.offset != start:
                file.dirty.shift(committed.offset - start)
                file.moved += committed.offset - start
                file.extents.clear()
                file.fresh = False
            return
        for group in groups:
            for run in group.runs:
                file.dirty.clean(run.start, run.end, group.generation)
        self._tell_fragmented(file, groups)

    def _tell_fragmented(self, file: File, groups: Sequence[Group]) -> None:
        for chunk in {chunking.chunk_of(run.start) for group in groups for run in group.runs if not run.fills_chunk}:
            if file.extents.get(chunk, 0) >= COMPACT_EXTENTS_MIN:
                self.fragmented(file.ino, chunk)

    # --- chunks with too many extents ---------------------------------------------------------------------------

    async def _rewrite(self, file: File, group: Group, deadline: float) -> None:
        """Commit a group in file order, some chunks at a time; crowded ones become one block of old and new bytes."""
        at = 0
        parts: dict[int, Group] = {}
        crowded: list[int] = []  # of them
        for chunk, runs in _by_chunk(group.runs):
            part = parts[chunk] = Group(runs, group.generation)
            part.encoded, at = group.encoded[at : at + len(runs)], at + len(runs)
            part.touched = group.touched
            if chunk in group.crowded:
                crowded.append(chunk)
            if len(crowded) == REWRITTEN_CHUNKS_MAX:
                await self._rewrite_some(file, parts, crowded, deadline)
                parts, crowded = {}, []
        if parts:
            await self._rewrite_some(file, parts, crowded, deadline)

    async def _rewrite_some(
        self, file: File, parts: Mapping[int, Group], crowded: Sequence[int], deadline: float
    ) -> None:
        if not crowded:
            await self._commit(file, list(parts.values()), (), deadline)
            return
        while not await self._overlay(file, parts, crowded, deadline):
            pass
        file.extents.update(dict.fromkeys(crowded, 1))

    async def _overlay(
        self, file: File, parts: Mapping[int, Group], crowded: Sequence[int], deadline: float
    ) -> bool:
        """Read crowded chunks, overlay, put, and commit with the others unless another mount changed the file meanwhile
        (False)."""
        found: dict[int, tuple[Attr, Run]] = {}

        async def read(chunk: int) -> None:
            found[chunk] = await self._whole(file, chunk, parts[chunk].runs, deadline)

        await together(*[partial(read, chunk) for chunk in crowded])
        versions = {attr.data_version for attr, _ in found.values()}
        if len(versions) > 1:
            return False
        merged = {chunk: Group([run], parts[chunk].generation) for chunk, (_, run) in found.items()}
        encoded = await self._codec.encode([run.parts for _, run in found.values()])
        touched = await self._writer.put(encoded, deadline)
        for part, block in zip(merged.values(), encoded):
            part.encoded, part.touched = [block], touched
        self.rewrites += len(merged)
        # Clean only what these groups took: the rest of a chunk may have been written meanwhile, or lie under a cut
        commit = self.message(file, [merged.get(chunk, part) for chunk, part in parts.items()], versions.pop())
        first = (await self.execute(file, (commit,), deadline))[0]
        if isinstance(first, Failed):
            if trio.current_time() >= deadline or first.code not in (Code.STALE_EPOCH, Code.VERSION_MISMATCH):
                raise_failed(first)
            if first.code == Code.STALE_EPOCH:
                await self._session.learn_epochs(deadline)
                for chunk, part in parts.items():
                    if chunk not in crowded:
                        await self._store(part, deadline)  # a put of what is there is a touch
            return False
        self.commits += 1
        self.landed(file, list(parts.values()), expect(first, Committed))
        return True

    async def _rewrite_end(self, file: File, deadline: float) -> None:
        """Make one block of the chunk that the true end of the file is in, before bytes are appended to it."""
        attr = (await self._session.query(GetAttr(file.ino), AttrResult, deadline, journal=True)).attr
        if not attr.size % BLOCK_BYTES_MAX:
            return
        start, end = attr.size - attr.size % BLOCK_BYTES_MAX, attr.size
        attr, extents = await self._reader.committed(file.ino, start, end, deadline, journal=True)
        whole = Run(start, end, await self._reader.assemble([], extents, start, end, deadline))
        encoded = await self._codec.encode([whole.parts])
        touched = await self._writer.put(encoded, deadline)
        self.rewrites += 1
        commit = Commit(
            file.ino,
            tuple(chunking.extents_of(start, encoded[0].block, encoded[0].length)),
            end,
            file.mtime_ns,
            touched.epoch,
            base_version=attr.data_version,
            pg_epoch=touched.pg_epoch,
        )
        first = (await self.execute(file, (commit,), deadline))[0]
        if isinstance(first, Failed) and first.code not in (Code.VERSION_MISMATCH, Code.STALE_EPOCH):
            raise_failed(first)  # those two: someone else writes here, the append need not wait for our tidiness
        file.extents.clear()

    def forget(self, file: File) -> None:
        """Nothing of the file will be appended again, or its session has ended: no matter what became of it."""
        doubtful = self._doubtful.pop(file, None)
        if doubtful is not None:
            self._session.abandon(doubtful[0])


def in_journal(file: File) -> bool:
    """Whether commits of a file belong to the journal: nobody else sees it before they have arrived."""
    return file.exclusive or file.journaled > 0


def _by_chunk(runs: Sequence[Run]) -> Iterator[tuple[int, list[Run]]]:
    """Group runs by the chunk that they lie in, in order."""
    same: list[Run] = []
    for run in runs:
        if same and chunking.chunk_of(same[0].start) != chunking.chunk_of(run.start):
            yield chunking.chunk_of(same[0].start), same
            same = []
        same.append(run)
    if same:
        yield chunking.chunk_of(same[0].start), same
