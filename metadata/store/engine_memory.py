"""The state in memory: the twin of the LMDB engine for simulation. It remembers, in order to forget as a crash does."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from metadata.state.tables import KEY_BYTES_MAX


class MemoryView:
    """A copy of one committed state."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self._values = values

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def items(self, low: bytes = b"", high: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._values):
            if key >= low and (high is None or key < high):
                yield key, self._values[key]


class MemoryEngine:
    """An Engine whose durable state is what the last ``commit`` left; ``crash`` goes back to it."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._values: dict[bytes, bytes] = {}
        self._committed: dict[bytes, bytes | None] = {}  # of each key changed since the last commit
        self._commits = 0
        self._loads = 0
        self._loaded: tuple[int, dict[bytes, bytes]] = (0, {})

    def get(self, key: bytes) -> bytes | None:
        assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
        before = self._values.get(key)
        self._committed.setdefault(key, before)
        if before is None:
            insort(self._keys, key)
        self._values[key] = bytes(value)

    def delete(self, key: bytes) -> bool:
        assert 0 < len(key) <= KEY_BYTES_MAX, len(key)
        before = self._values.pop(key, None)
        if before is None:
            return False
        self._committed.setdefault(key, before)
        del self._keys[bisect_left(self._keys, key)]
        return True

    def range(self, low: bytes, high: bytes, limit: int = 0, *, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        start, stop = bisect_left(self._keys, low), bisect_left(self._keys, high)
        if limit and stop - start > limit:
            start, stop = (stop - limit, stop) if reverse else (start, start + limit)
        keys = self._keys[start:stop]
        if reverse:
            keys.reverse()
        return [(key, self._values[key]) for key in keys]

    def commit(self) -> None:
        self._committed.clear()
        self._commits += 1

    def crash(self) -> None:
        """Forget what was not committed, as a crash does."""
        for key, before in list(self._committed.items()):
            if before is None:
                self.delete(key)
            else:
                self.put(key, before)
        self._committed.clear()

    @contextmanager
    def snapshot(self) -> Iterator[MemoryView]:
        values = self._values.copy()
        for key, before in self._committed.items():
            if before is None:
                values.pop(key, None)
            else:
                values[key] = before
        yield MemoryView(values)

    def replace(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        self.switch(self.load(items))

    def load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        values: dict[bytes, bytes] = {}
        last = b""
        for key, value in items:
            assert last < key and len(key) <= KEY_BYTES_MAX, "keys must rise"
            values[key] = bytes(value)
            last = key
        self._loads += 1
        self._loaded = (self._loads, values)
        return self._loads

    def switch(self, loaded: int) -> None:
        number, values = self._loaded
        assert number == loaded, "this load was dropped by a later one"
        self._loaded = (0, {})
        self._values = values
        self._keys = list(self._values)
        self.commit()

    def close(self) -> None:
        self.crash()

    @property
    def dirty(self) -> int:
        return len(self._committed)

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._keys), "dirty": self.dirty, "commits": self._commits}
