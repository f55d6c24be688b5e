"""Blocks whose bytes came with the log entry that references them, until they are moved to chunk servers.

Such a block is durable because the log is: with its bytes in the state it needs no copy anywhere else, and no touch.
What is referenced no more leaves at once. What stays is moved by the leader (``metadata.server.mover``): it puts the
block with the epoch of that moment, like any writer, and only then the bytes go, by an entry that is held to what a
commit is held to (rule 10).

Exactly referenced blocks are in here, in no order but that of their names, so that whoever moves them can begin
anywhere and go round what cannot be moved now. All of them together are bounded, rows as well as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import blake3

from metadata.api import Extent
from metadata.state import keys
from metadata.state.records import LoggedRecord, decode_logged, encode
from metadata.state.tables import Tables
from node.wire.errors import Code, FsError
from node.wire.limits import LOG_DATA_COMMIT_BYTES, LOG_DATA_ROW_BYTES, LOG_DATA_STATE_BYTES

Plain = list[tuple[bytes, bytes]]  # names and bytes of blocks
_STEP = 64  # rows read at a time


def name_block(plain: bytes) -> bytes:
    """The name of a block, as chunk servers give it (``storage.api``, which is not for a pure module)."""
    return blake3.blake3(plain).digest()


class Logged:
    """The rows, and what they count together."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._saved = LoggedRecord()
        self.blocks = 0
        self.cost = 0  # bytes, and LOG_DATA_ROW_BYTES for each block
        self.reload()

    def reload(self) -> None:
        """Read the totals from the tables."""
        value = self._tables.get(keys.LOGGED_KEY)
        self._saved = LoggedRecord() if value is None else decode_logged(value)
        self.blocks, self.cost = self._saved.blocks, self._saved.cost

    def flush(self) -> None:
        """Write the totals where the entry changed them. The end of an entry."""
        if (self.blocks, self.cost) != (self._saved.blocks, self._saved.cost):
            self._saved = LoggedRecord(self.blocks, self.cost)
            self._tables.put(keys.LOGGED_KEY, encode(self._saved))

    @property
    def room_bytes(self) -> int:
        """How much more may come."""
        return LOG_DATA_STATE_BYTES - self.cost

    def get(self, block: bytes) -> bytes | None:
        """The bytes of a block, None where they are not here."""
        return self._tables.get(keys.logged(block)) if self.blocks else None

    def among(self, extents: Iterable[Extent], bytes_max: int) -> tuple[int, Plain]:
        """The blocks of these extents that are here; of so many extents, from the first on, as have no more than
        ``bytes_max`` here, but of one at least."""
        found: dict[bytes, bytes] = {}
        size = count = 0
        for extent in extents:
            plain = None if extent.block in found else self.get(extent.block)
            if plain is not None:
                size += len(plain)
                if size > bytes_max and count:
                    break
                found[extent.block] = plain
            count += 1
        return count, list(found.items())

    def page(self, after: bytes, limit: int, bytes_max: int) -> Plain:
        """Blocks named above ``after``, in order, at most ``limit``; about ``bytes_max`` of them, but one at least."""
        low, size, found = keys.logged(after) + b"\0", 0, Plain()
        while len(found) < limit and size < bytes_max:
            rows = self._tables.range(low, keys.prefix_end(keys.LOGGED), min(limit - len(found), _STEP))
            for key, plain in rows:
                size += len(plain)
                if found and size > bytes_max:
                    return found
                found.append((key[1:], plain))
            if len(rows) < _STEP:
                break
            low = rows[-1][0] + b"\0"
        return found

    # --- changes ------------------------------------------------------------------------------------------------

    def check(self, extents: Sequence[Extent], data: bytes) -> Plain:
        """Cut what came with a commit into its blocks. INVALID, TOO_BIG, LOG_FULL; nothing is written."""
        if len(data) > LOG_DATA_COMMIT_BYTES:
            raise FsError(Code.TOO_BIG, f"{len(data)} bytes with one commit")
        plain: dict[bytes, bytes] = {}
        at = 0
        for extent in extents:
            end = at + extent.length
            part = data[at:end]
            if extent.block_offset or extent.block_length != extent.length or name_block(part) != extent.block:
                raise FsError(Code.INVALID, f"the bytes at {at} are not those of block {extent.block.hex()}")
            plain[extent.block] = part
            at = end
        if at != len(data):
            raise FsError(Code.INVALID, f"{len(data)} bytes for extents of {at}")
        new = [(block, part) for block, part in plain.items() if self.get(block) is None]
        cost = sum([len(part) + LOG_DATA_ROW_BYTES for _, part in new])
        if cost > self.room_bytes:
            raise FsError(Code.LOG_FULL, f"{self.blocks} blocks wait for chunk servers")
        return new

    def add(self, plain: Plain) -> None:
        """Keep blocks that ``check`` returned and that are referenced by now."""
        for block, part in plain:
            self._tables.put(keys.logged(block), part)
            self.blocks += 1
            self.cost += len(part) + LOG_DATA_ROW_BYTES

    def drop(self, block: bytes) -> bool:
        """Forget the bytes of a block; return whether they were here."""
        plain = self.get(block)
        if plain is None:
            return False
        self._tables.delete(keys.logged(block))
        self.blocks -= 1
        self.cost -= len(plain) + LOG_DATA_ROW_BYTES
        return True
