"""flock(2) and fcntl(2) locks hold between mounts, and end when they must."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.harness import LONG, Cluster, seed, wait_for

# Locks a file as it is told, says so, and waits: argv is the path, flock|lockf, the operation and perhaps a length
HOLDER = """
import fcntl, sys
f = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(f, int(sys.argv[3]), *map(int, sys.argv[4:]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(work: Path, second_mount: Path) -> Path:
    """The same directory through the second mount."""
    return second_mount / work.name


@contextmanager
def holder(
    path: Path, how: str = "flock", operation: int = fcntl.LOCK_EX, *rest: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that locks ``path``; it may have to wait for that."""
    arguments = [str(path), how, str(operation), *map(str, rest)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def locked(*processes: subprocess.Popen[bytes], timeout_s: float = 30) -> list[subprocess.Popen[bytes]]:
    """Who has the lock, waiting until one of them says so."""
    ready = select.select([process.stdout for process in processes], [], [], timeout_s)[0]
    return [process for process in processes if process.stdout in ready and os.read(process.stdout.fileno(), 100)]


def free(file: IO[bytes], how: str = "flock") -> bool:
    """Whether a lock can be had at once; then it is given back."""
    try:
        getattr(fcntl, how)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    getattr(fcntl, how)(file, fcntl.LOCK_UN)
    return True


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_a_lock_excludes_the_other_mount_until_given_up(work: Path, other: Path, how: str) -> None:
    (work / "f").write_bytes(b"x")
    with open(work / "f", "r+b") as a, open(other / "f", "r+b") as b:
        for first, second in ((a, b), (b, a)):
            getattr(fcntl, how)(first, fcntl.LOCK_EX)
            assert not free(second, how)
            getattr(fcntl, how)(first, fcntl.LOCK_UN)
            assert free(second, how)
            getattr(fcntl, how)(first, fcntl.LOCK_SH)
            getattr(fcntl, how)(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
            getattr(fcntl, how)(second, fcntl.LOCK_UN)
            getattr(fcntl, how)(first, fcntl.LOCK_UN)


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_who_waits_gets_it_when_the_holder_lets_go_or_dies(work: Path, other: Path, how: str) -> None:
    (work / "f").write_bytes(b"x")
    with holder(work / "f", how) as first:
        assert locked(first)
        with holder(other / "f", how) as second, holder(work / "f", how) as third:
            assert locked(second, third, timeout_s=0.3) == []
            first.kill()
            winner, = locked(second, third)
            loser = third if winner is second else second
            winner.kill()
            assert locked(loser) == [loser]


def test_a_signal_ends_the_wait_and_nothing_is_left(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"x")

    class Alarm(Exception):
        pass

    def rise(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, rise)
    try:
        for how in ("flock", "lockf"):
            with open(work / "f", "r+b") as a, holder(other / "f", how) as process:
                assert locked(process)
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(Alarm):
                    getattr(fcntl, how)(a, fcntl.LOCK_EX)
                process.kill()
                with open(other / "f", "r+b") as b:
                    wait_for(lambda b=b, how=how: free(b, how), 30, "the lock to be free")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_fcntl_locks_end_at_any_close_and_flocks_at_the_last(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"x")
    with open(other / "f", "r+b") as b:
        a = open(work / "f", "r+b")
        fcntl.lockf(a, fcntl.LOCK_EX)
        open(work / "f", "rb").close()
        assert free(b, "lockf")
        fcntl.flock(a, fcntl.LOCK_EX)
        copy = os.dup(a.fileno())
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        a.close()
        assert not free(b)
        os.close(copy)
        wait_for(lambda: free(b), 30, "the flock to end with the last descriptor")
        with open(work / "f", "rb") as again:  # at once, on the mount that closed it
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_closing_a_descriptor_for_reading_ends_the_locks_of_its_process(work: Path, other: Path) -> None:
    (work / "f").touch()
    with open(other / "f", "r+b") as elsewhere:
        with open(work / "f", "rb") as f:
            fcntl.lockf(f, fcntl.LOCK_SH)
            assert not free(elsewhere, "lockf")
        assert free(elsewhere, "lockf")
        with open(work / "f", "r+b") as f:
            fcntl.lockf(f, fcntl.LOCK_EX)
            open(work / "f", "rb").close()
            assert free(elsewhere, "lockf")


def test_a_child_does_not_inherit_fcntl_locks(work: Path) -> None:
    (work / "f").write_bytes(b"x")
    with open(work / "f", "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX)
        child = os.fork()
        if not child:
            os._exit(0 if not free(f, "lockf") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_open_file_description_locks_end_with_the_last_descriptor(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"x")
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(other / "f", "r+b") as b:
        a = open(work / "f", "r+b")
        fcntl.fcntl(a, 37, whole)  # F_OFD_SETLK
        open(work / "f", "rb").close()
        assert not free(b, "lockf")
        a.close()
        wait_for(lambda: free(b, "lockf"), 30, "the lock to end with the description")


def test_getlk_tells_who(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"x" * 100)
    with holder(work / "f", "lockf", fcntl.LOCK_EX, 10) as process:
        assert locked(process)
        for directory, pid in ((work, process.pid), (other, 0)):
            with open(directory / "f", "r+b") as f:
                asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 5, 50, 0)
                answer = struct.unpack("hhqqi4x", fcntl.fcntl(f, fcntl.F_GETLK, asked))
                assert answer == (fcntl.F_WRLCK, os.SEEK_SET, 0, 10, pid)


def test_a_deadlock_between_mounts_is_told(work: Path, other: Path) -> None:
    (work / "f").write_bytes(b"x" * 100)
    with open(work / "f", "r+b") as a, open(other / "f", "r+b") as b:
        fcntl.lockf(a, fcntl.LOCK_EX, 1, 0)
        child = os.fork()
        if not child:
            with open(other / "f", "r+b") as mine:
                fcntl.lockf(mine, fcntl.LOCK_EX, 1, 1)
                os.write(b.fileno(), b"y")
                os.fsync(b.fileno())
                try:
                    fcntl.lockf(mine, fcntl.LOCK_EX, 1, 0)
                except OSError as error:
                    os._exit(error.errno or 1)
                os._exit(0)
        wait_for(lambda: os.pread(a.fileno(), 1, 0) == b"y", 30, "the child to have its lock")
        mine = 0
        try:
            fcntl.lockf(a, fcntl.LOCK_EX, 1, 1)
        except OSError as error:
            mine = error.errno or 1
            fcntl.lockf(a, fcntl.LOCK_UN, 1, 0)
        theirs = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert sorted((mine, theirs)) == [0, errno.EDEADLK]


@pytest.mark.parametrize("number", range(20 if LONG else 3))
def test_ranges_behave_as_on_tmpfs(work: Path, other: Path, number: int) -> None:
    """The same random locks of two processes, one on each mount, and on a local directory."""
    rng = random.Random(seed("lock ranges") + number)
    local = Path("/dev/shm") / f"fusefs-locks-{os.getpid()}-{number}"
    steps = [(rng.randrange(2), rng.choice((fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN)), rng.randrange(20),
              rng.randrange(0, 20)) for _ in range(40)]
    try:
        local.write_bytes(b"x")
        (work / "f").write_bytes(b"x")
        assert _play(steps, (work / "f", other / "f")) == _play(steps, (local, local))
    finally:
        local.unlink()


PLAYER = """
import fcntl, sys
f = open(sys.argv[1], "r+b")
for line in sys.stdin:
    operation, start, length = map(int, line.split())
    try:
        fcntl.lockf(f, operation | (0 if operation == fcntl.LOCK_UN else fcntl.LOCK_NB), length, start)
        print("yes", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def _play(steps: list[tuple[int, int, int, int]], paths: tuple[Path, Path]) -> list[str]:
    players = [
        subprocess.Popen(
            [sys.executable, "-c", PLAYER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for path in paths
    ]
    answers = []
    try:
        for who, operation, start, length in steps:
            player = players[who]
            assert player.stdin is not None and player.stdout is not None
            player.stdin.write(f"{operation} {start} {length}\n")
            player.stdin.flush()
            answers.append(player.stdout.readline())
    finally:
        for player in players:
            player.communicate()
    return answers


APPENDER = """
import fcntl, os, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    with open(path, "r+b", buffering=0) as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        seen = int(f.read() or b"0")
        f.seek(0)
        f.write(b"%d" % (seen + 1))
        fcntl.flock(f, fcntl.LOCK_UN)
    with open(path + ".log", "ab", buffering=0) as log:
        fcntl.lockf(log, fcntl.LOCK_EX)
        log.write(b"%s %d\\n" % (name.encode(), number))
        fcntl.lockf(log, fcntl.LOCK_UN)
"""


def test_counters_and_logs_of_two_mounts_lose_nothing(work: Path, other: Path) -> None:
    count = 200 if LONG else 25
    (work / "f").write_bytes(b"0")
    processes = [
        subprocess.Popen([sys.executable, "-c", APPENDER, str(directory / "f"), name, str(count)])
        for directory, name in ((work, "a"), (other, "b"), (work, "c"))
    ]
    assert [process.wait(100) for process in processes] == [0, 0, 0]
    assert (work / "f").read_bytes() == b"%d" % (3 * count)
    lines = (other / "f.log").read_text().split("\n")[:-1]
    assert sorted(lines) == sorted(f"{name} {number}" for name in "abc" for number in range(count))


TRANSFERS = """
import random, sqlite3, sys
rng = random.Random(int(sys.argv[2]))
db = sqlite3.connect(sys.argv[1], timeout=90, isolation_level=None)
for _ in range(int(sys.argv[3])):
    one, two = rng.sample(range(10), 2)
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE account SET money = money - 1 WHERE id = ?", (one,))
    db.execute("UPDATE account SET money = money + 1 WHERE id = ?", (two,))
    db.execute("INSERT INTO log VALUES (?, ?)", (one, two))
    db.execute("COMMIT")
"""


def test_sqlite_from_two_mounts_at_once(work: Path, other: Path) -> None:
    rounds = 200 if LONG else 8
    db = sqlite3.connect(work / "bank.db")
    with db:
        db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER)")
        db.execute("CREATE TABLE log (one INTEGER, two INTEGER)")
        db.executemany("INSERT INTO account VALUES (?, 100)", [(number,) for number in range(10)])
    db.close()
    processes = [
        subprocess.Popen([sys.executable, "-c", TRANSFERS, str(directory / "bank.db"), str(number), str(rounds)])
        for number, directory in enumerate((work, other, work))
    ]
    assert [process.wait(110) for process in processes] == [0, 0, 0]
    db = sqlite3.connect(other / "bank.db")
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("SELECT sum(money) FROM account").fetchone() == (1000,)
    assert db.execute("SELECT count(*) FROM log").fetchone() == (3 * rounds,)
    db.close()


def test_a_mount_goes_away_while_its_programs_wait(volume: Cluster, work: Path, tmp_path: Path) -> None:
    (work / "f").write_bytes(b"x")
    path = volume.mount(tmp_path / "third")
    with open(work / "f", "r+b") as a:
        fcntl.flock(a, fcntl.LOCK_EX)
        with holder(path / work.name / "f") as waiting, holder(work / "f") as next_one:
            assert locked(waiting, timeout_s=0.5) == []
            (serving,) = [pid for pid in volume.pids() if str(path) in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(serving, signal.SIGTERM)  # it unmounts lazily, because it is in use
            volume.mounts.remove(path)
            waiting.wait(30)
            wait_for(lambda: not Path(f"/proc/{serving}").exists(), 60, "the mount to end")
            fcntl.flock(a, fcntl.LOCK_UN)
            assert locked(next_one)


# Reads all of an open file under a lock, and adds a byte: argv is the path, where its size is told, seconds
GROWER = """
import fcntl, os, sys, time
fd, told = (os.open(path, os.O_RDWR) for path in sys.argv[1:3])
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    fcntl.flock(fd, fcntl.LOCK_EX)
    data, size = os.pread(fd, 1 << 20, 0), int(os.pread(told, 20, 0))
    assert len(data) == size, (len(data), size)
    os.pwrite(fd, b"x", size)
    os.pwrite(told, b"%d" % (size + 1), 0)
    fcntl.flock(fd, fcntl.LOCK_UN)
"""


def test_who_reads_under_a_lock_sees_all_of_it_on_a_busy_machine(work: Path, other: Path, tmp_path: Path) -> None:
    """Who asked for the size has not run yet when the next one asks for the lock, and with it for the file."""
    (work / "f").write_bytes(b"")
    told = tmp_path / "told"
    told.write_bytes(b"0")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    growers = [
        subprocess.Popen([sys.executable, "-c", GROWER, str(path / "f"), str(told), "120" if LONG else "8"])
        for path in (work, other)
    ]
    try:
        assert [grower.wait(300) for grower in growers] == [0, 0]
        assert int(told.read_bytes()) == (work / "f").stat().st_size > 10
    finally:
        for process in (*busy, *growers):
            process.kill()
            process.wait()
