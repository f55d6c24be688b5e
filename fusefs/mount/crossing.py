"""Reads that have crossed an invalidation on their way, and end before the file does that the kernel shows.

The kernel takes the end of the file from a short answer, unless the inode was invalidated after it *asked*: then it
reads on with the size that was there before, and fills what is missing with zeros, which nobody ever wrote. So such an
answer is not given. The read is refused: what the kernel reads in advance, and that is how it asks first for nearly all
pages, it asks for again page by page when somebody needs them, and the second answer is taken.

Should the kernel ask for a page without having read it in advance, the program gets EINTR, and most then read again
by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

QUEUE_S = 0.25  # a request that the kernel made before it was told something is read by us so much later at most
AGAIN_S = 1.0  # a read that was refused comes again so soon, or never
INODES_MAX = 4096
REFUSED_MAX = 1024


class Crossings:
    """Which inodes were invalidated lately, and which reads were refused for that."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self.idle_s: Callable[[], float] = float  # when no request was there for us last, by the same clock
        self._lock = threading.Lock()
        self._invalidated: OrderedDict[int, float] = OrderedDict()  # inode -> when it was last
        self._others_s = float("-inf")  # when one was that is not in there any more, at latest
        self._refused: OrderedDict[tuple[int, int], tuple[int, float]] = OrderedDict()  # inode, start -> end, when
        self._count = 0

    def now_s(self) -> float:
        return self._clock_s()

    def asked_s(self) -> float:
        """When the kernel made the request whose handler begins now, at the earliest."""
        return max(self._clock_s() - QUEUE_S, self.idle_s())

    def crossed(self, ino: int, asked_s: float) -> bool:
        """Whether the kernel was told something of this inode since: then it takes no notice of the answer."""
        return self._since(ino, asked_s)

    @contextmanager
    def invalidating(self, *inos: int) -> Iterator[None]:
        """While the kernel is being told. From any thread."""
        self._note(inos)
        try:
            yield
        finally:
            self._note(inos)

    def _note(self, inos: Iterable[int]) -> None:
        with self._lock:
            now_s, noted = self._clock_s(), self._invalidated
            for ino in inos:
                noted[ino] = now_s
                noted.move_to_end(ino)
            while len(noted) > INODES_MAX:
                self._others_s = noted.popitem(last=False)[1]

    def lately(self, ino: int) -> bool:
        """Whether what the kernel is told of this inode now may be void when it arrives."""
        return self._since(ino, self._clock_s() - QUEUE_S)

    def _since(self, ino: int, since_s: float) -> bool:
        with self._lock:
            return self._invalidated.get(ino, self._others_s) > since_s

    def refuses(self, ino: int, offset: int, end: int, came_s: float) -> bool:
        """Whether a read of [offset, end) that came at ``came_s``, and is short, is refused. What comes again is not,
        unless there was another invalidation since the kernel heard of the first refusal: it may have asked before."""
        again_s = self._again_s(ino, offset)
        if not self._since(ino, came_s - QUEUE_S if again_s is None else again_s):
            return False
        self._refused[ino, offset] = end, self._clock_s()
        self._refused.move_to_end((ino, offset))
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)
        self._count += 1
        return True

    def _again_s(self, ino: int, offset: int) -> float | None:
        """When a read was refused that this one repeats."""
        since_s, refused = self._clock_s() - AGAIN_S, self._refused
        while refused and next(iter(refused.values()))[1] < since_s:
            refused.popitem(last=False)
        times = [at_s for (one, start), (end, at_s) in refused.items() if one == ino and start <= offset < end]
        return max(times, default=None)

    def statistics(self) -> dict[str, int]:
        return {"invalidated": len(self._invalidated), "refused": self._count}
