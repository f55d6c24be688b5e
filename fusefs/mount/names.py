"""Which names the kernel may believe now, and which directories are asked about by requests under way. Pure."""

from __future__ import annotations

from collections.abc import Iterable

NAME_BYTES = 200  # of memory for one name, beside its own length
COOL_S_MIN = 2.0
COOL_S_MAX = 60.0
COOL_MAX = 1024

Names = dict[int, dict[bytes, None]]  # directory -> names in it


class ToldNames:
    """Names that the kernel was told and may still believe.

    None is believed longer than ``life_s``, so two generations hold them all: what the older one holds is over when
    the younger one gets old. That bounds the memory by what was told lately, and ``bytes_max`` bounds it absolutely.
    """

    def __init__(self, life_s: float, bytes_max: int) -> None:
        self._life_s = life_s
        self._max = bytes_max
        self._young: Names = {}
        self._old: Names = {}
        self._turned_s = 0.0
        self._young_bytes = 0
        self._old_bytes = 0

    @property
    def weight(self) -> int:
        return self._young_bytes + self._old_bytes

    def room(self, now_s: float) -> bool:
        """Whether another name may be told."""
        self._turn(now_s)
        return self.weight < self._max

    def tell(self, parent: int, name: bytes, now_s: float) -> None:
        """The kernel may believe this name from now on. Beyond ``bytes_max`` only by those who cannot help it."""
        self._turn(now_s)
        names = self._young.get(parent)
        if names is None:
            names = self._young[parent] = {}
        if name not in names:
            names[name] = None
            self._young_bytes += NAME_BYTES + len(name)

    def told(self, parent: int, name: bytes, now_s: float) -> bool:
        """Whether the kernel may believe this name."""
        self._turn(now_s)
        return name in self._young.get(parent, ()) or name in self._old.get(parent, ())

    def take(self, parents: Iterable[int], now_s: float) -> dict[int, list[bytes]]:
        """The names in these directories that may be believed: they are forgotten here."""
        self._turn(now_s)
        taken: dict[int, list[bytes]] = {}
        for parent in parents:
            young, old = self._young.pop(parent, None), self._old.pop(parent, None)
            if young is not None:
                self._young_bytes -= _weight(young)
                taken[parent] = list(young)
            if old is not None:
                self._old_bytes -= _weight(old)
                taken[parent] = list(old if young is None else young | old)
        return taken

    def take_all(self, now_s: float) -> dict[int, list[bytes]]:
        """All names that may be believed."""
        return self.take([*self._young, *self._old], now_s)

    def _turn(self, now_s: float) -> None:
        if now_s < self._turned_s + self._life_s:
            return
        late = now_s >= self._turned_s + 2 * self._life_s
        self._old, self._old_bytes = ({}, 0) if late else (self._young, self._young_bytes)
        self._young, self._young_bytes = {}, 0
        self._turned_s = now_s

    def __len__(self) -> int:
        return sum(map(len, self._young.values())) + sum(map(len, self._old.values()))


def _weight(names: dict[bytes, None]) -> int:
    return sum(map(len, names)) + NAME_BYTES * len(names)


class Cooling:
    """Directories whose names were dear to take back: none of theirs is told for a while, each time for longer."""

    def __init__(self) -> None:
        self._until_s: dict[int, tuple[float, float]] = {}  # directory -> (until when, for how long that was)

    def cool(self, parent: int, now_s: float) -> None:
        """Its names were taken back at a cost."""
        until_s, span_s = self._until_s.pop(parent, (0.0, 0.0))
        lately = now_s < until_s + COOL_S_MAX
        span_s = min(2 * span_s, COOL_S_MAX) if span_s and lately else COOL_S_MIN
        self._until_s[parent] = now_s + span_s, span_s
        if len(self._until_s) > COOL_MAX:
            del self._until_s[next(iter(self._until_s))]

    def hot(self, parent: int, now_s: float) -> bool:
        """Whether names of this directory may be told."""
        known = self._until_s.get(parent)
        return known is None or now_s >= known[0]


class Busy:
    """Requests under way by the directory whose lock the kernel holds for them."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def enter(self, parent: int) -> None:
        self._counts[parent] = self._counts.get(parent, 0) + 1

    def leave(self, parent: int) -> None:
        left = self._counts[parent] - 1
        if left:
            self._counts[parent] = left
        else:
            del self._counts[parent]

    def any_of(self, parents: Iterable[int]) -> bool:
        return bool(self._counts) and any(parent in self._counts for parent in parents)


class Arriving:
    """Replies that revalidate a name, by the thread that asked: the kernel takes them to heart without a lock.

    The next request of that thread proves that it has; where none comes, time has to do."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._sent: dict[int, tuple[int, float]] = {}  # thread -> (directory, when)
        self._nameless = 0

    def sent(self, thread: int, parent: int, now_s: float) -> None:
        """A reply leaves now. ``thread`` 0: one that cannot be told from others."""
        if not thread:
            self._nameless -= 1
            thread = self._nameless
        self._sent[thread] = parent, now_s
        if len(self._sent) > 256:
            self._sent = {key: sent for key, sent in self._sent.items() if now_s < sent[1] + self._within_s}

    def proven(self, thread: int) -> None:
        """This thread asks for something else."""
        if self._sent:
            self._sent.pop(thread, None)

    def left_s(self, parents: Iterable[int], now_s: float) -> float:
        """How long to wait until no reply about these directories can be on its way; 0: none is."""
        if not self._sent:
            return 0.0
        wanted = frozenset(parents)
        sent = [at_s for parent, at_s in self._sent.values() if parent in wanted]
        return max(sent) + self._within_s - now_s if sent else 0.0
