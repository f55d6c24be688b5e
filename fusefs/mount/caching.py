"""What the kernel may keep of our answers, for how long, and how it is told to forget.

A time-out never exceeds what is left of the leases, less a margin for the way of the reply. Whatever is recalled is
forgotten by calls that wait for nobody (rule 5): attributes inode by inode, names all at once, by raising the epoch of
the mount; entry invalidation would wait for the directory's lock, and so for a handler that waits for the leader.

Raising the epoch has a price: at the next look the kernel throws away every name of the mount that it meets, with the
pages of files that are not open and with whatever is mounted on it, in any namespace. So by default the kernel is given
no names to remember (``leases=names`` asks for it): it looks each one up, and is answered from our memory.

Replies that the kernel has not looked at yet: it compares attributes from look-ups and getattrs, and names from
look-ups and creations, with what was invalidated after it *asked*, so a recall that overtakes them makes them void.
It does not so with attributes in the replies to changes, nor with names in directory pages: those get no time. And an
inode that it does not know yet it cannot forget: it is told again until it can.

Void means also that a read which had asked goes on with the size and the pages that were there before. So attributes
that were sent a moment ago are given time to arrive before they are recalled, attributes whose time is over are not
recalled at all, and pages that a recall may have made old are dropped before the next attributes are sent
(``KernelView.doubt``).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol

import pyfuse3
import trio

from fusefs.mount.kernel import KernelView
from metadata.api import Attr
from node.host.logging import get_logger

log = get_logger(__name__)

MARGIN_S = 0.5  # between the end of what the kernel believes and the end of our leases
INLINE_MAX = 16  # inodes; a thread hop costs as much as many of them
NEGATIVE_AFTER = 3  # a missing name that was asked for so often is believed to be missing by the kernel too
ASKED_MAX = 4096
COOL_S = 2.0  # names of a directory that another mount changes are not told for so long
COOL_MAX = 1024
ARRIVAL_S = 0.002  # for a reply to reach who asked
AGAIN_S_MIN = 0.0005
AGAIN_S_MAX = 0.05
AGAIN_S = 1.0  # in all, until an inode that is not known is believed to be none

_EPOCH = struct.pack("<IiQ", 16, 8, 0)  # length, notification FUSE_NOTIFY_INC_EPOCH, no request


class Leased(Protocol):
    """How long answers stay true: fusefs.client.volume.Volume."""

    def attr_left_s(self, attr: Attr) -> float: ...

    def name_left_s(self, parent: int, name: bytes, ino: int) -> float: ...


class _Told(NamedTuple):
    """When the kernel was sent attributes, and until when it believes them."""

    at_s: float
    until_s: float


class KernelCache:
    """The kernel's caches of one mount. ``fd``: of /dev/fuse; None, or an old kernel: names are never cached there.
    ``clock_s`` is the one that leases go by."""

    def __init__(self, leased: Leased, view: KernelView, fd: int | None, clock_s: Callable[[], float]) -> None:
        self._leased = leased
        self._view = view
        self._clock_s = clock_s
        self._attrs: dict[int, _Told] = {}  # inodes whose attributes the kernel may believe
        self._names: set[int] = set()  # directories in which the kernel may believe a name
        self._missing: set[tuple[int, bytes]] = set()  # of them, names that it may believe to be missing
        self._asked: OrderedDict[tuple[int, bytes], int] = OrderedDict()  # missing names -> how often
        self._cool: dict[int, float] = {}  # directories that others change too -> until when no name is told
        self._lock = threading.Lock()
        self._fd = fd
        self._open = True
        self._counts = {"attributes": 0, "epochs": 0, "again": 0}
        self._epochs = fd is not None and self._raise_epoch()

    def close(self) -> None:
        """The kernel has let go, or is about to: it is told nothing from now on."""
        with self._lock:
            self._open = False

    # --- time-outs ----------------------------------------------------------------------------------------------

    def attr_s(self, attr: Attr) -> float:
        """How long the kernel may believe attributes that are sent to it now, before anything else is awaited."""
        left_s = self._leased.attr_left_s(attr) - MARGIN_S
        if left_s <= 0:
            return 0.0
        now_s = self._clock_s()
        self._attrs[attr.ino] = _Told(now_s, now_s + left_s + ARRIVAL_S)
        return left_s

    def name_s(self, parent: int, name: bytes, ino: int) -> float:
        """How long it may believe that a name means this."""
        if not self._epochs:
            return 0.0
        left_s = self._leased.name_left_s(parent, name, ino) - MARGIN_S
        if left_s <= 0:
            return 0.0
        if self._cool.get(parent, 0.0) > self._clock_s():
            return 0.0
        self._names.add(parent)
        return left_s

    def missing_s(self, parent: int, name: bytes) -> float:
        """How long it may believe that there is no such name. Not before it was asked for some times: one that is
        about to be created is not, and creating one that the kernel believes to be missing costs it all names."""
        key = parent, name
        asked = self._asked.pop(key, 0) + 1
        self._asked[key] = asked
        if len(self._asked) > ASKED_MAX:
            self._asked.popitem(last=False)
        if asked < NEGATIVE_AFTER:
            return 0.0
        left_s = self.name_s(parent, name, 0)
        if left_s:
            self._missing.add(key)
        return left_s

    # --- forgetting ---------------------------------------------------------------------------------------------

    def creating(self, parent: int, name: bytes) -> None:
        """This name is about to come into being."""
        self._asked.pop((parent, name), None)
        if (parent, name) in self._missing:
            self._forget_names()

    def expire(self, inos: Collection[int]) -> None:
        """These are about to be changed from here: have their attributes asked for again. Does not wait."""
        told = self._take(inos)
        if told:
            self._invalidate(told)

    async def forget(self, inos: Collection[int]) -> None:
        """Return when nothing of these inodes is believed any more."""
        self._view.doubt(inos)
        if not self._names.isdisjoint(inos):
            for ino in self._names.intersection(inos):
                self._cool[ino] = self._clock_s() + COOL_S
            while len(self._cool) > COOL_MAX:
                del self._cool[next(iter(self._cool))]
            self._forget_names()
        await self._forget_attrs(self._take(inos))

    async def forget_all(self) -> None:
        """Return when nothing is believed any more."""
        self._view.doubt_all()
        if self._names:
            self._forget_names()
        await self._forget_attrs(self._take(list(self._attrs)))

    def _take(self, inos: Iterable[int]) -> dict[int, _Told]:
        """What the kernel believes now of some inodes, and will not any more."""
        now_s = self._clock_s()
        taken = {ino: told for ino in inos if (told := self._attrs.pop(ino, None)) is not None}
        return {ino: told for ino, told in taken.items() if told.until_s > now_s}

    async def _forget_attrs(self, told: dict[int, _Told]) -> None:
        inos = set(told)
        if inos:
            wait_s = max(one.at_s for one in told.values()) + ARRIVAL_S - self._clock_s()
            if wait_s > 0:
                await trio.sleep(wait_s)
        end = trio.current_time() + AGAIN_S
        pause_s = AGAIN_S_MIN
        while inos:
            if len(inos) <= INLINE_MAX:
                unknown = self._invalidate(inos)
            else:
                unknown = await trio.to_thread.run_sync(self._invalidate, inos)
            inos = {ino for ino in unknown if self._view.knows(ino)}
            if not inos or trio.current_time() >= end:
                return
            self._counts["again"] += len(inos)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S_MAX)

    def _invalidate(self, inos: Iterable[int]) -> list[int]:
        """Return those that the kernel does not know. Waits for nobody; also in a thread."""
        unknown = []
        with self._lock:
            if not self._open:
                return []
            for ino in inos:
                try:
                    pyfuse3.invalidate_inode(ino, attr_only=True)
                    self._counts["attributes"] += 1
                except OSError as error:
                    if error.errno == errno.ENOENT:
                        unknown.append(ino)
                    else:
                        log.warning("invalidating attributes failed", ino=ino, error=str(error))
        return unknown

    def _forget_names(self) -> None:
        self._names.clear()
        self._missing.clear()
        with self._lock:
            if self._open:
                self._raise_epoch()

    def _raise_epoch(self) -> bool:
        assert self._fd is not None
        try:
            os.write(self._fd, _EPOCH)
        except OSError as error:
            log.info("the kernel forgets no names on demand, so it is given none to remember", error=str(error))
            return False
        self._counts["epochs"] += 1
        return True

    def statistics(self) -> dict[str, Any]:
        return {"attrs": len(self._attrs), "names": len(self._names), **self._counts}


def fuse_descriptor() -> int | None:
    """The descriptor of /dev/fuse that pyfuse3 serves; None where it cannot be told."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{entry}") == "/dev/fuse":
                found.append(int(entry))
        except OSError:
            continue
    return found[0] if len(found) == 1 else None
