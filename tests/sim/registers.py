"""The values that names and files ever had, in order, and what who reads them must see at least. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Optional

from tests.sim.checkers import Violation

Key = int | tuple[int, bytes]  # an inode, or a name in a directory


class Floor(NamedTuple):
    """What a read may not fall behind: a place in a register, as it was after so many cuts."""

    cuts: int
    place: int


class History:
    """All values that each register ever had, and the newest that anybody was shown."""

    def __init__(self) -> None:
        self.values: dict[Key, list[int]] = {}
        self._seen: dict[Key, int] = {}
        self._cuts: dict[Key, int] = {}

    def of(self, key: Key) -> list[int]:
        return self.values.setdefault(key, [] if isinstance(key, int) else [0])

    def newest(self, key: Key) -> int:
        """What it is now; 0 where all of it is lost."""
        values = self.of(key)
        return values[-1] if values else 0

    def note(self, key: Key, value: int, later: Collection[int] = ()) -> None:
        """From now on this is the value, but for the newest ones that are ``later``."""
        values = self.of(key)
        place = len(values)
        while place and values[place - 1] in later and values[place - 1] != value:
            place -= 1
        if not place or values[place - 1] != value:
            self._insert(key, place, value)

    def note_before(self, key: Key, value: int, later: Collection[int], after: Optional[int]) -> None:
        """This was the value, at the earliest behind ``after``, until the newest ones that are ``later`` came."""
        values = self.of(key)
        place = len(values)
        while place and values[place - 1] in later and values[place - 1] != after:
            place -= 1
        self._insert(key, place, value)

    def _insert(self, key: Key, place: int, value: int) -> None:
        values = self.of(key)
        if place < len(values) and self._seen.get(key, 0) >= place:
            self._seen[key] += 1
        values.insert(place, value)

    def cut(self, key: Key, value: Optional[int]) -> None:
        """What came after this value is lost; None: all of it."""
        values = self.of(key)
        if value is not None and value not in values:
            raise Violation("nothing else happens", f"{key} is {value}, which it never was: {values}")
        while values and values[-1] != value:
            values.pop()
        self._cuts[key] = self._cuts.get(key, 0) + 1
        self._seen[key] = min(self._seen.get(key, 0), max(len(values) - 1, 0))

    def free(self, key: Key) -> None:
        """It is removed for good. Who had it open may be told whatever it was."""
        self._cuts[key] = self._cuts.get(key, 0) + 1
        self._seen[key] = 0

    def floor(self, key: Key) -> Floor:
        return Floor(self._cuts.get(key, 0), self._seen.get(key, 0))

    def saw(self, key: Key, floor: Floor, value: int, where: str) -> None:
        """A read that began at ``floor`` ends with this value."""
        values = self.of(key)
        low = floor.place if floor.cuts == self._cuts.get(key, 0) else 0
        for place in range(low, len(values)):
            if values[place] == value:
                self._seen[key] = max(self._seen.get(key, 0), place)
                return
        raise Violation("nothing stale is read", f"{where}: {key} is {value}, not one of {values[low:]} of {values}")
