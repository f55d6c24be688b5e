"""One program that goes on whatever becomes of its mount, and knows what it must find there.

    python -m tests.fault.chaos_worker KIND MOUNT JOURNAL NUMBER SEED

It ends at SIGTERM, after what it is doing. The journal: see chaos_journal.
"""

from __future__ import annotations

import contextlib
import email
import fcntl
import hashlib
import mmap
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from node.host.paths import fsync_directory
from tests.fault.chaos_changing import Changing, attribute_of, check_shape
from tests.fault.chaos_journal import RECORD, Heard, Journal, Missed, Wrong, record_of
from tests.fault.chaos_sharing import Sharing
from tests.fault.healing_worker import content, read_anew, write
from tests.harness import wait_for

SLOW_S = 5.0
HUNG_S = 60.0
PAGE = 4096
PAGES = 256  # of a database
TREE = Path(email.__file__).parent
BACK_S = 90.0
NAME = "chaos"  # the directory on the mount


def page_of(index: int, version: int) -> bytes:
    head = struct.pack("<QQ", index, version)
    return head + hashlib.shake_128(head).digest(PAGE - len(head))


def value_of(name: str, version: int) -> bytes:
    return b"%d\n" % version + hashlib.shake_128(b"%s %d" % (name.encode(), version)).digest(version * 7919 % 60_000)


def version_in(name: str, data: bytes) -> int:
    """Which version a file that is replaced is; Wrong where it is none."""
    version = int(data.split(b"\n", 1)[0] or b"0")
    if data != value_of(name, version):
        raise Wrong(f"{name}: {len(data)} bytes are not version {version}")
    return version


def check_pages(path: Path, told: dict[str, int]) -> dict[int, int]:
    """Read a database anew: each page is whole and no older than was told. Return what each is."""
    found = {}
    data = read_anew(path)
    for index in range(PAGES):
        page = data[index * PAGE : (index + 1) * PAGE]
        _, version = struct.unpack("<QQ", page[:16]) if len(page) == PAGE else (0, 0)
        least = told.get(f"{path.name}/{index}", 0)
        if version < least or page not in (page_of(index, version), bytes(PAGE), b""):
            raise Wrong(f"{path.name}: page {index} is {page[:16].hex()}, and was version {least}")
        found[index] = version
    return found


def check_records(data: bytes, told: dict[str, int]) -> None:
    """Every record is whole, none comes twice, those of one program are in their order, and what was told is there."""
    seen: dict[int, list[int]] = {}
    if len(data) % RECORD:
        raise Wrong(f"records: {len(data)} bytes")
    for at in range(0, len(data), RECORD):
        record = data[at : at + RECORD]
        if b"\0" in record:
            raise Wrong(f"records: zeros at {at} of {len(data)}: {record!r}")
        number, serial = int(record[:2]), int(record[3:13])
        if record != record_of(number, serial):
            raise Wrong(f"records: torn at {at}: {record!r}")
        serials = seen.setdefault(number, [0])
        if serial <= serials[-1]:
            raise Wrong(f"records: {serial} of {number} after {serials[-1]}")
        serials.append(serial)
    for name in told:
        number, serial = map(int, name.split("/"))
        if serial not in seen.get(number, ()):
            raise Wrong(f"records: {serial} of {number} is lost")


def check_table(base: sqlite3.Connection, told: dict[str, int]) -> None:
    """The database is whole, and has what was told."""
    ((said,),) = base.execute("PRAGMA integrity_check")
    if said != "ok":
        raise Wrong(f"sqlite: {said}")
    lost = told.keys() - {f"{number}/{serial}" for number, serial in base.execute("SELECT number, serial FROM t")}
    if lost:
        raise Wrong(f"sqlite: {sorted(lost)} are lost")


class Worker(Sharing, Changing):
    """A step of each kind is what a user's program does, with its checks."""

    def __init__(self, kind: str, mount: Path, journal: Path, number: int, rng: random.Random) -> None:
        self.top, self.number, self.rng, self.kind = mount / NAME, number, rng, kind
        self.journal = Journal(journal)
        self.heard = Heard([journal.with_name(f"{kind}-{number}") for number in (1, 2)])
        self.other = 3 - number
        self.serial = 0
        self.began = 0.0  # what it is doing
        self.versions: dict[int, int] = {}  # of pages, as this program has written them
        self.checked = False  # what this program works on, since the mount came back
        self.shape_fds: list[int] = []

    def told(self) -> dict[str, int]:
        return self.said("done", self.kind)

    def run(self, *command: str | Path) -> None:
        """Run a program; OSError where it fails. How long it takes counts by itself."""
        self._went_on(f"{self.kind} before {command[:4]}")
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
        if ended.returncode:
            raise OSError(f"{command[:4]} exited with {ended.returncode}: {(ended.stdout + ended.stderr)[-300:]!r}")

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Note what fails or takes long."""
        self.began = time.monotonic()
        try:
            yield
        except (OSError, Missed) as error:
            how = "missed" if isinstance(error, Missed) else "failed"
            self.journal.note(how, self.began, time.monotonic(), what, error)
            raise
        self._went_on(what)

    def _went_on(self, what: str) -> None:
        now = time.monotonic()
        if now - self.began > SLOW_S:
            self.journal.note("slow", self.began, now, what)
        self.began = now

    # --- one step of each kind ---------------------------------------------------------------------------------

    def files(self) -> None:
        """New files, synced; and one of anybody's read back."""
        self.serial += 1
        name = f"{self.number}-{self.serial}"
        write(self.top / name, content(name))
        self.journal.note("done files", name, self.serial)
        held = list(self.told())
        if self.rng.random() < 0.2:
            mine = self.rng.choice([one for one in held if one.startswith(f"{self.number}-")])
            self.journal.note("going files", mine)
            os.unlink(self.top / mine)
        name = self.rng.choice(held)
        try:
            if read_anew(self.top / name) != content(name):
                raise Wrong(f"{name} has other bytes")
        except FileNotFoundError:
            if name in self.told() and (self.top / ".").exists():
                raise Wrong(f"{name} is gone") from None

    def database(self) -> None:
        """Pages overwritten at random, synced."""
        path = self.top / f"database-{self.number}"
        if not self.versions:
            with open(path, "ab"):
                pass
            os.truncate(path, PAGES * PAGE)
            self.versions = check_pages(path, self.told())
            self.serial = max(self.serial, *self.versions.values())
        with open(path, "r+b", buffering=0) as file:
            for _ in range(20):
                self.serial += 1
                pages = self.rng.sample(range(PAGES), self.rng.choice((1, 5, 30)))
                for index in pages:
                    self.versions[index] = self.serial
                    assert os.pwrite(file.fileno(), page_of(index, self.serial), index * PAGE) == PAGE
                if self.rng.random() < 0.5:
                    index = self.rng.randrange(PAGES)
                    wanted = page_of(index, self.versions[index]) if self.versions[index] else bytes(PAGE)
                    if os.pread(file.fileno(), PAGE, index * PAGE) != wanted:
                        raise Wrong(f"{path.name}: page {index} is not what this program has written")
                os.fdatasync(file.fileno())
                for index in pages:
                    self.journal.note("done database", f"{path.name}/{index}", self.serial)

    def records(self) -> None:
        """Both mounts append to one file."""
        path = self.top / "records"
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            for _ in range(5):
                self.serial += 1
                record = record_of(self.number, self.serial)
                assert os.write(fd, record) == RECORD
                os.fsync(fd)
                self.journal.note("done records", f"{self.number}/{self.serial}", 1)
            told = self.told()
            data = os.pread(fd, 1 << 24, 0)
        finally:
            os.close(fd)
        check_records(data, told)

    def replaced(self) -> None:
        """A file replaced by rename, synced; the other mount's is looked at, too."""
        self.serial += 1
        mine, theirs = f"replaced-{self.number}", f"replaced-{self.other}"
        write(self.top / f".{mine}", value_of(mine, self.serial))
        os.rename(self.top / f".{mine}", self.top / mine)
        fsync_directory(self.top)
        self.journal.note("done replaced", mine, self.serial)
        for name in (mine, theirs):
            least = self.told().get(name, 0)
            if not least:
                continue
            try:
                data = (self.top / name).read_bytes()
            except FileNotFoundError:
                if (self.top / ".").exists():
                    raise Wrong(f"{name} never ceased to exist, and is not there") from None
                raise
            if (version := version_in(name, data)) < least:
                raise Wrong(f"{name} is version {version}, and {least} was there before")

    def mapped(self) -> None:
        """Two mounts write to pages of one mapped file. Where a mount dies a program that looks is killed by SIGBUS."""
        path = self.top / "mapped"
        with open(path, "ab"):
            pass
        if path.stat().st_size < 16 * PAGE:
            os.truncate(path, 16 * PAGE)
        self.serial += 10
        self.apart(lambda: self._map(path))

    def _map(self, path: Path) -> None:
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 16 * PAGE) as mapped:
            for step in range(10):
                told = self.told()
                for name, least in told.items():
                    (found,) = struct.unpack_from("<Q", mapped, int(name) * PAGE)
                    if found < least:
                        raise Wrong(f"mapped: page {name} is {found}, and {least} was there before")
                page = self.rng.randrange(8) * 2 + self.number - 1
                struct.pack_into("<Q", mapped, page * PAGE, self.serial + step)
                mapped.flush(page * PAGE, PAGE)
                self.journal.note("done mapped", page, self.serial + step)

    def counter(self) -> None:
        """Both mounts count under a lock: no number comes twice."""
        fd = os.open(self.top / "counter", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            for _ in range(5):
                fcntl.flock(fd, fcntl.LOCK_EX)
                value, least = int(os.pread(fd, PAGE, 0) or b"0"), max(self.told().values(), default=0)
                if value < least:
                    raise Wrong(f"the counter is {value}, and {least} was there before")
                assert os.pwrite(fd, b"%016d" % (value + 1), 0) == 16
                os.fsync(fd)
                self.journal.note("done counter", value + 1, value + 1)
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def sqlite(self) -> None:
        """Both mounts insert into one table."""
        try:
            with contextlib.closing(sqlite3.connect(self.top / "sqlite", timeout=HUNG_S, isolation_level=None)) as base:
                base.execute("CREATE TABLE IF NOT EXISTS t (number, serial, text, PRIMARY KEY (number, serial))")
                for _ in range(3):
                    self.serial += 1
                    base.execute("INSERT INTO t VALUES (?, ?, ?)", (self.number, self.serial, "x" * 300))
                    self.journal.note("done sqlite", f"{self.number}/{self.serial}", 1)
                told = self.told()
                check_table(base, told)
        except sqlite3.DatabaseError as error:  # it calls a database malformed, too, where it cannot be read
            raise OSError(f"sqlite: {error}") from None

    def copies(self) -> None:
        """cp, diff, tar and rm of a small tree."""
        where = self.top / f"copies-{self.number}"
        self.run("rm", "-rf", where)
        os.mkdir(where)
        self.run("cp", "-r", TREE, where / "one")
        self.run("diff", "-r", TREE, where / "one")
        self.run("sh", "-ec", f"cd '{where}'; tar cf one.tar one; mkdir two; tar xf one.tar -C two")
        self.run("diff", "-r", where / "one", where / "two/one")

    def commits(self) -> None:
        """Commits to a repository, which stays whole: what a mount loses is the end of what was done on it."""
        where = self.top / f"repository-{self.number}"
        if not self.checked or self.rng.random() < 0.2:
            if not where.exists():
                os.mkdir(where)
            self.run("find", where, "-name", "*.lock", "-delete")
            self.run("git", "init", "-q", where)
            head = subprocess.run(["git", "-C", where, "rev-parse", "-q", "--verify", "HEAD"], capture_output=True)
            if not head.returncode:
                self.run("git", "-C", where, "reset", "-q", "--hard")
                self.run("git", "-C", where, "fsck", "--full", "--strict")
            self.checked = True
        self.serial += 1
        name = f"{self.rng.randrange(20)}.txt"
        (where / name).write_bytes(self.rng.randbytes(self.rng.choice((10, 5000, 100_000))).hex().encode())
        self.run("git", "-C", where, "add", name)
        who = "-c", "user.name=a", "-c", "user.email=a@localhost"
        self.run("git", "-C", where, *who, "commit", "-qm", f"{self.serial}")

    # --- all of it ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        try:
            with self.watched(self.kind):
                getattr(self, self.kind)()
        except Wrong as wrong:
            self.journal.note("wrong", wrong)
            self.checked = False
        except (OSError, Missed):
            self.versions.clear()
            self.checked = False
            wait_for(self._is_back, BACK_S, "the mount to come back")

    def _is_back(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(os.listdir(self.top)) or True
        return False


def verify(top: Path, journals: list[Path]) -> int:
    """What must be there in the end, on a fresh mount. Returns how often they were told of something durable."""
    heard = Heard(journals)

    def told(kind: str) -> dict[str, int]:
        return heard.values("done", kind)

    files, database, records, replaced, mapped = map(told, ("files", "database", "records", "replaced", "mapped"))
    for name in files:
        assert read_anew(top / name) == content(name), name
    for path in {top / name.split("/")[0] for name in database}:
        check_pages(path, database)
    if records:
        check_records((top / "records").read_bytes(), records)
    for name, version in replaced.items():
        assert version_in(name, (top / name).read_bytes()) >= version, name
    for name, kind in (("counter", "counter"), ("counted", "lockfile")):
        if last := max(told(kind).values(), default=0):
            counted = heard.each["done", kind]
            assert len(counted) == len(set(counted)), f"{kind}: two have counted to the same number"
            assert int((top / name).read_bytes()) >= last
    if inserted := told("sqlite"):
        with contextlib.closing(sqlite3.connect(top / "sqlite")) as base:
            check_table(base, inserted)
    queue, watched = told("queue"), told("watched_pages")
    for name in queue:
        assert read_anew(top / f"queue-{name[0]}" / name) == content(name), name
    for name, done in told("shapes").items():
        check_shape(top / name, done, heard.values("begun", "shapes")[name])
    for name, value in told("attributes").items():
        what, number = name.split("-")
        assert attribute_of(top / f"attributes-{number}", what) >= value, name
    for name in told("moved"):
        trees = [tree for i in (0, 1) if (tree := top / f"{name}-{i}/tree").exists()]
        assert [(tree / "deep/file").read_bytes() for tree in trees] == [content("file")], name
    pages = {f"mapped/{page}": version for page, version in mapped.items()}
    pages |= {f"watched-{name}": version for name, version in watched.items()}
    for name, version in pages.items():
        file, page = name.split("/")
        assert struct.unpack_from("<Q", (top / file).read_bytes(), int(page) * PAGE)[0] >= version, name
    return sum(len(values) for (what, _), values in heard.each.items() if what == "done")


def main() -> None:
    kind, mount, journal, number, seed = sys.argv[1:]
    worker = Worker(kind, Path(mount), Path(journal), int(number), random.Random(int(seed)))
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    while not told:
        worker.step()
        time.sleep(worker.rng.uniform(0, 0.05))


if __name__ == "__main__":
    main()
