"""Open files and directories of this mount."""

from __future__ import annotations

import os


class Handle:
    """One open file description: ``ino`` and the flags it was opened with. Opaque to the mount otherwise."""

    __slots__ = ("ino", "flags", "append")

    def __init__(self, ino: int, flags: int) -> None:
        self.ino = ino
        self.flags = flags
        self.append = bool(flags & os.O_APPEND)


class DirHandle:
    """One open directory and where its reader stands."""

    __slots__ = ("ino",)

    def __init__(self, ino: int) -> None:
        self.ino = ino
