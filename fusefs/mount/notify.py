"""Notifications to the kernel, as writes to /dev/fuse: forget attributes, pages, one name, all names, inodes; or take
pages.

Forgetting attributes, and forgetting all names, waits for nobody. Forgetting one name waits for the lock of its
directory, and so for whatever request holds it: only from a thread. Forgetting pages, and inodes, waits for pages
likewise, and so does giving pages, of a file that has some.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence

import pyfuse3

from fusefs.mount.crossing import Crossings
from node.host.logging import get_logger
from node.wire.types import Buffer

log = get_logger(__name__)

CLOSE_S = 1.0

_HEADER = struct.Struct("<IiQ")  # length, notification, no request
_INVAL_INODE, _INVAL_ENTRY, _INC_EPOCH, _PRUNE = 2, 3, 8, 9
_RANGE = struct.Struct("<Qqq")  # inode, where its pages begin that go, and how many bytes of it; 0: all that follow
_PRUNED = struct.Struct("<IIQ")  # how many inodes follow
_ENTRY = struct.Struct("<QII")  # directory, length of the name, flags
_EXPIRE_ONLY = 1  # look it up again, but keep it, its pages and what is mounted on it
_EPOCH = _HEADER.pack(_HEADER.size, _INC_EPOCH, 0)
_GONE = (errno.ENOENT, errno.ENOTDIR)  # nothing there to forget
_ENDED = (errno.ENOTCONN, errno.ENODEV, errno.EPERM, errno.EBADF)  # the mount is going away


class Notifier:
    """The way to the kernel of one mount. ``fd``: of /dev/fuse; None: names and inodes cannot be forgotten. Not
    ``names_too``: names shall not be."""

    def __init__(
        self, fd: int | None, *, names_too: bool = True, crossings: Crossings | None = None
    ) -> None:
        self._crossings = crossings or Crossings()
        self._fd = fd
        self._open = True
        self._writing = 0
        self._quiet = threading.Condition()
        self.counts = {"attributes": 0, "names": 0, "epochs": 0, "inodes": 0, "pages": 0, "stored": 0}
        self.names_too = names_too and fd is not None and self.forget_all_names()

    def close(self) -> bool:
        """The kernel has let go, or is about to: it is told nothing from now on. False: a thread still waits for a
        lock, which somebody holds who waits for an answer of ours."""
        with self._quiet:
            self._open = False
            return self._quiet.wait_for(lambda: not self._writing, CLOSE_S)

    def _begin(self) -> bool:
        with self._quiet:
            self._writing += self._open
            return self._open

    def _end(self) -> None:
        with self._quiet:
            self._writing -= 1
            self._quiet.notify_all()

    def forget_attributes(self, inos: Iterable[int]) -> list[int]:
        """Return those that the kernel does not know."""
        unknown: list[int] = []
        if not self._begin():
            return unknown
        try:
            for ino in inos:
                try:
                    with self._crossings.invalidating(ino):
                        pyfuse3.invalidate_inode(ino, attr_only=True)
                    self.counts["attributes"] += 1
                except OSError as error:
                    if error.errno == errno.ENOENT:
                        unknown.append(ino)
                    else:
                        log.warning("invalidating attributes failed", ino=ino, error=str(error))
        finally:
            self._end()
        return unknown

    @property
    def pieces(self) -> bool:
        """Whether pages of a part of a file can be forgotten."""
        return self._fd is not None

    def forget_pages(self, ino: int, start: int = 0, end: int | None = None) -> None:
        """Have pages written back and dropped; ``end`` None: all from ``start`` on. Waits for pages that are locked."""
        if not self._begin():
            return
        try:
            with self._crossings.invalidating(ino):
                if self._fd is None:
                    pyfuse3.invalidate_inode(ino)
                else:
                    body = _RANGE.pack(ino, start, 0 if end is None else end - start)
                    os.write(self._fd, _HEADER.pack(_HEADER.size + len(body), _INVAL_INODE, 0) + body)
            self.counts["pages"] += 1
        except OSError as error:
            if error.errno not in _GONE and error.errno not in _ENDED:
                log.warning("dropping pages failed", ino=ino, error=str(error))
        finally:
            self._end()

    def forget_names(self, names: Mapping[int, Sequence[bytes]]) -> None:
        """Have names looked up again. Waits for the locks of their directories."""
        for parent, children in names.items():
            for name in children:
                if not self._begin():
                    return
                try:
                    self._forget_name(parent, name)
                finally:
                    self._end()

    def _forget_name(self, parent: int, name: bytes) -> None:
        assert self._fd is not None
        body = _ENTRY.pack(parent, len(name), _EXPIRE_ONLY) + name + b"\0"
        self.counts["names"] += 1
        try:
            os.write(self._fd, _HEADER.pack(_HEADER.size + len(body), _INVAL_ENTRY, 0) + body)
        except OSError as error:
            if error.errno not in _GONE and error.errno not in _ENDED:
                log.warning("invalidating a name failed", parent=parent, error=str(error))

    def forget_all_names(self) -> bool:
        """Make every name of the mount void, at once. False: this kernel cannot."""
        lacking = "the kernel forgets no names on demand, so it is given none to remember"
        return self._ask("epochs", 1, _EPOCH, lacking)

    def store(self, ino: int, data: Buffer) -> bool:
        """Put what a file consists of into its pages; return whether all of it is there. Waits for pages that are being
        read: only where the file has none."""
        if not self._begin():
            return False
        try:
            pyfuse3.notify_store(ino, 0, bytes(data))
        except OSError as error:
            if error.errno not in _GONE and error.errno not in _ENDED:
                log.info("the kernel does not take pages", ino=ino, error=str(error))
            return False
        finally:
            self._end()
        self.counts["stored"] += 1
        return True

    def prune(self, inos: Sequence[int]) -> bool:
        """Have inodes forgotten that nobody uses. Waits for pages that are being read. False: this kernel cannot."""
        body = _PRUNED.pack(len(inos), 0, 0) + struct.pack(f"<{len(inos)}Q", *inos)
        message = _HEADER.pack(_HEADER.size + len(body), _PRUNE, 0) + body
        lacking = "the kernel forgets no inodes on demand: memory for them is not bounded"
        return self._ask("inodes", len(inos), message, lacking)

    def _ask(self, counted: str, count: int, message: bytes, lacking: str) -> bool:
        """Send what an older kernel does not know; then ``lacking`` is logged, and this returns False."""
        if self._fd is None or not self._begin():
            return False
        try:
            os.write(self._fd, message)
        except OSError as error:
            log.info(lacking, error=str(error))
            return False
        finally:
            self._end()
        self.counts[counted] += count
        return True


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
