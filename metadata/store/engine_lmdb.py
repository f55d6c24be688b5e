"""The state in LMDB, fully synced. The only file of the metadata service that knows lmdb.

One write transaction stays open over many entries. Reads go through it, so they see what is not committed yet. A
commit writes the pages it touched, syncs, and writes the root; LMDB never changes a page that the last root reaches,
so a crash at any point leaves exactly the last commit.

The directory holds ``CURRENT``, which names one environment, and that environment; any other file there is the
remains of a replacement that did not finish or had just finished.

Memory: dirty pages of the open transaction are private memory, 4 KiB each; everything else is page cache. The owner
commits by ``dirty``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lmdb
from xxhash import xxh3_128

from metadata.state.tables import KEY_BYTES_MAX
from metadata.store.disk import Disk, FatalDiskError, read_file, write_file
from node.wire.errors import Code, FsError
from node.wire.limits import STATE_LOAD_ITEMS, STATE_MAP_BYTES, STATE_MARGIN_BYTES

_CURRENT = "CURRENT"
_LENGTHS = struct.Struct("<II")
_PAGE_BYTES = 4096
_PAGES_PER_CHANGE = 3  # a leaf, its path shared with others, and the list of freed pages


class LmdbView:
    """One committed state, read through a read transaction."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._transaction.get(key)
        return value

    def items(self, low: bytes = b"", high: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        with self._transaction.cursor() as cursor:
            if not (cursor.set_range(low) if low else cursor.first()):
                return
            for key, value in cursor.iternext():
                if high is not None and key >= high:
                    return
                yield key, value


class _Environment:
    """One LMDB file, kept until the last view of it is closed."""

    def __init__(self, disk: Disk, path: str, map_bytes: int, *, sync: bool = True) -> None:
        self.disk = disk
        self.path = path
        self.views = 0
        self.retired = False
        try:
            self.lmdb = lmdb.open(
                path, map_size=map_bytes, subdir=False, max_dbs=0, sync=sync, metasync=sync, mode=0o600, meminit=False
            )
        except lmdb.Error as error:
            raise FsError(Code.IO, f"{path}: the state cannot be opened: {error}") from error

    def used_bytes(self) -> int:
        return int(self.lmdb.info()["last_pgno"] + 1) * _PAGE_BYTES

    def map_bytes(self) -> int:
        return int(self.lmdb.info()["map_size"])

    def retire(self) -> None:
        self.retired = True
        if not self.views:
            self.lmdb.close()
            self.disk.remove(self.path)
            self.disk.remove(f"{self.path}-lock")


class LmdbEngine:
    """An Engine on LMDB. FatalDiskError from any method: the process has to end, the log replays what is missing."""

    def __init__(self, disk: Disk, path: str, *, map_bytes: int = STATE_MAP_BYTES) -> None:
        """Open the state in directory ``path``, or begin an empty one."""
        self._disk = disk
        self._path = path
        self._map_bytes = map_bytes
        self._commits = 0
        self._retired: list[_Environment] = []  # replaced, but still viewed
        self._loaded: _Environment | None = None  # to be switched to
        disk.make_directory(path)
        disk.sync_directory(path.rpartition("/")[0])
        self._number = self._read_current()
        self._remove_others()
        if self._number == 0:
            self._environment = self._open(1, map_bytes)
            self._point_to(1)
            self._number = 1
        else:
            self._environment = self._open(self._number, map_bytes)
        self._map_bytes = self._environment.map_bytes()
        self._grow()
        self._begin()

    # --- tables -----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
        try:
            value: bytes | None = self._get(key)
        except lmdb.Error as error:
            raise self._fatal("get", error) from error
        return value

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
        try:
            self._put(key, value)
        except lmdb.Error as error:
            raise self._fatal("put", error) from error
        self.dirty += 1
        self._dirty_bytes += len(value)

    def delete(self, key: bytes) -> bool:
        assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
        try:
            deleted: bool = self._delete(key)
        except lmdb.Error as error:
            raise self._fatal("delete", error) from error
        self.dirty += deleted
        return deleted

    def range(self, low: bytes, high: bytes, limit: int = 0, *, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        if low >= high:
            return []
        try:
            return self._range(low, high, limit, reverse)
        except lmdb.Error as error:
            raise self._fatal("range", error) from error

    def _range(self, low: bytes, high: bytes, limit: int, reverse: bool) -> list[tuple[bytes, bytes]]:
        cursor = self._cursor
        found: list[tuple[bytes, bytes]] = []
        if reverse:
            if not (cursor.prev() if cursor.set_range(high) else cursor.last()):
                return found
            for item in cursor.iterprev():
                if item[0] < low:
                    break
                found.append(item)
                if len(found) == limit:
                    break
            return found
        if not (cursor.set_range(low) if low else cursor.first()):
            return found
        for item in cursor.iternext():
            if item[0] >= high:
                break
            found.append(item)
            if len(found) == limit:
                break
        return found

    # --- engine -----------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """As in Engine. NO_SPACE where the disk may be too full: nothing is lost, to be repeated once there is room."""
        if not self.dirty:
            return
        needed = self._dirty_bytes + self.dirty * _PAGES_PER_CHANGE * _PAGE_BYTES + STATE_MARGIN_BYTES
        room = self._disk.free_bytes(self._path)
        if room < needed:
            raise FsError(Code.NO_SPACE, f"{self._path}: {room} bytes free, a commit may need {needed}")
        try:
            self._transaction.commit()
        except lmdb.Error as error:
            raise self._fatal("commit", error) from error
        self._commits += 1
        self._grow()
        self._begin()

    @contextmanager
    def snapshot(self) -> Iterator[LmdbView]:
        environment = self._environment
        transaction = environment.lmdb.begin(write=False)
        environment.views += 1
        try:
            yield LmdbView(transaction)
        finally:
            transaction.abort()
            environment.views -= 1
            if environment.retired:
                environment.retire()

    def replace(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        self.switch(self.load(items))

    def load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        if self._loaded is not None:
            self._loaded.lmdb.close()
            self._loaded = None
        self._remove_others()
        number = self._number + 1
        try:
            expected, map_bytes = self._load(number, items)
            fresh = self._open(number, map_bytes)
        except Exception:
            self._remove_others()
            raise
        if _digest_of(fresh) != expected:
            fresh.lmdb.close()
            self._remove_others()
            raise FsError(Code.IO, f"{fresh.path}: what was loaded reads back differently")
        self._loaded = fresh
        return number

    def switch(self, loaded: int) -> None:
        fresh = self._loaded
        assert fresh is not None and loaded == self._number + 1, "this load was dropped by a later one"
        self._loaded = None
        self._point_to(loaded)
        self._transaction.abort()
        old, self._environment, self._number = self._environment, fresh, loaded
        self._map_bytes = fresh.map_bytes()
        self._retired.append(old)
        old.retire()
        self._grow()
        self._begin()

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.lmdb.close()
            self._loaded = None
        self._transaction.abort()
        self._environment.lmdb.close()

    def statistics(self) -> dict[str, int]:
        """As in Engine; also ``dirty_bytes`` of values put, ``used_bytes`` of the file, ``map_bytes`` its limit."""
        return {
            "keys": int(self._transaction.stat()["entries"]),
            "dirty": self.dirty,
            "dirty_bytes": self._dirty_bytes,
            "commits": self._commits,
            "used_bytes": self._environment.used_bytes(),
            "map_bytes": self._map_bytes,
        }

    # --- inside -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        transaction = self._environment.lmdb.begin(write=True)
        self._transaction: Any = transaction
        self._cursor: Any = transaction.cursor()
        self._get: Callable[[bytes], Any] = transaction.get
        self._put: Callable[[bytes, bytes], Any] = transaction.put
        self._delete: Callable[[bytes], Any] = transaction.delete
        self.dirty = 0
        self._dirty_bytes = 0

    def _grow(self) -> None:
        """Keep the map twice as large as what is used. Only between transactions, so a view puts it off."""
        environment = self._environment
        while environment.used_bytes() * 2 > self._map_bytes and not environment.views:
            self._map_bytes *= 2
            environment.lmdb.set_mapsize(self._map_bytes)

    def _fatal(self, what: str, error: Exception) -> FatalDiskError:
        return FatalDiskError(f"{self._path}/{self._name(self._number)}: {what}: {error}")

    @staticmethod
    def _name(number: int) -> str:
        return f"state-{number:08d}.mdb"

    def _open(self, number: int, map_bytes: int, *, sync: bool = True) -> _Environment:
        environment = _Environment(self._disk, f"{self._path}/{self._name(number)}", map_bytes, sync=sync)
        self._disk.sync_directory(self._path)
        return environment

    def _read_current(self) -> int:
        path = f"{self._path}/{_CURRENT}"
        if not self._disk.exists(path):
            return 0
        content = read_file(self._disk, path)
        number = int(content) if content.strip().isdigit() else 0
        if not number or not self._disk.exists(f"{self._path}/{self._name(number)}"):
            raise FsError(Code.IO, f"{path}: names no state: {content[:32]!r}")
        return number

    def _point_to(self, number: int) -> None:
        write_file(self._disk, f"{self._path}/{_CURRENT}", b"%d\n" % number)

    def _remove_others(self) -> None:
        """Remove every environment but the current one and those that a view still reads."""
        self._retired = [environment for environment in self._retired if environment.views]
        keep = {self._name(self._number), *(environment.path.rpartition("/")[2] for environment in self._retired)}
        for name in self._disk.list(self._path):
            if name.startswith("state-") and name.removesuffix("-lock") not in keep:
                self._disk.remove(f"{self._path}/{name}")

    def _load(self, number: int, items: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, int], int]:
        """Write a whole state into a new environment and sync it; return digest and number of keys, and the map."""
        map_bytes = self._map_bytes
        environment = self._open(number, map_bytes, sync=False)
        digest, count = xxh3_128(), 0
        try:
            remaining = iter(items)
            while batch := list(islice(remaining, STATE_LOAD_ITEMS)):
                with environment.lmdb.begin(write=True) as transaction:
                    for key, value in batch:
                        if not transaction.put(key, value, append=True):
                            raise FsError(Code.IO, f"{environment.path}: keys do not rise at {key!r}")
                        _count_in(digest, key, value)
                count += len(batch)
                while environment.used_bytes() * 2 > map_bytes:
                    map_bytes *= 2
                    environment.lmdb.set_mapsize(map_bytes)
            environment.lmdb.sync(True)
        except lmdb.Error as error:
            if self._disk.free_bytes(self._path) < STATE_MARGIN_BYTES:
                raise FsError(Code.NO_SPACE, f"{environment.path}: {error}") from error
            raise FatalDiskError(f"{environment.path}: {error}") from error
        finally:
            environment.lmdb.close()
        return (digest.digest(), count), map_bytes


def _count_in(digest: xxh3_128, key: bytes, value: bytes) -> None:
    digest.update(_LENGTHS.pack(len(key), len(value)))
    digest.update(key)
    digest.update(value)


def _digest_of(environment: _Environment) -> tuple[bytes, int]:
    """Read a whole state back."""
    digest, count = xxh3_128(), 0
    with environment.lmdb.begin(write=False) as transaction:
        for key, value in LmdbView(transaction).items():
            _count_in(digest, key, value)
            count += 1
    return digest.digest(), count
