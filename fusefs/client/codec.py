"""Blocks between plaintext and their encoded form; large ones in worker threads, because both ways release the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import trio

from node.wire.errors import FsError
from node.wire.limits import KIB
from node.wire.types import Buffer
from storage.api import decode_block, encode_block, name_block

THREAD_BYTES_MIN = 64 * KIB  # up to here a thread hop costs more than the work
THREADS = 2


@dataclass(slots=True)
class Encoded:
    """A block as it travels."""

    block: bytes
    length: int  # of the plaintext
    frame: Buffer


@dataclass(slots=True)
class Coded:
    """A whole block that came, not yet looked at."""

    block: bytes
    length: int  # of the plaintext
    frame: Buffer


def join(parts: Sequence[Buffer]) -> Buffer:
    """One buffer of all parts; the part itself where there is only one."""
    return parts[0] if len(parts) == 1 else b"".join(parts)


def named(parts: Sequence[Buffer]) -> tuple[Encoded, bytes]:
    """A block that is given in parts, named and not encoded (its frame is empty), and its plaintext."""
    plain = bytes(join(parts))
    return Encoded(name_block(plain), len(plain), b""), plain


class Codec:
    """Encodes and decodes. The number of threads is bounded for all files together."""

    def __init__(self) -> None:
        self._limiter: Optional[trio.CapacityLimiter] = None

    async def encode(self, plain: Sequence[Sequence[Buffer]]) -> list[Encoded]:
        """Encode blocks, each given in parts."""
        if sum(len(part) for parts in plain for part in parts) <= THREAD_BYTES_MIN:
            return [_encode(parts) for parts in plain]
        return await trio.to_thread.run_sync(lambda: [_encode(parts) for parts in plain], limiter=self._threads())

    async def decode(self, frame: Buffer, block: bytes, offset: int, length: int, block_length: int) -> Buffer:
        """Return verified plaintext. CORRUPT_BLOCK when it is not what the name says."""
        if length <= THREAD_BYTES_MIN:
            return decode_block(frame, block, offset, length, block_length)
        return await trio.to_thread.run_sync(
            decode_block, frame, block, offset, length, block_length, limiter=self._threads()
        )

    async def decode_all(self, blocks: Sequence[Coded]) -> Sequence[Buffer | FsError]:
        """Decode whole blocks in one go; CORRUPT_BLOCK in the place of each that is not what its name says."""
        if sum(one.length for one in blocks) <= THREAD_BYTES_MIN:
            return [_decode(one) for one in blocks]
        return await trio.to_thread.run_sync(lambda: [_decode(one) for one in blocks], limiter=self._threads())

    def _threads(self) -> trio.CapacityLimiter:
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(THREADS)
        return self._limiter


def _decode(one: Coded) -> Buffer | FsError:
    try:
        return decode_block(one.frame, one.block, 0, one.length, one.length)
    except FsError as error:
        return error


def _encode(parts: Sequence[Buffer]) -> Encoded:
    plain = join(parts)
    block, frame = encode_block(plain)
    return Encoded(block, len(plain), frame)
