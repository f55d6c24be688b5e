"""Files that are open here or have dirty bytes, and what this mount knows of them before anyone else."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Optional

import msgspec
import trio

from fusefs.client.dirty import Dirty
from fusefs.client.ledger import Ledger
from metadata.api import Attr, Op, Result
from node.wire.errors import FsError

NEWEST_MAX = 4096
BOUNDS_MAX = 1024  # files
BOUNDS_CHUNKS_MAX = 16  # of one file


class Flush:
    """A wish: everything of ``generation`` and older is committed, then ``ops`` are executed in the same step."""

    __slots__ = ("generation", "ops", "cut", "deadline", "done", "begun", "abandoned", "results", "error", "carry")

    def __init__(self, generation: int, ops: tuple[Op, ...], cut: Optional[int], deadline: float) -> None:
        self.generation = generation
        self.ops = ops
        self.cut = cut  # with a truncation among ops: dirty bytes from here on need not be written
        self.deadline = deadline
        self.done = trio.Event()
        self.begun = False
        self.abandoned = False  # the caller has gone; ops must not be executed any more
        self.results: tuple[Result, ...] = ()
        self.error: Optional[FsError] = None
        self.carry = False  # little data may travel with its commit


class File:
    """One inode. Everything here changes only between awaits of the tasks named in NOTES.md."""

    def __init__(self, ino: int, incarnation: int) -> None:
        self.ino = ino
        self.incarnation = incarnation  # of the session that it is open under
        self.handles = 0
        self.removed = False  # its last name is gone; release it after the last handle
        self.dead: Optional[FsError] = None  # the session has ended: every use raises this
        self.told = False  # and somebody was
        self.dirty = Dirty()
        self.ledger = Ledger()
        self.mtime_ns = 0  # of the last write
        self.known: Optional[Attr] = None  # newest attributes that a commit of ours returned
        self.append_base: Optional[int] = None  # set: all that is dirty continues the end of the file, believed here
        self.moved = 0  # by how much the last append landed elsewhere than believed
        self.extents: dict[int, int] = {}  # chunk -> at most so many extents in it
        self.exclusive = False  # bytes were written under an exclusive lease that nobody has asked back since
        self.late = False  # or came from mapped pages when all leases were gone: no others may stay because of them
        self.wishes = 0  # that wait for the journal, or are made
        self.changing = 0  # of these, those that change the file: what is told of it after them is not known before
        self.recalls = 0  # of that lease under way: new bytes wait until it has been given back
        self.through = 0  # writes that are being committed before they return: not seen before that
        self.paging = 0  # writes of mapped pages that are being committed, and have returned
        self.shown = True  # not: others may still see what was before a commit of ours that waited for nobody
        self.unsealed = False  # bytes were written that are not in the journal
        self.journaled = 0  # entries in the journal that are about the data
        self.reserved = 0  # of these, those whose bytes are taken already: up to generation ``taken``
        self.taken = 0
        self.watched = False  # made here in a directory that others look at
        self.fresh = False  # created or emptied here: a chunk that is not in ``extents`` has none
        # Write-back's own
        self.cost = 0  # as counted against the dirty bound
        self.dirtied_at = 0.0
        self.retry_at = 0.0
        self.moving_until = 0.0  # deadline of the newest step of write-back
        self.running = False
        self.behind = False  # written below what is under way
        self.position = 0  # up to where background write-back has taken bytes
        self.requests: deque[Flush] = deque()

    def check(self) -> None:
        """Raise what every use of a dead file raises."""
        if self.dead is not None:
            self.told = True
            raise FsError(self.dead.code, self.dead.detail)

    @property
    def committing(self) -> bool:
        """Whether a write is being committed past the journal."""
        return bool(self.through or self.paging)

    @property
    def private(self) -> bool:
        """Whether nobody else sees the file before the journal has brought what was written to it."""
        return self.exclusive and not self.late

    @property
    def idle_data(self) -> bool:
        """Whether there is nothing to write back, and nobody about to."""
        return not self.dirty and not self.running and not self.requests and not self.wishes

    @property
    def idle(self) -> bool:
        """Whether nothing needs this object any more."""
        return not self.handles and self.idle_data

    def reserve(self, generation: int) -> None:
        """The journal has taken what is dirty up to a generation."""
        self.running = True
        self.reserved += 1
        self.taken = generation

    def release(self) -> bool:
        """What it had taken once is committed, or given back; return whether nothing of it is reserved any more."""
        self.reserved -= 1
        self.running = self.reserved > 0
        return not self.running

    def truncated(self, size: int) -> None:
        """The file has been cut or extended to ``size``."""
        if size == 0:
            self.extents.clear()
            self.fresh = True
        if self.append_base is not None and not self.dirty:
            self.append_base = size

    def note(self, attr: Attr) -> None:
        """Remember attributes that a commit returned."""
        if self.known is None or attr.version > self.known.version:
            self.known = attr


class Files:
    """All files of this mount by inode number; and, for a while, what the last commits of closed ones returned, and how
    many extents they may have left: so who opens, writes and closes again and again need not ask each time."""

    def __init__(self) -> None:
        self._files: dict[int, File] = {}
        self._newest: OrderedDict[int, Attr] = OrderedDict()
        self._bounds: OrderedDict[int, dict[int, int]] = OrderedDict()  # ``File.extents``

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[File]:
        return iter(list(self._files.values()))

    def get(self, ino: int) -> Optional[File]:
        return self._files.get(ino)

    def take(self, ino: int, incarnation: int) -> File:
        """Return the file with one handle more."""
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = File(ino, incarnation)
            file.extents = self._bounds.pop(ino, file.extents)
        file.handles += 1
        return file

    def settle(self, file: File) -> None:
        """Forget the file if nothing needs it any more."""
        if file.idle and self._files.get(file.ino) is file:
            del self._files[file.ino]
            if file.known is not None:
                self._newest[file.ino] = file.known
                self._newest.move_to_end(file.ino)
                if len(self._newest) > NEWEST_MAX:
                    self._newest.popitem(last=False)
            if 0 < len(file.extents) <= BOUNDS_CHUNKS_MAX and not file.removed:
                self._bounds[file.ino] = file.extents
                if len(self._bounds) > BOUNDS_MAX:
                    self._bounds.popitem(last=False)

    def clear(self) -> list[File]:
        """Forget all, because their session has ended; return them."""
        files = list(self._files.values())
        self._files.clear()
        self._newest.clear()
        self._bounds.clear()
        return files

    def overlay(self, attr: Attr) -> Attr:
        """What a program here must see: an answer may be older than a commit of ours, and lacks what is dirty."""
        file = self._files.get(attr.ino)
        if file is None:
            newest = self._newest.get(attr.ino)
            return newest if newest is not None and newest.version > attr.version else attr
        if file.known is not None and file.known.version > attr.version:
            attr = file.known
        if not file.dirty or not file.unsealed or file.through:
            return attr
        size = max(attr.size, file.dirty.end)
        mtime_ns = max(attr.mtime_ns + 1, file.mtime_ns)
        return msgspec.structs.replace(attr, size=size, mtime_ns=mtime_ns, ctime_ns=max(attr.ctime_ns, mtime_ns))
