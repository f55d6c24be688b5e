"""One program that works for itself and syncs nothing; and the model that says what a directory is after each step.

    python -m tests.fault.suffix_worker SEED DIRECTORY DONE

All steps follow from the seed. After each one a byte is written to DONE, which lies on another filesystem.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
MANY = 200  # names; beyond, they are removed more often than made
LOGS = 3  # files that stay open while others are worked on
AT_FDCWD = -100
RENAME_EXCHANGE = 2

libc = ctypes.CDLL(None, use_errno=True)


class Step(NamedTuple):
    """A call; ``handle`` names an open file. ``append`` writes at its end through O_APPEND."""

    call: str
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""
    handle: str = ""


class File:
    """An inode: several names may mean it."""

    def __init__(self) -> None:
        self.data = bytearray()


class Model:
    """The directory. What a name means: a file, the target of a symbolic link, or None for a directory."""

    def __init__(self) -> None:
        self.names: dict[str, File | str | None] = {}
        self.opened: dict[str, File] = {}

    def execute(self, step: Step) -> None:
        names, call = self.names, step.call
        if call == "create":
            self.opened[step.handle] = names[step.path] = File()
        elif call in ("open", "open to append"):
            self.opened[step.handle] = self.file(step.path)
        elif call in ("write", "append"):
            _place(self.opened[step.handle].data, step.offset, step.data)
        elif call == "close":
            del self.opened[step.handle]
        elif call == "truncate":
            _resize(self.file(step.path).data, step.offset)
        elif call == "mkdir":
            names[step.path] = None
        elif call == "symlink":
            names[step.path] = step.other
        elif call == "link":
            names[step.other] = names[step.path]
        elif call == "rename" and names[step.path] is not names.get(step.other, step):
            names[step.other] = names.pop(step.path)
        elif call == "exchange":
            names[step.path], names[step.other] = names[step.other], names[step.path]
        elif call == "unlink":
            del names[step.path]

    def file(self, path: str) -> File:
        found = self.names[path]
        assert isinstance(found, File)
        return found


class Work:
    """The steps of a seed, one after the other; ``model`` is what they have made."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._count = 0
        self._steps: list[Step] = []
        self._logs: list[tuple[str, bool]] = []  # handles that stay open, whether they append
        self.model = Model()

    def next(self) -> Step:
        if not self._steps:
            self._steps = self._plan()
        step = self._steps.pop(0)
        self.model.execute(step)
        return step

    def _new(self) -> str:
        """A path that was never used."""
        self._count += 1
        directories = ["", *[path + "/" for path, what in self.model.names.items() if what is None]]
        return f"{self._rng.choice(directories)}{self._count}"

    def _handle(self) -> str:
        self._count += 1
        return str(self._count)

    def _log(self) -> list[Step]:
        """Something is written to a file that stays open, or one more is."""
        rng = self._rng
        if len(self._logs) < LOGS:
            path, handle = self._new(), self._handle()
            self._logs.append((handle, rng.random() < 0.5))
            steps = [Step("create", path, handle=handle)]
            if self._logs[-1][1]:
                steps += [Step("close", handle=handle), Step("open to append", path, handle=handle)]
            return steps
        handle, appends = rng.choice(self._logs)
        if rng.random() < 0.02:
            self._logs.remove((handle, appends))
            return [Step("close", handle=handle)]
        at, data = len(self.model.opened[handle].data), rng.randbytes(rng.choice((10, KIB, 70 * KIB)))
        return [Step("append" if appends else "write", offset=at, data=data, handle=handle)]

    def _plan(self) -> list[Step]:
        rng = self._rng
        if rng.random() < 0.4:
            return self._log()
        files = [path for path, what in self.model.names.items() if isinstance(what, File)]
        kinds = ["file"] * 6 + ["mkdir", "symlink"]
        if files:
            kinds += ["rename", "rename", "link", "append", "append", "overwrite", "truncate", "replace", "replace"]
            kinds += ["exchange"] * (len(files) > 1)
            kinds += ["unlink"] * (20 if len(files) > MANY else 1)
        kind, path = rng.choice(kinds), rng.choice(files or [""])
        if kind == "file":
            size = rng.choice((0, 10, 3 * KIB, 60 * KIB, 200 * KIB, 300 * KIB))
            return self._file(self._new(), size if rng.random() > 0.02 else 9 * MIB + rng.randrange(MIB))
        if kind == "replace":
            new = self._new()
            return [*self._file(new, rng.choice((100, 50 * KIB))), Step("rename", new, path)]
        if kind in ("mkdir", "symlink"):
            return [Step(kind, self._new(), "target")]
        if kind in ("rename", "link"):
            return [Step(kind, path, self._new())]
        if kind == "exchange":  # which no mount does by itself; also of files that stay open
            held = [name for name in files if any(self.model.names[name] is one for one in self.model.opened.values())]
            path = rng.choice(held or files)
            return [Step(kind, path, rng.choice([other for other in files if other != path]))]
        if kind == "unlink":
            return [Step(kind, path)]
        size = len(self.model.file(path).data)
        if kind == "truncate":
            return [Step(kind, path, offset=rng.choice((0, rng.randrange(size + 1), size + rng.randrange(5 * KIB))))]
        at = size if kind == "append" else rng.randrange(size + 1)
        handle, sizes = self._handle(), (5, 500, 90 * KIB)
        writes = [Step("write", offset=at, data=rng.randbytes(rng.choice(sizes)), handle=handle) for _ in range(2)]
        return [Step("open", path, handle=handle), *writes, Step("close", handle=handle)]

    def _file(self, path: str, size: int) -> list[Step]:
        """Made and written from its beginning, in pieces that do not fit into blocks."""
        piece, handle = self._rng.choice((100_000, 64 * KIB, 128 * KIB)), self._handle()
        writes = [
            Step("write", offset=at, data=self._rng.randbytes(min(piece, size - at)), handle=handle)
            for at in range(0, size, piece)
        ]
        return [Step("create", path, handle=handle), *writes, Step("close", handle=handle)]


def _place(data: bytearray, offset: int, new: bytes) -> None:
    _resize(data, max(len(data), offset + len(new)))
    data[offset : offset + len(new)] = new


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def exchange(one: Path, other: Path) -> None:
    """What either name means is what the other did."""
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def main(seed: str, directory: str, done: str) -> None:
    work, top = Work(int(seed)), Path(directory)
    mark = os.open(done, os.O_WRONLY | os.O_APPEND)
    fds: dict[str, int] = {}
    while True:
        step = work.next()
        path = top / step.path
        if step.call == "create":
            fds[step.handle] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        elif step.call == "open":
            fds[step.handle] = os.open(path, os.O_RDWR)
        elif step.call == "open to append":
            fds[step.handle] = os.open(path, os.O_WRONLY | os.O_APPEND)
        elif step.call == "write":
            assert os.pwrite(fds[step.handle], step.data, step.offset) == len(step.data)
        elif step.call == "append":
            assert os.write(fds[step.handle], step.data) == len(step.data)
        elif step.call == "close":
            os.close(fds.pop(step.handle))
        elif step.call == "truncate":
            os.truncate(path, step.offset)
        elif step.call == "mkdir":
            path.mkdir()
        elif step.call == "symlink":
            path.symlink_to(step.other)
        elif step.call == "link":
            os.link(path, top / step.other)
        elif step.call == "rename":
            os.rename(path, top / step.other)
        elif step.call == "exchange":
            exchange(path, top / step.other)
        else:
            path.unlink()
        os.write(mark, b".")


if __name__ == "__main__":
    main(*sys.argv[1:])
