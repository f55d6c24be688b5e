"""What the kernel may keep of our answers, for how long, and how it is told to forget.

A time-out never exceeds what is left of the leases, less a margin for the way of the reply. Whatever is recalled is
forgotten by calls that wait for nobody (rule 5): attributes inode by inode, names all at once, by raising the epoch of
the mount; entry invalidation would wait for the directory's lock, and so for a handler that waits for the leader.

Replies that the kernel has not looked at yet: it compares attributes from look-ups and getattrs, and names from
look-ups and creations, with what was invalidated after it *asked*, so a recall that overtakes them makes them void.
It does not so with attributes in the replies to changes, nor with names in directory pages: those get no time. And an
inode that it does not know yet it cannot forget: it is told again until it can.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import pyfuse3
import trio

from metadata.api import Attr
from node.host.logging import get_logger

log = get_logger(__name__)

MARGIN_S = 0.5  # between the end of what the kernel believes and the end of our leases
INLINE_MAX = 16  # inodes; a thread hop costs as much as many of them
NEGATIVE_AFTER = 3  # a missing name that was asked for so often is believed to be missing by the kernel too
ASKED_MAX = 4096
AGAIN_S_MIN = 0.0005
AGAIN_S_MAX = 0.05
AGAIN_S = 1.0  # in all, until an inode that is not known is believed to be none

_EPOCH = struct.pack("<IiQ", 16, 8, 0)  # length, notification FUSE_NOTIFY_INC_EPOCH, no request


class Leased(Protocol):
    """How long answers stay true: fusefs.client.volume.Volume."""

    def attr_left_s(self, attr: Attr) -> float: ...

    def name_left_s(self, parent: int, name: bytes, ino: int) -> float: ...


class KernelCache:
    """The kernel's caches of one mount. ``knows(ino)``: whether a reply gave the kernel this inode, and it has not
    given it back. ``fd``: of /dev/fuse; None, or an old kernel: names are never cached there."""

    def __init__(self, leased: Leased, knows: Callable[[int], bool], fd: int | None) -> None:
        self._leased = leased
        self._knows = knows
        self._attrs: set[int] = set()  # inodes whose attributes the kernel may believe
        self._names: set[int] = set()  # directories in which the kernel may believe a name
        self._missing: set[tuple[int, bytes]] = set()  # of them, names that it may believe to be missing
        self._asked: OrderedDict[tuple[int, bytes], int] = OrderedDict()  # missing names -> how often
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
        self._attrs.add(attr.ino)
        return left_s

    def name_s(self, parent: int, name: bytes, ino: int) -> float:
        """How long it may believe that a name means this."""
        if not self._epochs:
            return 0.0
        left_s = self._leased.name_left_s(parent, name, ino) - MARGIN_S
        if left_s <= 0:
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
        told = self._attrs.intersection(inos)
        if told:
            self._attrs -= told
            self._invalidate(told)

    async def forget(self, inos: Collection[int]) -> None:
        """Return when nothing of these inodes is believed any more."""
        told = self._attrs.intersection(inos)
        self._attrs -= told
        if not self._names.isdisjoint(inos):
            self._forget_names()
        await self._forget_attrs(told)

    async def forget_all(self) -> None:
        """Return when nothing is believed any more."""
        told, self._attrs = self._attrs, set()
        if self._names:
            self._forget_names()
        await self._forget_attrs(told)

    async def _forget_attrs(self, inos: set[int]) -> None:
        end = trio.current_time() + AGAIN_S
        pause_s = AGAIN_S_MIN
        while inos:
            if len(inos) <= INLINE_MAX:
                unknown = self._invalidate(inos)
            else:
                unknown = await trio.to_thread.run_sync(self._invalidate, inos)
            inos = {ino for ino in unknown if self._knows(ino)}
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
