"""Programs that held locks when the session ended hear of it before they change anything by name."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fusefs.mount.misled import Misled, process_of
from node.wire.errors import Code, FsError

PROCESSES = {10: (10, 1), 11: (10, 1), 20: (20, 11), 30: (30, 1), 1: (1, 0)}  # 11 is a thread of 10


class Opened:
    """A handle, as far as it matters."""

    def __init__(self) -> None:
        self.closed = False
        self.file = SimpleNamespace(told=False)


def handle() -> Any:
    return Opened()


@pytest.fixture
def misled() -> Misled:
    return Misled(lambda thread: PROCESSES.get(thread, (0, 0)))


def refused(misled: Misled, thread: int) -> bool:
    try:
        misled.changes(thread)
    except FsError as error:
        assert error.code is Code.IO
        return True
    return False


@pytest.mark.parametrize("thread", [10, 11, 20])
def test_the_first_change_is_refused(misled: Misled, thread: int) -> None:
    """Also one of another thread, or of a process below."""
    assert not refused(misled, thread)
    misled.lost([11], [handle()])
    assert not refused(misled, 30) and not refused(misled, 99)
    assert refused(misled, thread)
    assert not refused(misled, thread) and not refused(misled, 10)


def test_who_has_heard_of_it_is_not_told_again(misled: Misled) -> None:
    closed, used, other = handle(), handle(), handle()
    misled.lost([10], [closed])
    misled.lost([30], [used, other])
    closed.closed = used.file.told = True
    assert not refused(misled, 10) and not refused(misled, 30)


def test_who_has_closed_one_of_two_files_is_told(misled: Misled) -> None:
    one, two = handle(), handle()
    misled.lost([10], [one])
    misled.lost([10], [two])
    one.closed = True
    assert refused(misled, 10)


def test_processes_are_known() -> None:
    assert process_of(os.getpid()) == (os.getpid(), os.getppid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_of(child.pid) == (child.pid, os.getpid())
        assert child.stdin is not None
        child.stdin.close()
    assert process_of(child.pid) == (0, 0)
