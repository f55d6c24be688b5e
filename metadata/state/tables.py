"""The ordered key-value seam between the metadata state machine and the engine that keeps its state.

The state machine sees ``Tables`` only: reads see every earlier put and delete, whether durable or not. Whoever owns
the state on disk sees ``Engine`` and decides when what was put so far becomes durable. Keys are 1 to KEY_BYTES_MAX
bytes and are ordered as unsigned bytes. One thread uses an engine; nothing here suspends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

KEY_BYTES_MAX = 511
"""The longest key an engine takes (LMDB's limit). A longer or an empty one is a programming error: AssertionError."""


class Tables(Protocol):
    """One ordered map of bytes to bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None where there is none. An empty value is a value."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Set ``key`` to ``value``, replacing an older value. Not durable before the engine commits."""
        ...

    def delete(self, key: bytes) -> bool:
        """Remove ``key``; return whether it was there."""
        ...

    def range(
        self, low: bytes, high: bytes, limit: int = 0, *, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Return the pairs with low <= key < high in key order, or in reverse of it.

        The list is materialised, so puts and deletes while walking it are safe. ``limit`` counts pairs, from the
        end where the walk begins; 0 returns all.
        """
        ...


class SnapshotView(Protocol):
    """The state as of one commit. Later puts and commits do not change what it shows."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key`` in this state, or None."""
        ...

    def items(self, low: bytes = b"", high: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Walk low <= key < high in key order, lazily; ``high`` None has no upper end."""
        ...


class Engine(Tables, Protocol):
    """Owns the state on disk. After a crash it holds exactly the state of the last commit, never a part of one."""

    def commit(self) -> None:
        """Make every put and delete so far durable, atomically. Returns when power may fail without loss."""
        ...

    def snapshot(self) -> AbstractContextManager[SnapshotView]:
        """Give a consistent read-only view of the last committed state; uncommitted changes are not in it."""
        ...

    def replace(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace the whole state by ``items`` (in strictly rising key order), durably and atomically.

        ``switch(load(items))``: where ``items`` raises, or power fails before the switch, the old committed state
        stays; uncommitted changes are dropped by the switch.
        """
        ...

    def load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        """Write a whole state beside the present one, synced and verified; return what ``switch`` wants to be told.

        The only method that may run in another thread, while the engine is in use. One at a time; a load that is
        never switched to is dropped by the next one.
        """
        ...

    def switch(self, loaded: int) -> None:
        """Make a loaded state the state, durably and at once. Uncommitted changes are dropped."""
        ...

    def close(self) -> None:
        """Release the files. Uncommitted changes are dropped: the log replays them."""
        ...

    @property
    def dirty(self) -> int:
        """Changes since the last commit. Costs nothing: it is asked after each entry."""
        ...

    def statistics(self) -> dict[str, int]:
        """Return counters, by name: at least ``dirty`` and ``keys``."""
        ...
