"""Copies of files and trees that share the blocks of their originals: no data moves (rule 20).

The source is read page by page and made anew in batches, each one log entry. A file is as the source was when its
batch was applied; a tree that changes meanwhile is cloned as it is met. What cannot be finished stays and is named.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Optional

import msgspec
import trio

from fusefs.client.results import expect, raise_failed
from fusefs.client.session import Session
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import BLOCK_BYTES_MAX, FILE_BYTES_MAX, MIB

PAGE_ENTRIES = 256
BATCH_OPS_MAX = 512
BATCH_BYTES_MAX = 2048 * MIB  # of cloned ranges, about a chunk for each MiB
RANGE_BYTES = 1024 * MIB  # of one CloneRange; a file with many extents is taken in smaller parts
INOS_AT_ONCE = 1024
STEP_TIMEOUT_S = 30.0
PAUSE_S = 0.05
_PRIVILEGED = (b"trusted.", b"security.")  # attributes that only root may set


@dataclass(frozen=True, slots=True)
class User:
    """For whom a clone is made, where that is not root: what others own becomes his, without setuid and setgid, and
    attributes that only root may set stay behind. Whether he may read it all is for the caller to find out."""

    uid: int
    gid: int
    groups: frozenset[int]

    def may_be(self, attr: api.Attr) -> bool:
        """Whether what he makes may have this owner and group."""
        return attr.uid == self.uid and (attr.gid == self.gid or attr.gid in self.groups)


@dataclass(slots=True)
class Cloned:
    """What there is now that was not there before."""

    ino: int = 0
    files: int = 0  # everything but directories
    directories: int = 0
    bytes: int = 0


class Cloner:
    """Makes one clone. ``told`` hears of progress. Runs once. ``user`` None: root."""

    def __init__(
        self, session: Session, told: Callable[[Cloned], None] = lambda _: None, user: Optional[User] = None
    ) -> None:
        self._session = session
        self._user = user
        self._told = told
        self._cloned = Cloned()
        self._ops: list[api.Op] = []
        self._ops_bytes = 0
        self._inos: deque[int] = deque()
        self._linked: dict[int, int] = {}  # inodes with several names -> their clones
        self._finishing: list[api.SetAttr] = []  # times of directories, once nothing is made in them any more

    async def clone(self, source: int, parent: int, name: bytes) -> Cloned:
        """Give ``parent`` a new name, which must not exist (EXISTS), for a clone of ``source`` and all below it.

        Modes, times (ctime excepted), extended attributes, hard links inside the tree and holes are kept, owners as far
        as the user may. PERMISSION: only root may clone a device.
        """
        attr = (await self._session.query(api.GetAttr(source), api.AttrResult)).attr
        (entry,) = await self._details([api.DirEntry(name, source, attr.mode, attr)])
        self._cloned.ino = await self._make(parent, entry)
        await self._submit()  # whether the name is free shows now
        if stat.S_ISDIR(attr.mode):
            await self._tree(source, self._cloned.ino)
        for op in reversed(self._finishing):
            await self._add(op)
        await self._submit()
        return self._cloned

    async def _tree(self, source: int, target: int) -> None:
        waiting = deque([(source, target)])
        while waiting:
            source, target = waiting.popleft()
            after, end = b"", False
            while not end:
                page = await self._session.query(api.ReadDir(source, after, PAGE_ENTRIES, True), api.Entries)
                end = page.end or not page.entries
                for entry in await self._details(page.entries):
                    ino = await self._make(target, entry)
                    if stat.S_ISDIR(entry.attr.mode):
                        waiting.append((entry.attr.ino, ino))
                if page.entries:
                    after = page.entries[-1].name

    async def _details(self, entries: Sequence[api.DirEntry]) -> list[_Entry]:
        """Targets and extended attributes of a page, in two questions."""
        found = [_Entry(entry.name, entry.attr) for entry in entries if entry.attr is not None]
        queries: list[api.Query] = []
        for entry in found:
            queries.append(api.ListXattr(entry.attr.ino))
            if stat.S_ISLNK(entry.attr.mode):
                queries.append(api.ReadLink(entry.attr.ino))
        results = deque(await self._read(queries))
        values: list[tuple[_Entry, bytes]] = []
        for entry in found:
            names = results.popleft()
            target = results.popleft() if stat.S_ISLNK(entry.attr.mode) else None
            if isinstance(names, api.Failed) or isinstance(target, api.Failed):
                entry.gone = True  # removed since the page was read
                continue
            entry.target = expect(target, api.Target).target if target is not None else b""
            values.extend((entry, name) for name in expect(names, api.Names).names)
        answers = await self._read([api.GetXattr(entry.attr.ino, name) for entry, name in values])
        for (entry, name), answer in zip(values, answers):
            if isinstance(answer, api.Value):
                entry.xattrs.append((name, answer.value))
        return [entry for entry in found if not entry.gone]

    async def _read(self, queries: Sequence[api.Query]) -> list[api.Result]:
        results: list[api.Result] = []
        while len(results) < len(queries):
            answer = await self._session.read(*queries[len(results) :][:BATCH_OPS_MAX])
            whole = [result for result in answer if not _overloaded(result)]
            results += whole if len(whole) == len(answer) else answer[: _first_overloaded(answer)]
        return results

    async def _make(self, parent: int, entry: _Entry) -> int:
        """Add what makes one entry to the batch; return its inode number."""
        attr = entry.attr
        linked = self._linked.get(attr.ino)
        if linked is not None:
            await self._add(api.Link(linked, parent, entry.name))
            return linked
        ino = await self._ino()
        user = self._user
        if user is not None and (stat.S_ISBLK(attr.mode) or stat.S_ISCHR(attr.mode)):
            raise FsError(Code.PERMISSION, f"{entry.name.decode(errors='replace')} is a device")
        kept = user is None or user.may_be(attr)
        if user is None or kept:
            owned = attr.mode, attr.uid, attr.gid
        else:
            owned = attr.mode & ~(stat.S_ISUID | stat.S_ISGID), user.uid, user.gid
        await self._add(api.Make(parent, entry.name, *owned, attr.rdev, target=entry.target, ino=ino))
        if stat.S_ISREG(attr.mode):
            for offset in range(0, attr.size, RANGE_BYTES):
                length = min(RANGE_BYTES, FILE_BYTES_MAX - offset)
                await self._add(api.CloneRange(attr.ino, offset, ino, offset, length), min(attr.size - offset, length))
        for name, value in entry.xattrs:
            if user is None or not name.startswith(_PRIVILEGED):
                await self._add(api.SetXattr(ino, name, value))
        times = api.SetAttr(ino, atime_ns=attr.atime_ns, mtime_ns=attr.mtime_ns)
        if stat.S_ISDIR(attr.mode):
            self._cloned.directories += 1
            owners = {"mode": attr.mode, "uid": attr.uid, "gid": attr.gid} if kept else {}
            self._finishing.append(msgspec.structs.replace(times, **owners))
            return ino
        self._cloned.files += 1
        self._cloned.bytes += attr.size if stat.S_ISREG(attr.mode) else 0
        if kept and not stat.S_ISLNK(attr.mode):
            times = msgspec.structs.replace(times, mode=attr.mode)
        await self._add(msgspec.structs.replace(times, uid=attr.uid, gid=attr.gid) if kept else times)
        if attr.nlink > 1:
            self._linked[attr.ino] = ino
        return ino

    async def _ino(self) -> int:
        if not self._inos:
            op = api.AllocateInos(INOS_AT_ONCE)
            given = await self._session.change(op, api.InoRange, incarnation=self._session.incarnation)
            self._inos.extend(range(given.first, given.first + given.count))
        return self._inos.popleft()

    async def _add(self, op: api.Op, size_bytes: int = 0) -> None:
        if self._ops and (len(self._ops) >= BATCH_OPS_MAX or self._ops_bytes + size_bytes > BATCH_BYTES_MAX):
            await self._submit()
        self._ops.append(op)
        self._ops_bytes += size_bytes

    async def _submit(self) -> None:
        """Execute the batch in order; a part that is too large for one entry is cut and goes on in the next."""
        ops, self._ops, self._ops_bytes = self._ops, [], 0
        incarnation = self._session.incarnation
        deadline = trio.current_time() + STEP_TIMEOUT_S
        while ops:
            results = await self._session.submit(*ops, stop_on_error=True, incarnation=incarnation)
            done = next((at for at, result in enumerate(results) if isinstance(result, api.Failed)), len(results))
            ops = ops[done:]
            if done:
                deadline = trio.current_time() + STEP_TIMEOUT_S
            if ops:
                ops = await self._again(ops, expect(results[done], api.Failed), deadline)
        self._told(self._cloned)

    async def _again(self, ops: list[api.Op], failed: api.Failed, deadline: float) -> list[api.Op]:
        """What to do after an operation failed: the same later, in smaller parts, without it, or not at all."""
        first = ops[0]
        if failed.code == Code.OVERLOADED and trio.current_time() < deadline:
            await trio.sleep(PAUSE_S)
            return ops
        if isinstance(first, api.CloneRange):
            if failed.code == Code.TOO_BIG and first.length > BLOCK_BYTES_MAX:
                return [*_halves(first), *ops[1:]]
            if failed.code in (Code.STALE, Code.NOT_FOUND):
                raise FsError(Code.STALE, "a file was removed while it was cloned")
        raise_failed(failed)


@dataclass(slots=True)
class _Entry:
    """One entry of a directory with all that makes it."""

    name: bytes
    attr: api.Attr
    target: bytes = b""
    xattrs: list[tuple[bytes, bytes]] = field(default_factory=list)
    gone: bool = False


def _halves(op: api.CloneRange) -> tuple[api.CloneRange, api.CloneRange]:
    chunks = -(-op.length // BLOCK_BYTES_MAX)
    length = (chunks + 1) // 2 * BLOCK_BYTES_MAX
    rest = api.CloneRange(
        op.source, op.source_offset + length, op.target, op.target_offset + length, op.length - length
    )
    return msgspec.structs.replace(op, length=length), rest


def _overloaded(result: api.Result) -> bool:
    return isinstance(result, api.Failed) and result.code == Code.OVERLOADED


def _first_overloaded(results: Sequence[api.Result]) -> Optional[int]:
    return next((at for at, result in enumerate(results) if _overloaded(result)), None)
