"""A machine on the memory engine with a log, and the few words that tests speak to it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

from metadata import api
from metadata.state import check as check_module
from metadata.state import data as data_module
from metadata.state import extents as extents_module
from metadata.state import keys
from metadata.state.check import check
from metadata.state.command import CommandKind, Format, Reclaim, encode_command
from metadata.state.machine import Machine, Outcome
from metadata.state.tables import Tables
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code, FsError

R = TypeVar("R")
FILE = stat.S_IFREG | 0o644
DIR = stat.S_IFDIR | 0o755
LNK = stat.S_IFLNK | 0o777
ROOT = 1
SECOND_NS = 1_000_000_000


def block(number: int) -> bytes:
    """A block's name."""
    return hashlib.blake2b(b"%d" % number, digest_size=32).digest()


def extent(offset: int, length: int, number: int, block_offset: int = 0, block_length: int = 0) -> api.Extent:
    return api.Extent(offset, length, block(number), block_offset, block_length or block_offset + length)


def rows(tables: Tables) -> dict[bytes, bytes]:
    """Everything but what a refused operation may change: its recorded result, its session, the applied index."""
    return {
        key: value
        for key, value in tables.range(b"\0", b"\xff" * 8)
        if key[:1] not in (keys.RESULT, keys.SESSION) and key != keys.APPLIED_KEY
    }


class World:
    """One machine, its log, and one session with id 1 (more by ``open``)."""

    def __init__(self, tables: Tables | None = None, sessions: int = 1) -> None:
        self.tables: Tables = MemoryEngine() if tables is None else tables
        self.machine = Machine(self.tables)
        self.log: list[bytes] = []
        self.sequences: dict[int, int] = {}
        self.now_ns = SECOND_NS
        self.last: Outcome | None = None
        self.run(CommandKind.FORMAT, Format(b"cluster", 1))
        for number in range(sessions):
            self.open(number)

    def apply(self, data: bytes) -> Outcome:
        self.log.append(data)
        self.last = self.machine.apply(len(self.log), 1, data)
        return self.last

    def run(self, kind: CommandKind, body: Any) -> Any:
        """Apply a command and return its reply, an FsError included."""
        self.now_ns += SECOND_NS
        return self.apply(encode_command(kind, self.now_ns, body)).reply

    def open(self, number: int = 0) -> int:
        reply = self.run(
            CommandKind.OPEN_SESSION, api.OpenSession(number.to_bytes(16, "big"), "host", "/mnt", "1")
        )
        assert isinstance(reply, api.OpenSessionReply), reply
        self.sequences[reply.session] = 0
        return reply.session

    def submit(self, *ops: api.Op, session: int = 1, **more: Any) -> Any:
        """Submit a batch under the next sequence; return the results, or the FsError."""
        self.sequences[session] += 1
        sequence = self.sequences[session]
        more.setdefault("lowest_unacked", sequence)
        reply = self.run(CommandKind.SUBMIT, api.Submit(session, sequence, ops=ops, **more))
        return reply.results if isinstance(reply, api.SubmitReply) else reply

    def try_(self, op: api.Op, session: int = 1) -> Any:
        """One operation; its result, Failed included. What failed has left no trace."""
        before = rows(self.tables)
        (result,) = self.submit(op, session=session)
        if isinstance(result, api.Failed):
            assert rows(self.tables) == before
        return result

    def do(self, op: api.Op, session: int = 1) -> Any:
        """One operation that must succeed."""
        result = self.try_(op, session)
        assert not isinstance(result, api.Failed), (op, result)
        return result

    def fail(self, op: api.Op, session: int = 1) -> Code:
        """The code of one operation that must fail."""
        result = self.try_(op, session)
        assert isinstance(result, api.Failed), (op, result)
        return Code(result.code)

    def ask(self, query: api.Query) -> Any:
        (result,) = self.machine.query((query,))
        return result

    # --- shorthands ---

    def make(self, name: bytes, mode: int = FILE, parent: int = ROOT, **more: Any) -> int:
        made: api.Made = self.do(api.Make(parent, name, mode, 0, 0, **more))
        return made.attr.ino

    def write(self, ino: int, *extents: api.Extent, size: int = 0, **more: Any) -> api.Committed:
        more.setdefault("touch_epoch", self.machine.gc_epoch)
        committed: api.Committed = self.do(api.Commit(ino, extents, size, 0, **more))
        return committed

    def attr(self, ino: int) -> api.Attr:
        result = self.ask(api.GetAttr(ino))
        assert isinstance(result, api.AttrResult), result
        return result.attr

    def names(self, ino: int = ROOT) -> list[bytes]:
        result = self.ask(api.ReadDir(ino, b"", 1024))
        assert isinstance(result, api.Entries), result
        return [entry.name for entry in result.entries]

    def extents(self, ino: int, low: int = 0, high: int = 1 << 62) -> list[api.Extent]:
        found: list[api.Extent] = []
        while True:
            page = self.ask(api.GetExtents(ino, low, high - low))
            assert isinstance(page, api.Extents), page
            found.extend(page.extents)
            if not page.more:
                return found
            low = found[-1].offset + found[-1].length

    def reclaim(self, budget: int = 100) -> int:
        """Work off all jobs in steps; return how many steps it took."""
        steps = 0
        while self.machine.reclaim_pending():
            reply = self.run(CommandKind.RECLAIM, Reclaim(budget))
            assert reply.rows > 0
            steps += 1
        return steps

    def sound(self) -> None:
        """The auditor finds nothing, and a machine that only has the tables sees the same state."""
        assert check(self.tables) == []
        fresh = Machine(self.tables)
        for ino in [keys.first(key) for key, _ in self.tables.range(b"I", b"J")]:
            assert fresh.query((api.GetAttr(ino),)) == self.machine.query((api.GetAttr(ino),))

    def code(self, reply: Any) -> Code:
        assert isinstance(reply, FsError), reply
        return reply.code


def small_geometry(patch: pytest.MonkeyPatch, chunk: int = 16, erase_rows: int = 3) -> None:
    """Make chunks and bounds small, so that a few bytes reach every branch."""
    for module in (extents_module, data_module, check_module):
        patch.setattr(module, "CHUNK", chunk)
    for module in (data_module, check_module):
        patch.setattr(module, "INLINE_EXTENTS_MAX", 4)
    patch.setattr(data_module, "ERASE_ROWS_MAX", erase_rows)
    patch.setattr(data_module, "_PAGE", 2)


def replay(log: Iterable[bytes], tables: Tables) -> Machine:
    """Apply a log from the beginning."""
    machine = Machine(tables)
    for index, data in enumerate(log, 1):
        machine.apply(index, 1, data)
    return machine
