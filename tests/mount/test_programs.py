"""Programs that people trust with their work: git, sqlite, mmap users."""

from __future__ import annotations

import mmap
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from tests.harness import LONG, run

GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main", "-c", "gc.auto=0")


def test_git(work: Path) -> None:
    repository = work / "repository"
    run(*GIT, "init", "-q", repository)
    for i in range(200):
        path = repository / f"d{i % 7}" / f"file{i}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line {i}\n" * (i + 1))
    run(*GIT, "-C", repository, "add", "-A")
    run(*GIT, "-C", repository, "commit", "-qm", "first")
    (repository / "d1/file1").write_text("changed\n")
    assert run(*GIT, "-C", repository, "status", "--short").stdout == " M d1/file1\n"
    run(*GIT, "-C", repository, "commit", "-qam", "second")
    run(*GIT, "-C", repository, "mv", "d2", "moved")
    run(*GIT, "-C", repository, "commit", "-qm", "third")
    run(*GIT, "-C", repository, "repack", "-adq")

    run(*GIT, "clone", "-q", "--no-hardlinks", repository, work / "clone")
    for where in (repository, work / "clone"):
        fsck = run(*GIT, "-C", where, "fsck", "--full", "--strict")
        assert "error" not in fsck.stderr and "missing" not in fsck.stdout
        assert run(*GIT, "-C", where, "status", "--short").stdout == ""
    assert (work / "clone/d1/file1").read_text() == "changed\n"


ROWS = 40 if LONG else 15  # each a transaction, and each of those some ten locks


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
def test_sqlite(work: Path, journal: str) -> None:
    path = work / "data.db"

    def connect() -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=30)
        assert db.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
        db.execute("pragma synchronous=full")
        return db

    db = connect()
    db.execute("create table t (id integer primary key, worker int, body blob)")
    db.commit()

    def insert(worker: int) -> None:
        own = connect()
        for i in range(ROWS):
            with own:
                own.execute("insert into t (worker, body) values (?, ?)", (worker, os.urandom(300 * (i + 1))))
        own.close()

    threads = [threading.Thread(target=insert, args=(w,)) for w in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with db:
        db.execute("delete from t where id % 3 = 0")
    db.execute("vacuum")
    assert db.execute("select count(*) from t").fetchone()[0] == 2 * ROWS
    assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    db.close()
    # another process, another look
    assert run("sqlite3", path, "pragma integrity_check").stdout == "ok\n"


def test_shared_mapping(work: Path) -> None:
    path = work / "mapped"
    path.write_bytes(bytes(3 * 4096 + 100))
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as view:
        view[4090:4100] = b"0123456789"
        view[-1] = 255
        view.flush()
        os.fsync(f.fileno())
    data = path.read_bytes()
    assert data[4090:4100] == b"0123456789" and data[-1] == 255 and len(data) == 3 * 4096 + 100


def test_append_by_many_writers(work: Path) -> None:
    """Every record of O_APPEND writers on one mount is there, whole."""
    path = work / "log"
    record = 64

    def write(worker: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for i in range(100):
            os.write(fd, f"{worker}:{i}".encode().ljust(record - 1, b".") + b"\n")
        os.close(fd)

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    lines = path.read_bytes().splitlines()
    wanted = sorted(f"{w}:{i}".encode() for w in range(4) for i in range(100))
    assert sorted(line.rstrip(b".") for line in lines) == wanted
