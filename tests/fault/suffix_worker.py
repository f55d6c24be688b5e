"""One program that works for itself and syncs nothing; and the model that says what a directory is after each step.

    python -m tests.fault.suffix_worker SEED DIRECTORY DONE

All steps follow from the seed. After each one a byte is written to DONE, which lies on another filesystem.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
MANY = 200  # names; beyond, they are removed more often than made


class Step(NamedTuple):
    """A call: ``create``, ``open``, ``write`` and ``close`` are about the one open file."""

    call: str
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""


class File:
    """An inode: several names may mean it."""

    def __init__(self) -> None:
        self.data = bytearray()


class Model:
    """The directory. What a name means: a file, the target of a symbolic link, or None for a directory."""

    def __init__(self) -> None:
        self.names: dict[str, File | str | None] = {}
        self.opened = File()

    def execute(self, step: Step) -> None:
        names, call = self.names, step.call
        if call == "create":
            self.opened = names[step.path] = File()
        elif call == "open":
            self.opened = self.file(step.path)
        elif call == "write":
            _place(self.opened.data, step.offset, step.data)
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

    def _plan(self) -> list[Step]:
        rng = self._rng
        files = [path for path, what in self.model.names.items() if isinstance(what, File)]
        kinds = ["file"] * 6 + ["mkdir", "symlink"]
        if files:
            kinds += ["rename", "rename", "link", "append", "append", "overwrite", "truncate", "replace", "replace"]
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
        if kind == "unlink":
            return [Step(kind, path)]
        size = len(self.model.file(path).data)
        if kind == "truncate":
            return [Step(kind, path, offset=rng.choice((0, rng.randrange(size + 1), size + rng.randrange(5 * KIB))))]
        at = size if kind == "append" else rng.randrange(size + 1)
        writes = [Step("write", offset=at, data=rng.randbytes(rng.choice((5, 500, 90 * KIB)))) for _ in range(2)]
        return [Step("open", path), *writes, Step("close")]

    def _file(self, path: str, size: int) -> list[Step]:
        """Made and written from its beginning, in pieces that do not fit into blocks."""
        piece = self._rng.choice((100_000, 64 * KIB, 128 * KIB))
        writes = [
            Step("write", offset=at, data=self._rng.randbytes(min(piece, size - at))) for at in range(0, size, piece)
        ]
        return [Step("create", path), *writes, Step("close")]


def _place(data: bytearray, offset: int, new: bytes) -> None:
    _resize(data, max(len(data), offset + len(new)))
    data[offset : offset + len(new)] = new


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def main(seed: str, directory: str, done: str) -> None:
    work, top = Work(int(seed)), Path(directory)
    mark = os.open(done, os.O_WRONLY | os.O_APPEND)
    fd = -1
    while True:
        step = work.next()
        path = top / step.path
        if step.call == "create":
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        elif step.call == "open":
            fd = os.open(path, os.O_RDWR)
        elif step.call == "write":
            assert os.pwrite(fd, step.data, step.offset) == len(step.data)
        elif step.call == "close":
            os.close(fd)
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
        else:
            path.unlink()
        os.write(mark, b".")


if __name__ == "__main__":
    main(*sys.argv[1:])
