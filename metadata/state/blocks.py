"""Reference counts of blocks, and the candidates for collection.

A block's count is the number of extent records that name it, exactly. Where it falls to 0 the block becomes a
candidate, stamped with the garbage-collection epoch of that moment; where it is referenced again it stops being one.
Nothing here deletes a block: the collector asks for candidates two epochs old, and only a chunk server that was not
told to keep the block since deletes its copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct

from metadata.state import keys
from metadata.state.logged import Logged
from metadata.state.tables import Tables
from node.wire.types import BLOCK_ID_BYTES

_COUNT = Struct(">Q")
_COUNT_AND_EPOCH = Struct(">QQ")


class Blocks:
    """Counts and candidates in the tables. Nothing is cached."""

    def __init__(self, tables: Tables, logged: Logged) -> None:
        self._tables = tables
        self._logged = logged

    def count(self, block: bytes) -> int:
        """Return how many extents name this block."""
        value = self._tables.get(keys.count(block))
        return 0 if value is None else int(_COUNT.unpack_from(value)[0])

    def knows(self, block: bytes) -> bool:
        """Whether this block is referenced or a candidate."""
        return self._tables.get(keys.count(block)) is not None

    def listed(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Return (block, count) of blocks named above ``after``, candidates with 0."""
        rows = self._tables.range(keys.count(after) + b"\0", keys.prefix_end(keys.COUNT), limit)
        return [(key[len(keys.COUNT) :], int(_COUNT.unpack_from(value)[0])) for key, value in rows]

    def among(self, blocks: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """Return (block, count) of those of these blocks that are known, candidates with 0."""
        rows = [(block, self._tables.get(keys.count(block))) for block in blocks]
        return [(block, int(_COUNT.unpack_from(value)[0])) for block, value in rows if value is not None]

    def adjust(self, deltas: Mapping[bytes, int], epoch: int) -> None:
        """Add to the counts. A count below 0 would be a lost reference: AssertionError."""
        for block, delta in deltas.items():
            if not delta:
                continue
            key = keys.count(block)
            value = self._tables.get(key)
            old = 0 if value is None else _COUNT.unpack_from(value)[0]
            new = old + delta
            assert new >= 0, f"block {block.hex()}: {old} references, {-delta} given up"
            if new:
                if value is not None and not old:
                    self._tables.delete(keys.candidate(_COUNT_AND_EPOCH.unpack(value)[1], block))
                self._tables.put(key, _COUNT.pack(new))
            else:
                self._tables.put(key, _COUNT_AND_EPOCH.pack(0, epoch))
                self._tables.put(keys.candidate(epoch, block), b"")
                self._logged.drop(block)

    def candidates(self, epoch: int, after: tuple[int, bytes], limit: int) -> list[tuple[int, bytes]]:
        """Return candidates (epoch, block) of ``epoch`` or before, in order, greater than ``after``."""
        low = keys.candidate(max(after[0], 0), after[1]) + b"\0"
        rows = self._tables.range(low, keys.candidate(epoch + 1, b""), limit)
        return [(keys.first(key), key[keys.NUMBERED_NAME_AT:]) for key, _ in rows]

    def forget(self, blocks: Sequence[bytes], epoch: int) -> int:
        """Remove candidates of ``epoch`` or before; return how many of ``blocks`` were such."""
        forgotten = 0
        for block in blocks:
            value = self._tables.get(keys.count(block)) if len(block) == BLOCK_ID_BYTES else None
            if value is None:
                continue
            count, since = _COUNT_AND_EPOCH.unpack(value) if len(value) == _COUNT_AND_EPOCH.size else (1, 0)
            if count == 0 and since <= epoch:
                self._tables.delete(keys.count(block))
                self._tables.delete(keys.candidate(since, block))
                forgotten += 1
        return forgotten

    def adopt(self, blocks: Sequence[bytes], epoch: int) -> int:
        """Make those of ``blocks`` that nothing references, and that are no candidates, candidates of ``epoch``."""
        adopted = 0
        for block in blocks:
            if len(block) == BLOCK_ID_BYTES and self._tables.get(keys.count(block)) is None:
                self._tables.put(keys.count(block), _COUNT_AND_EPOCH.pack(0, epoch))
                self._tables.put(keys.candidate(epoch, block), b"")
                adopted += 1
        return adopted
