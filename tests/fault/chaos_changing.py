"""Programs that change what is there: the shape of a file, where a directory lies, attributes. Each looks at what the
other mount has done."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
from pathlib import Path
from typing import NamedTuple

from node.host.paths import fsync_directory
from tests.fault.chaos_journal import Missed, Program, Wrong
from tests.fault.healing_worker import content, write

KIB = 1 << 10
SHAPE_BYTES_MAX = 48 * KIB
WRITE_BYTES_MAX = 4 * KIB
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # modes of fallocate(2)
STEPS = 10
LOOKS = 50  # until what always exists has been met between two renamings

_libc = ctypes.CDLL(None, use_errno=True)


class Change(NamedTuple):
    """A call that makes one state of a file from the one before."""

    call: str
    offset: int = 0
    length: int = 0
    data: bytes = b""
    source: int = 0


class Shape:
    """The states of a file: each follows from the seed and how many changes there were."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.number = 0
        self.data = bytearray()

    def next(self) -> Change:
        """Go on to the next state; return how it is made."""
        self.number += 1
        rng, size = self._rng, len(self.data)
        calls = ["write", "write", "append", "truncate", "punch", "zero", "grow", "copy"]
        call = rng.choice(calls) if 0 < size < SHAPE_BYTES_MAX else rng.choice(("write", "truncate"))
        offset, length = rng.randrange(size + 1), rng.choice((1, 100, 4096, 10_000))
        if call in ("write", "append"):
            if call == "append":
                offset = size
            elif rng.random() < 0.1:
                offset += 3000
            offset = min(offset, SHAPE_BYTES_MAX)
            data = rng.randbytes(rng.randint(1, WRITE_BYTES_MAX))
            self._resize(max(size, offset + len(data)))
            self.data[offset : offset + len(data)] = data
            return Change(call, offset, len(data), data)
        if call == "truncate":
            length = rng.choice((0, offset, min(size + length, SHAPE_BYTES_MAX)))
            self._resize(length)
            return Change(call, 0, length)
        if call in ("punch", "zero"):
            end = min(offset + length, size) if call == "punch" else offset + length
            self._resize(max(size, end))
            self.data[offset:end] = bytes(max(0, end - offset))
            return Change(call, offset, length)
        if call == "grow":
            self._resize(max(size, offset + length))
            return Change(call, offset, length)
        source = rng.randrange(size)
        length = min(length, size - source, abs(offset - source))
        if not length:
            self.data[:1] = b"x"  # where nothing else can be done
            return Change("write", 0, 1, b"x")
        self._resize(max(size, offset + length))
        self.data[offset : offset + length] = self.data[source : source + length]
        return Change(call, offset, length, b"", source)

    def _resize(self, size: int) -> None:
        del self.data[size:]
        self.data += bytes(size - len(self.data))

    def states(self, first: int, last: int) -> list[bytes]:
        """From number ``first`` to ``last``; this goes there."""
        found = []
        while self.number < last:
            if self.number >= first:
                found.append(bytes(self.data))
            self.next()
        return [*found, bytes(self.data)]


def execute(fd: int, appending: int, path: Path, change: Change) -> None:
    """Make a change. ``appending`` is another descriptor of the same file."""
    call, offset, length, data, source = change
    if call == "write":
        assert os.pwrite(fd, data, offset) == length
    elif call == "append":
        assert os.write(appending, data) == length
    elif call == "truncate":
        os.ftruncate(fd, length)
    elif call == "copy":
        assert os.copy_file_range(fd, fd, length, source, offset) == length
    else:
        mode = {"punch": PUNCH_HOLE | KEEP_SIZE, "zero": ZERO_RANGE, "grow": 0}[call]
        if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"fallocate {call} {path}")


def whole(fd: int) -> bytes:
    """Read on until there is nothing more: where a page cannot be had a read ends before it, and the next one says
    why."""
    data = b""
    while more := os.pread(fd, 2 * SHAPE_BYTES_MAX, len(data)):
        data += more
    return data


def check_shape(path: Path, done: int, begun: int) -> None:
    """A file that nobody changes is as it was at some moment, and no older than was synced."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Wrong(f"{path.name} is gone") from None
    states = Shape(int(path.name.split("-")[2])).states(done, begun)
    if data not in states:
        raise Wrong(f"{path.name} has {len(data)} bytes and is in none of the states {done} to {begun}")


class Changing(Program):
    """One step of each kind is a method."""

    shape: Shape
    shaped: Path | None = None
    shape_fds: list[int]
    theirs: tuple[str, Shape] | None = None

    def newest(self, what: str, kind: str, number: int) -> tuple[str, int] | None:
        """The name that a program was told of last, and what."""
        told = [(name, value) for name, value in self.said(what, kind).items() if int(name.split("-")[1]) == number]
        return told[-1] if told else None

    # --- the shape of a file -----------------------------------------------------------------------------------

    def shapes(self) -> None:
        """A file is written, cut, grown, punched and copied within; the other mount's is as it was told to be. It stays
        open: where the mount has lost something every call says so."""
        if not self.checked or self.shaped is None:
            self._anew()
        assert self.shaped is not None
        for _ in range(STEPS):
            self._change(self.shaped)
            self._look()

    def _anew(self) -> None:
        """What is left of the file is what it once was; then comes another one."""
        while self.shape_fds:
            with contextlib.suppress(OSError):
                os.close(self.shape_fds.pop())
        if self.shaped is not None:
            done = self.said("done", "shapes").get(self.shaped.name)
            if done is not None:
                check_shape(self.shaped, done, self.shape.number)
                self.journal.note("going shapes", self.shaped.name)
                os.unlink(self.shaped)
            self.shaped = None
        seed = self.rng.getrandbits(30)
        path = self.top / f"shape-{self.number}-{seed}"
        write(path, b"")
        fsync_directory(self.top)
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            self.shape_fds.append(os.open(path, flags))
        self.shaped, self.shape, self.checked = path, Shape(seed), True
        for what in ("begun", "done", "shown"):
            self.journal.note(what, "shapes", path.name, 0)

    def _change(self, path: Path) -> None:
        fd, appending = self.shape_fds
        change = self.shape.next()
        number = self.shape.number
        self.journal.note("begun shapes", path.name, number)
        execute(fd, appending, path, change)
        self.journal.note("shown shapes", path.name, number)
        if self.rng.random() < 0.3:
            os.fsync(fd)
            self.journal.note("done shapes", path.name, number)
        data = whole(fd)
        if data != self.shape.data:
            raise Wrong(f"{path.name} after change {number}, {change[:3]}, is {self._what(path, data)}")
        if (size := os.stat(path).st_size) != len(data):
            raise Missed(f"{path.name} has {size} bytes after change {number}, {change[:3]}, not {len(data)}")

    def _what(self, path: Path, data: bytes) -> str:
        """How what was found differs from what must be there."""
        states = Shape(int(path.name.split("-")[2])).states(0, self.shape.number)
        same = [number for number, state in enumerate(states) if state == data]
        where = [at for at, (one, other) in enumerate(zip(data, self.shape.data)) if one != other]
        return f"{len(data)} of {len(self.shape.data)} bytes, as after {same}, others from {where[:1]} to {where[-1:]}"

    def _look(self) -> None:
        """At the other mount's, which must be what it was told to be where it was not changed meanwhile."""
        shown = self.newest("shown", "shapes", self.other)
        if shown is None:
            return
        name, number = shown
        try:
            data = (self.top / name).read_bytes()
        except FileNotFoundError:
            if name in self.said("done", "shapes"):
                raise Missed(f"{name} is not there") from None
            return
        if self.newest("begun", "shapes", self.other) != shown:
            return
        if self.theirs is None or self.theirs[0] != name:
            self.theirs = name, Shape(int(name.split("-")[2]))
        shape = self.theirs[1]
        (state,) = shape.states(number, number)
        if data != state:
            raise Missed(f"{name} has {len(data)} bytes and is not what change {number} made of it, {len(state)} bytes")

    # --- where a directory lies --------------------------------------------------------------------------------

    def moved(self) -> None:
        """A directory goes from one parent to another and back, with what is in it."""
        parents = [self.top / f"moved-{self.number}-{i}" for i in (0, 1)]
        if not self.checked:
            self._settle(parents)
        for old, new in (parents, parents[::-1]):
            os.rename(old / "tree", new / "tree")
            self.serial += 1
            path = new / "tree/deep" / f"{self.serial}"
            path.write_bytes(content(path.name))
            if sorted(os.listdir(path.parent)) != sorted(("file", path.name)):
                raise Wrong(f"{path.parent} has {os.listdir(path.parent)}")
            if (old / "tree").exists():
                raise Wrong(f"{old.name}/tree is there, and was moved")
            os.unlink(path)
        if f"moved-{self.other}" in self.said("done", "moved"):
            self._seek_tree()

    def _settle(self, parents: list[Path]) -> None:
        for parent in parents:
            parent.mkdir(exist_ok=True)
        there = [parent / "tree" for parent in parents if (parent / "tree").exists()]
        if not there:
            if f"moved-{self.number}" in self.said("done", "moved"):
                raise Wrong(f"moved-{self.number}: the tree is in neither of its parents")
            (parents[0] / "tree/deep").mkdir(parents=True, exist_ok=True)
            there = [parents[0] / "tree"]
        (tree,) = there
        file = tree / "deep/file"
        if f"moved-{self.number}" in self.said("done", "moved"):
            if file.read_bytes() != content("file"):
                raise Wrong(f"{file} has other bytes")
        else:
            write(file, content("file"))
        for name in set(os.listdir(tree / "deep")) - {"file"}:
            os.unlink(tree / "deep" / name)
        if tree.parent != parents[0]:
            os.rename(tree, parents[0] / "tree")
        for path in (parents[0] / "tree/deep", parents[0] / "tree", parents[0], parents[1], self.top):
            fsync_directory(path)
        self.journal.note("done moved", f"moved-{self.number}", 1)
        self.checked = True

    def _seek_tree(self) -> None:
        for look in range(LOOKS):
            path = self.top / f"moved-{self.other}-{look % 2}/tree/deep/file"
            with contextlib.suppress(FileNotFoundError):
                if path.read_bytes() != content("file"):
                    raise Wrong(f"{path} has other bytes")
                return
        raise Missed(f"the tree of moved-{self.other} is in neither of its parents")

    # --- attributes --------------------------------------------------------------------------------------------

    def attributes(self) -> None:
        """Times and extended attributes, some of them synced."""
        path, theirs = (self.top / f"attributes-{number}" for number in (self.number, self.other))
        if not self.checked:
            if not path.exists():
                if any(name.endswith(f"-{self.number}") for name in self.said("done", "attributes")):
                    raise Wrong(f"{path.name} is gone")
                write(path, b"")
                fsync_directory(self.top)
            self.checked = True
        with open(path, "r+b", buffering=0) as file:
            for _ in range(STEPS):
                self.serial += 1
                what = self.rng.choice(("value", "time"))
                if what == "value":
                    os.setxattr(path, "user.value", b"%d" % self.serial)
                else:
                    os.utime(path, ns=(1, self.serial))
                name = f"{what}-{self.number}"
                self.journal.note("shown attributes", name, self.serial)
                if self.rng.random() < 0.3:
                    os.fsync(file.fileno())
                    self.journal.note("done attributes", name, self.serial)
                for at, number in ((path, self.number), (theirs, self.other)):
                    self._look_at(at, number)

    def _look_at(self, path: Path, number: int) -> None:
        for what in ("value", "time"):
            name = f"{what}-{number}"
            shown, done = (self.said(how, "attributes").get(name, 0) for how in ("shown", "done"))
            if shown and (found := attribute_of(path, what)) < shown:
                error = Wrong if found < done else Missed
                raise error(f"{what} of {path.name} is {found}, and {shown} was shown, {done} synced")


def attribute_of(path: Path, what: str) -> int:
    """What a program has set last; 0 where it was never set."""
    if what == "time":
        found = os.stat(path).st_mtime_ns
        return 0 if found > 1 << 60 else found  # of its creation
    with contextlib.suppress(OSError):
        return int(os.getxattr(path, "user.value"))
    return 0
