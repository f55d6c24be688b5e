"""Who is gone, and who only may be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.host.identity import certainly_gone, own_identity
from tests.harness import need_fuse, run, wait_for

TELL = "import time; from node.host.identity import own_identity; print(own_identity(), flush=True); time.sleep(600)"


@contextmanager
def sleeper(*wrapped: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process and what it calls itself."""
    with subprocess.Popen([*wrapped, sys.executable, "-c", TELL], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_living_are_not_gone() -> None:
    assert own_identity() == own_identity() != ""
    assert not certainly_gone(own_identity())
    with sleeper() as (process, name):
        assert name != own_identity() and not certainly_gone(name)
        process.send_signal(signal.SIGSTOP)
        assert not certainly_gone(name), "it may go on"
        process.send_signal(signal.SIGCONT)


def test_the_dead_are_gone_reaped_or_not() -> None:
    with sleeper() as (process, name):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert certainly_gone(name)
        process.wait()
        assert certainly_gone(name)


def test_a_pid_that_another_process_has_now() -> None:
    *front, started = own_identity().split("/")
    assert certainly_gone("/".join([*front, str(int(started) - 1)]))


def test_a_thread_that_outlives_its_leader_lives() -> None:
    """The first thread of a process may end before the others: it is a zombie then, and the process is not."""
    code = (
        "import ctypes, threading, time\nfrom node.host.identity import own_identity\n"
        "print(own_identity(), flush=True)\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        "ctypes.CDLL(None).syscall(60 if __import__('os').uname().machine == 'x86_64' else 93, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        try:
            wait_for(lambda: " Z " in Path(f"/proc/{process.pid}/stat").read_text(), 30, "the first thread to end")
            assert not certainly_gone(name)
        finally:
            process.kill()
    assert certainly_gone(name)


@pytest.mark.parametrize("text", ["", "x", "a/b", "//1/2", "a/1/2/x/3", "a/1/2/3/x", "a/1/2/-1/3", "\0/1/2/3/4"])
def test_what_is_no_name_is_never_gone(text: str) -> None:
    assert not certainly_gone(text)


def test_other_hosts_boots_and_namespaces_are_not_judged() -> None:
    with sleeper() as (process, name):
        process.kill()
        process.wait()
    for place in range(3):
        parts = name.split("/")
        parts[place] = "0"
        assert certainly_gone(name) and not certainly_gone("/".join(parts))


@pytest.mark.root
def test_a_process_in_other_namespaces_is_not_judged() -> None:
    need_fuse()
    with sleeper("unshare", "--time", "--boottime", "1000") as (process, name):
        assert name and not certainly_gone(name)
    assert not certainly_gone(name)
    judge = "import sys; from node.host.identity import certainly_gone; print(certainly_gone(sys.argv[1]))"
    assert run("unshare", "--time", "--boottime", "9", sys.executable, "-c", judge, own_identity()).stdout == "False\n"
    hidden = run("unshare", "--pid", "--fork", sys.executable, "-c", judge, own_identity())
    assert hidden.stdout == "False\n", "its /proc shows other processes than kill(2) reaches"
