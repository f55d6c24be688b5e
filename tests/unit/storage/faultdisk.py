"""A disk in memory that forgets what was not synced, sector by sector, fills up, fails, and can be damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from random import Random

from node.wire.types import Buffer

SECTOR = 512


class PowerLoss(Exception):
    """The machine stops here."""


class _Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""

    def lose(self, random: Random) -> None:
        """Keep or lose each sector that was not synced, and any part of the growth."""
        if self.data == self.durable:
            return
        length = random.choice((len(self.durable), len(self.data), random.randint(0, len(self.data))))
        if len(self.durable) <= len(self.data):
            length = max(length, len(self.durable))
        kept = bytearray(length)
        for at in range(0, length, SECTOR):
            source = self.data if random.random() < 0.5 else self.durable
            part = source[at : min(at + SECTOR, length)]
            kept[at : at + len(part)] = part
        self.data = kept
        self.durable = bytes(kept)


class FaultFile:
    def __init__(self, disk: FaultDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode

    def size(self) -> int:
        return len(self._inode.data)

    def pread(self, length: int, offset: int) -> bytes:
        self._disk.reads += 1
        if self._disk.broken_reads:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(self._inode.data[offset : offset + length])

    def pwrite(self, buffers: Sequence[Buffer], offset: int) -> None:
        data = b"".join(buffers)
        if self._disk.broken_writes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        growth = max(0, offset + len(data) - len(self._inode.data))
        room = self._disk.room
        if growth > room:
            self._write(data[: len(data) - (growth - room)], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk.step(lambda: self._write(data, offset))

    def _write(self, data: bytes, offset: int) -> None:
        inode = self._inode
        inode.data.extend(bytes(max(0, offset - len(inode.data))))
        inode.data[offset : offset + len(data)] = data

    def fdatasync(self) -> None:
        if self._disk.broken_syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._disk.syncs += 1
        self._disk.step(self._sync)

    def _sync(self) -> None:
        self._inode.durable = bytes(self._inode.data)

    def reserve(self, end: int) -> int:
        return self.size()

    def fetch(self, offset: int, length: int) -> None:
        self._disk.fetched.append((offset, length))

    def let_go(self, offset: int, length: int) -> None:
        self._disk.let_go.append((offset, length))

    def truncate(self, length: int) -> None:
        if self._disk.broken_truncates:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        del self._inode.data[length:]

    def close(self) -> None:
        pass


class FaultDisk:
    """``step_limit``: how many writes, syncs and name changes happen before PowerLoss (None: no end)."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self.broken_syncs = self.broken_truncates = self.broken_reads = self.broken_writes = False
        self.syncs = self.reads = 0
        self.step_limit: int | None = None
        self.claimed_free_bytes: int | None = None  # what free_bytes says when it is not the truth
        self._names: dict[str, _Inode] = {}
        self.let_go: list[tuple[int, int]] = []
        self.fetched: list[tuple[int, int]] = []
        self._durable_names: dict[str, _Inode] = {}

    def step(self, change: Callable[[], None]) -> None:
        if self.step_limit is not None:
            self.step_limit -= 1
            if self.step_limit < 0:
                raise PowerLoss
        change()

    def open(self, name: str, *, create: bool = False) -> FaultFile:
        if create:
            if name in self._names:
                raise FileExistsError(errno.EEXIST, "exists", name)
            self.step(lambda: self._names.__setitem__(name, _Inode()))
        elif name not in self._names:
            raise FileNotFoundError(errno.ENOENT, "missing", name)
        return FaultFile(self, self._names[name])

    def list(self) -> list[str]:
        return sorted(self._names)

    def rename(self, source: str, target: str) -> None:
        self.step(lambda: self._names.__setitem__(target, self._names.pop(source)))

    def remove(self, name: str) -> None:
        self.step(lambda: self._names.__delitem__(name))

    def fsync_directory(self) -> None:
        self.step(lambda: setattr(self, "_durable_names", dict(self._names)))

    def free_bytes(self) -> int:
        return self.room if self.claimed_free_bytes is None else self.claimed_free_bytes

    @property
    def room(self) -> int:
        return max(0, self.capacity_bytes - sum(len(inode.data) for inode in self._names.values()))

    def crash(self, random: Random) -> None:
        """Lose power: any part of what was not synced is gone, names too."""
        self.step_limit = None
        survivors = dict(self._durable_names)
        for name in set(self._names) ^ set(survivors):
            if random.random() < 0.5:
                if name in self._names:
                    survivors[name] = self._names[name]
                else:
                    del survivors[name]
        for inode in survivors.values():
            inode.lose(random)
        self._names, self._durable_names = survivors, dict(survivors)

    def contents(self, name: str) -> bytes:
        return bytes(self._names[name].data)

    def overwrite(self, name: str, data: bytes) -> None:
        """Put other bytes on the medium."""
        inode = self._names[name]
        inode.data, inode.durable = bytearray(data), data

    def flip(self, name: str, bit: int) -> None:
        """Flip one bit on the medium."""
        data = bytearray(self._names[name].data)
        data[bit // 8] ^= 1 << (bit % 8)
        self.overwrite(name, bytes(data))
