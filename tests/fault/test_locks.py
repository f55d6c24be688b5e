"""Locks when things die: the leader while programs wait, the program that holds, the mount that it holds by."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import FUSEFS, Cluster, cluster, need_fuse, run, wait_for

PROGRAM = """
import fcntl, sys
f = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(f, fcntl.LOCK_EX)
open(sys.argv[3], "w").close()
sys.stdin.read()
"""


@contextmanager
def program(path: Path, how: str, said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Lock a file, then make another: ``said``."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), how, str(said)], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def leader(made: Cluster) -> str:
    def found() -> str | None:
        names = [member["name"] for member in made.status()["members"] if member["role"] == "leader"]
        return names[0] if names else None

    name: str = wait_for(found, 60, "a leader")
    return name


def taken(path: Path, how: str) -> bool:
    with open(path, "r+b") as file:
        try:
            getattr(fcntl, how)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.timeout(300)
def test_locks_outlive_leaders_and_end_with_their_mount(tmp_path: Path) -> None:
    need_fuse()
    with cluster(tmp_path / "data", members=3) as made:
        a, b = made.mount(tmp_path / "a"), made.mount(tmp_path / "b")
        for how in ("flock", "lockf"):
            (a / how).write_bytes(b"x")
        said = {(how, who): tmp_path / f"{how}-{who}" for how in ("flock", "lockf") for who in ("holder", "waiter")}
        with (
            program(a / "flock", "flock", said["flock", "holder"]) as holder,
            program(a / "lockf", "lockf", said["lockf", "holder"]),
        ):
            for how in ("flock", "lockf"):
                wait_for(said[how, "holder"].exists, 60, "the first locks")
            with (
                program(b / "flock", "flock", said["flock", "waiter"]),
                program(b / "lockf", "lockf", said["lockf", "waiter"]),
            ):
                wait_for(lambda: taken(b / "flock", "flock") and taken(b / "lockf", "lockf"), 60, "locks to be seen")
                name = leader(made)
                made.kill(made.server_pids()[name])
                assert taken(b / "flock", "flock") and taken(b / "lockf", "lockf"), "the next leader knows them"
                assert not said["flock", "waiter"].exists() and not said["lockf", "waiter"].exists()
                holder.kill()
                wait_for(said["flock", "waiter"].exists, 60, "the turn of who waits, though the leader changed")

                pids = [pid for pid in made.pids() if str(a) in Path(f"/proc/{pid}/cmdline").read_text()]
                made.kill(*pids)
                assert taken(b / "lockf", "lockf"), "nobody may take the locks of a mount that may live"
                run(FUSEFS, "mount", made.config, a)
                wait_for(said["lockf", "waiter"].exists, 150, "the locks of a dead mount to end")


CHANGES = """
import errno, fcntl, os, sys
with open(sys.argv[1], "r+b") as file:
    getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    for _ in range(2):
        sys.stdin.readline()
        try:
            os.unlink(sys.argv[3])
            print("removed", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno], flush=True)
"""


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_who_has_lost_a_lock_hears_of_it_before_changing_names(tmp_path: Path, how: str) -> None:
    """What it removes by name would be the work of whoever has the lock now."""
    need_fuse()
    with cluster(tmp_path / "data") as made:
        a, b = made.mount(tmp_path / "a"), made.mount(tmp_path / "b")
        (a / "lock").write_bytes(b"x")
        command = [sys.executable, "-c", CHANGES, str(a / "lock"), how, str(a / "journal")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as holder:
            assert holder.stdin is not None and holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            pid = made.mount_pid(a)
            os.kill(pid, signal.SIGSTOP)
            try:
                with open(b / "lock", "r+b") as file:
                    getattr(fcntl, how)(file, fcntl.LOCK_EX)
                    (b / "journal").write_bytes(b"of who has the lock now")
                    holder.stdin.write("\n")
                    os.kill(pid, signal.SIGCONT)
                    assert holder.stdout.readline() == "EIO\n"
                    assert (b / "journal").read_bytes() == b"of who has the lock now"
                    holder.stdin.write("\n")
                    assert holder.stdout.readline() == "removed\n", "it has been told"
            finally:
                os.kill(pid, signal.SIGCONT)
        assert holder.returncode == 1, "close(2) tells it as well"
