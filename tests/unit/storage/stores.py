"""Stores for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from node.wire.errors import FsError
from storage import block
from storage.catalog import Catalog, MemoryCatalog
from storage.records import Kind
from storage.store import BlockStore, Operation, StoreOptions
from tests.unit.storage.faultdisk import FaultDisk

CLUSTER = b"C" * 16


def randomness(seed: int = 1) -> Callable[[int], bytes]:
    return Random(seed).randbytes


def clock() -> Callable[[], float]:
    return itertools.count(1_700_000_000).__next__


def open_store(
    disk: FaultDisk, catalog: Catalog | None = None, *, cluster: bytes = CLUSTER, seed: int = 1,
    now_s: Callable[[], float] | None = None, **options: Any,
) -> BlockStore:
    """Open a store; segments of 64 KiB and no reserve unless asked otherwise. Its clock is one that ticks with each
    question, or ``now_s``."""
    chosen = StoreOptions(**{"segment_bytes": 65_536, "reserve_bytes": 0, "deletion": True, **options})
    made = catalog if catalog is not None else MemoryCatalog()
    return BlockStore(disk, made, cluster, clock=now_s or clock(), random=randomness(seed), options=chosen)


def plain(seed: int, size: int = 1000) -> bytes:
    """Return a block's bytes; every third seed compresses."""
    return (b"%d " % seed * size)[:size] if seed % 3 == 0 else Random(seed).randbytes(size)


def put(data: bytes, epoch: int = 1) -> Operation:
    name, encoded = block.encode(data)
    return Operation(Kind.DATA, name, epoch, len(data), encoded)


def touch(name: bytes, epoch: int) -> Operation:
    return Operation(Kind.TOUCH, name, epoch)


def delete(name: bytes, epoch: int) -> Operation:
    return Operation(Kind.DELETE, name, epoch)


def commit(store: BlockStore, *operations: Operation) -> list[int]:
    """Commit and return the codes."""
    store.commit(operations)
    return [operation.code for operation in operations]


def store_all(store: BlockStore, datas: Sequence[bytes], epoch: int = 1) -> list[bytes]:
    """Put blocks in one group and return their names."""
    operations = [put(data, epoch) for data in datas]
    store.commit(operations)
    assert not any(operation.code for operation in operations), operations
    return [operation.block for operation in operations]


def read(store: BlockStore, name: bytes, offset: int = 0, length: int = 0) -> bytes:
    """Fetch and decode."""
    return bytes(block.decode(store.fetch(name, offset, length), name, offset, length))


def outcome(store: BlockStore, name: bytes) -> bytes | int:
    """Return the plaintext or the error's code."""
    try:
        return read(store, name)
    except FsError as error:
        return error.code
