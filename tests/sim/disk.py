"""A disk that forgets what was not synced, tears writes, flips bits, fills up and fails.

What a file shows and what is durable are kept apart. ``crash`` decides, for every sector written and every name
changed since it was last synced, whether it survived; open files die. After a failed sync the data stays visible and
is never written: that is what operating systems do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from metadata.store.disk import Disk, FatalDiskError, File
from node.wire.errors import Code, FsError
from node.wire.types import Buffer

SECTOR_BYTES = 512


class PowerCut(BaseException):
    """The power fails in the middle of an operation; the test then calls ``crash``."""


@dataclass(eq=False)
class _Node:
    """A file. ``pending``: writes since the last sync as (offset, data), truncations as (size, None)."""

    shown: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    allocated: int = 0

    def space(self) -> int:
        return max(len(self.shown), self.allocated)


@dataclass(eq=False)
class _Directory:
    """Names to files, shown and durable; ``pending`` are changes since the last sync."""

    shown: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    pending: list[Callable[[dict[str, _Node]], None]] = field(default_factory=list)

    def change(self, apply: Callable[[dict[str, _Node]], None]) -> None:
        apply(self.shown)
        self.pending.append(apply)


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset:offset + len(data)] = data


class FaultDisk:
    """The twin of RealDisk. Counts what changes in ``operations``; the public fields make the next ones fail."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self.operations = 0
        self.syncs = 0
        self.cut_at: int | None = None  # the operation at which PowerCut is raised, half done
        self.fail_sync_at: int | None = None  # the sync that fails
        self.random = Random(0)
        self.life = 0
        self._directories: dict[str, _Directory] = {"": _Directory()}
        self._durable_directories: set[str] = {""}
        self._locks: set[str] = set()

    # --- faults -----------------------------------------------------------------------------------------------

    def crash(self, random: Random) -> None:
        """Lose power: decide by ``random`` what of the unsynced survived, and kill every open file."""
        self.life += 1
        self.cut_at = self.fail_sync_at = None
        self._locks.clear()
        for path, directory in list(self._directories.items()):
            keep = random.choice((0.0, 0.5, 1.0))
            for apply in directory.pending:
                if random.random() < keep:
                    apply(directory.durable)
            directory.pending.clear()
            directory.shown = directory.durable.copy()
            if path not in self._durable_directories and random.random() < 0.5:
                del self._directories[path]
            else:
                self._durable_directories.add(path)
        for node in self._nodes():
            _settle(node, random)

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        """Flip one bit on the medium."""
        node = self._find(path)
        for content in (node.shown, node.durable):
            if offset < len(content):
                content[offset] ^= 1 << bit

    def read(self, path: str) -> bytes:
        """Return what a file shows."""
        return bytes(self._find(path).shown)

    def write(self, path: str, content: bytes) -> None:
        """Put durable content there, whatever was before."""
        parent, name = _split(path)
        node = _Node(bytearray(content), bytearray(content))
        self._directories[parent].shown[name] = self._directories[parent].durable[name] = node

    def cut(self, path: str, size: int) -> None:
        """Shorten what a file durably holds."""
        node = self._find(path)
        del node.shown[size:], node.durable[size:]

    def used_bytes(self) -> int:
        return sum(node.space() for node in self._nodes())

    def _nodes(self) -> list[_Node]:
        nodes = (node for d in self._directories.values() for m in (d.shown, d.durable) for node in m.values())
        return list(dict.fromkeys(nodes))

    def step(self) -> bool:
        """Count an operation; return whether the power fails in it."""
        self.operations += 1
        return self.cut_at is not None and self.operations >= self.cut_at

    def sync_step(self) -> bool:
        """Count a sync; return whether it fails."""
        self.syncs += 1
        return self.fail_sync_at is not None and self.syncs >= self.fail_sync_at

    def _find(self, path: str) -> _Node:
        parent, name = _split(path)
        directory = self._directories.get(parent)
        if directory is None or name not in directory.shown:
            raise FsError(Code.NOT_FOUND, path)
        return directory.shown[name]

    # --- the Disk protocol ------------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> File:
        parent, name = _split(path)
        if create and parent in self._directories and name not in self._directories[parent].shown:
            self._change(parent, _naming(name, _Node()))
        return FaultFile(self, path, self._find(path))

    def _change(self, parent: str, apply: Callable[[dict[str, _Node]], None]) -> None:
        if parent not in self._directories:
            raise FsError(Code.NOT_FOUND, parent)
        cut = self.step()
        if not cut or self.random.random() < 0.5:
            self._directories[parent].change(apply)
        if cut:
            raise PowerCut

    def exists(self, path: str) -> bool:
        parent, name = _split(path)
        return path in self._directories or parent in self._directories and name in self._directories[parent].shown

    def list(self, path: str) -> list[str]:
        if path not in self._directories:
            raise FsError(Code.NOT_FOUND, path)
        below = [p.removeprefix(f"{path}/") for p in self._directories if p.startswith(f"{path}/")]
        return sorted([*self._directories[path].shown, *(name for name in below if "/" not in name)])

    def make_directory(self, path: str) -> None:
        assert _split(path)[0] in self._directories, path
        if path not in self._directories:
            self._directories[path] = _Directory()

    def rename(self, source: str, target: str) -> None:
        (parent, old), (other, new) = _split(source), _split(target)
        assert parent == other, "renames stay in one directory here"
        node = self._find(source)

        def apply(names: dict[str, _Node]) -> None:
            names.pop(old, None)
            names[new] = node

        self._change(parent, apply)

    def remove(self, path: str) -> None:
        parent, name = _split(path)
        if self.exists(path):
            self._change(parent, _removing(name))

    def remove_directory(self, path: str) -> None:
        self._directories.pop(path, None)
        self._durable_directories.discard(path)

    def sync_directory(self, path: str) -> None:
        if self.step():
            raise PowerCut
        directory = self._directories[path]
        if self.sync_step():
            directory.pending.clear()
            raise FatalDiskError(f"{path}: fsync: injected")
        directory.durable = directory.shown.copy()
        directory.pending.clear()
        self._durable_directories.update(p for p in self._directories if _split(p)[0] == path)

    def free_bytes(self, path: str) -> int:
        return max(0, self.capacity_bytes - self.used_bytes())

    @contextmanager
    def lock(self, path: str) -> Iterator[None]:
        if path in self._locks:
            raise FsError(Code.BUSY, f"{path}: another process holds it")
        self._locks.add(path)
        try:
            yield
        finally:
            self._locks.discard(path)


def _naming(name: str, node: _Node) -> Callable[[dict[str, _Node]], None]:
    def apply(names: dict[str, _Node]) -> None:
        names[name] = node

    return apply


def _removing(name: str) -> Callable[[dict[str, _Node]], None]:
    def apply(names: dict[str, _Node]) -> None:
        names.pop(name, None)

    return apply


def _settle(node: _Node, random: Random) -> None:
    """Decide which unsynced sectors of a file survived."""
    way = random.choice(("none", "all", "prefix", "sectors"))
    for offset, data in node.pending:
        if way == "none" or way == "prefix" and random.random() < 0.3:
            break
        if data is None:
            if way != "sectors" or random.random() < 0.5:
                del node.durable[offset:]
                node.durable.extend(bytes(offset - len(node.durable)))
            continue
        if way == "prefix" and random.random() < 0.5:
            _put(node.durable, offset, data[: random.randrange(len(data) + 1)])
            break
        at = offset
        while at < offset + len(data):
            stop = min(offset + len(data), (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            if way != "sectors" or random.random() < 0.5:
                _put(node.durable, at, data[at - offset:stop - offset])
            at = stop
    node.pending.clear()
    node.shown = node.durable.copy()


class FaultFile:
    """An open file of a FaultDisk; dead after a crash."""

    def __init__(self, disk: FaultDisk, path: str, node: _Node) -> None:
        self._disk = disk
        self._path = path
        self._node = node
        self._life = disk.life
        self._open = True

    def _alive(self) -> _Node:
        assert self._open and self._life == self._disk.life, f"{self._path}: used after close or crash"
        return self._node

    def pread(self, length: int, offset: int) -> bytes:
        node = self._alive()
        data = bytes(node.shown[offset:offset + length])
        return data + bytes(max(0, min(length, node.allocated - offset) - len(data)))

    def pwrite(self, data: Buffer, offset: int) -> None:
        node = self._alive()
        data = bytes(data)
        growth = max(0, offset + len(data) - node.space())
        room = self._disk.capacity_bytes - self._disk.used_bytes()
        cut = self._disk.step()
        if cut:
            data = data[: self._disk.random.randrange(len(data) + 1)]
        full = growth > room
        if full:
            data = data[: max(0, len(data) - (growth - room))]
        _put(node.shown, offset, data)
        node.pending.append((offset, data))
        if cut:
            raise PowerCut
        if full:
            raise FsError(Code.NO_SPACE, f"{self._path}: injected")

    def datasync(self) -> None:
        node = self._alive()
        if self._disk.step():
            raise PowerCut
        if self._disk.sync_step():
            node.pending.clear()  # shown, never written
            raise FatalDiskError(f"{self._path}: fdatasync: injected")
        for offset, data in node.pending:
            if data is None:
                del node.durable[offset:]
                node.durable.extend(bytes(offset - len(node.durable)))
            else:
                _put(node.durable, offset, data)
        node.pending.clear()

    def truncate(self, size: int) -> None:
        node = self._alive()
        if self._disk.step():
            raise PowerCut
        del node.shown[size:]
        node.shown.extend(bytes(size - len(node.shown)))
        node.allocated = min(node.allocated, size)
        node.pending.append((size, None))

    def allocate(self, size: int) -> None:
        node = self._alive()
        if size - node.space() > self._disk.capacity_bytes - self._disk.used_bytes():
            raise FsError(Code.NO_SPACE, f"{self._path}: injected")
        node.allocated = max(node.allocated, size)

    def size(self) -> int:
        return self._alive().space()

    def close(self) -> None:
        self._open = False


def as_disk(disk: FaultDisk) -> Disk:
    """Check by type that the twin is a Disk."""
    return disk
