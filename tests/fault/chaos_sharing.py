"""Programs that hand something over between two mounts: each does its part, and looks at what the other has done."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from node.host.paths import fsync_directory
from tests.fault.chaos_journal import RECORD, Missed, Program, Wrong, record_of
from tests.fault.healing_worker import content, write

PAGE = 4096
MESSAGES = 3  # of a step
LOOKS = 50  # until a name that always exists has been met between two renamings
SOUGHT, SEEK_S = 200, 0.005  # the same for the lock


class Sharing(Program):
    """One step of each kind is a method."""

    generation = 0
    reading: tuple[str, int] | None = None  # name and descriptor of what is followed

    def apart(self, what: Callable[[], None]) -> None:
        """Do this in a process of its own: a page that cannot be had kills it."""
        child = os.fork()
        if not child:
            try:
                what()
                os._exit(0)
            except OSError as error:
                os._exit(min(error.errno or 255, 200))
            except Wrong as error:
                self.journal.note("wrong", error)
            finally:
                os._exit(255)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            raise OSError(f"a program that maps the file ended with {status}")

    def queue(self) -> None:
        """A spool directory of each: messages are put there by rename, synced, and taken by the other mount."""
        mine, theirs = (self.top / f"queue-{number}" for number in (self.number, self.other))
        mine.mkdir(exist_ok=True)
        for _ in range(MESSAGES):
            self.serial += 1
            name = f"{self.number}-{self.serial}"
            write(mine / f".{name}", content(name))
            os.rename(mine / f".{name}", mine / name)
            fsync_directory(mine)
            self.journal.note("done queue", name, self.serial)
        sent = [name for name in self.said("done", "queue") if name.startswith(f"{self.other}-")]
        if not sent:
            return
        there = os.listdir(theirs)
        lost = set(sent) - set(there)
        if lost:
            raise Wrong(f"queue: {sorted(lost)} are not listed")
        for name in sent:
            if (theirs / name).read_bytes() != content(name):
                raise Wrong(f"queue: {name} has other bytes")
            self.journal.note("going queue", name)
            os.unlink(theirs / name)

    def tail(self) -> None:
        """Records appended without a sync, which the other mount reads from a file that it keeps open."""
        if not self.checked:
            self.checked, self.generation, self.serial = True, self.rng.getrandbits(30), 0
            self._follow_no_more()
        name = f"tail-{self.number}-{self.generation}"
        with open(self.top / name, "ab", buffering=0) as file:
            for _ in range(5):
                self.serial += 1
                file.write(record_of(self.number, self.serial))
                self.journal.note("shown tail", name, self.serial)
                self._follow()

    def _follow(self) -> None:
        """Read on in the newest file of the other mount."""
        shown = [(name, least) for name, least in self.said("shown", "tail").items() if name[5:6] == str(self.other)]
        if not shown:
            return
        name, least = shown[-1]
        if self.reading is None or self.reading[0] != name:
            self._follow_no_more()
            try:
                self.reading = name, os.open(self.top / name, os.O_RDONLY)
            except FileNotFoundError:
                raise Missed(f"{name} is not there") from None
        data = os.pread(self.reading[1], (least + 100) * RECORD, 0)
        if len(data) < least * RECORD:
            raise Missed(f"{name} has {len(data) / RECORD} records, and had {least} before")
        for at in range(0, len(data), RECORD):
            if data[at : at + RECORD] != record_of(self.other, at // RECORD + 1):
                raise Wrong(f"{name}: record {at // RECORD} of {len(data) / RECORD} is {data[at : at + RECORD]!r}")

    def _follow_no_more(self) -> None:
        if self.reading is not None:
            with contextlib.suppress(OSError):
                os.close(self.reading[1])
            self.reading = None

    def lockfile(self) -> None:
        """Both mounts count under a lock that is a file, made by link(2) and durable."""
        lock, mine = self.top / "lock", self.top / f"lock-{self.number}"
        if not self.checked:  # it may be held from before the mount was hit
            write(mine, b"%d" % self.number)
            with contextlib.suppress(FileNotFoundError):
                if lock.read_bytes() == b"%d" % self.number:
                    self._unlock(lock)
            self.checked = True
        for _ in range(SOUGHT):
            with contextlib.suppress(FileExistsError):
                os.link(mine, lock)
                break
            time.sleep(SEEK_S)
        else:
            return
        fsync_directory(self.top)
        self.checked = False  # until it is given back
        counted = self.top / "counted"
        value = int(counted.read_bytes()) if counted.exists() else 0
        least = max(self.said("done", "lockfile").values(), default=0)
        if value < least:
            raise Wrong(f"lockfile: {value} was counted, and {least} before")
        fresh = self.top / f"counted-{self.number}"
        write(fresh, b"%d" % (value + 1))
        os.rename(fresh, counted)
        fsync_directory(self.top)
        self.journal.note("done lockfile", value + 1, value + 1)
        self._unlock(lock)
        self.checked = True

    def _unlock(self, lock: Path) -> None:
        os.unlink(lock)
        fsync_directory(self.top)

    def watched_pages(self) -> None:
        """Pages written and synced; the other mount's are seen through a mapping for reading."""
        path = self.top / f"watched-{self.number}"
        if not self.checked:
            with open(path, "ab"):
                pass
            os.truncate(path, 16 * PAGE)
            self.checked = True
        self.serial += 10
        self.apart(lambda: self._watch(path, self.top / f"watched-{self.other}"))

    def _watch(self, path: Path, theirs: Path) -> None:
        if not theirs.exists() or theirs.stat().st_size < 16 * PAGE:
            return
        kind = "watched_pages"
        with open(path, "r+b", buffering=0) as file, open(theirs, "rb") as watched:
            with mmap.mmap(watched.fileno(), 16 * PAGE, access=mmap.ACCESS_READ) as mapped:
                for step in range(10):
                    for name, least in self.said("done", kind).items():
                        number, page = map(int, name.split("/"))
                        if number == self.other:
                            (found,) = struct.unpack_from("<Q", mapped, page * PAGE)
                            if found < least:
                                raise Wrong(f"{kind}: {name} is {found}, and {least} was there before")
                    page = self.rng.randrange(16)
                    assert os.pwrite(file.fileno(), struct.pack("<Q", self.serial + step), page * PAGE) == 8
                    os.fsync(file.fileno())
                    self.journal.note("done", kind, f"{self.number}/{page}", self.serial + step)

    def links(self) -> None:
        """A file that has one of two names at any time, and both while it goes over from one to the other."""
        names = [self.top / f"links-{self.number}-{i}" for i in (0, 1)]
        if not self.checked:  # the other program may look for it meanwhile
            made = self.top / f"links-{self.number}-new"
            write(made, content(f"links-{self.number}"))
            os.replace(made, names[0])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(names[1])
            fsync_directory(self.top)
            self.journal.note("done links", f"links-{self.number}", 1)
            self.checked = True
        for old, new in (names, names[::-1]):
            os.link(old, new)
            if (count := os.stat(new).st_nlink) != 2:
                raise Wrong(f"{new.name} has {count} names")
            os.unlink(old)
            if (count := os.stat(new).st_nlink) != 1:
                raise Wrong(f"{new.name} has {count} names, and one was left")
        if f"links-{self.other}" in self.said("done", "links"):
            self._seek(f"links-{self.other}")

    def _seek(self, name: str) -> None:
        for look in range(LOOKS):
            with contextlib.suppress(FileNotFoundError):
                found = (self.top / f"{name}-{look % 2}").read_bytes()
                if found != content(name):
                    raise Wrong(f"{name} has other bytes: {len(found)} of {len(content(name))}, {found[:40]!r}")
                return
        raise Missed(f"{name} has none of its names")
