"""What a command sees of the processes it starts and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from fusefs.cli.layout import layout_of
from fusefs.cli.processes import Child, Ending, Notifications, command_of


def child(tmp_path: Path, text: str = "", before: str = "") -> Child:
    log = tmp_path / "x.log"
    log.write_text(before + text)
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    return Child("x", process, os.pidfd_open(process.pid), log, len(before))


def end(one: Child) -> None:
    one.process.kill()
    one.process.communicate()
    os.close(one.pidfd)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("info: starting\nfusefs-chunk: disk on fire\n\n", "fusefs-chunk: disk on fire"),
        ("  | Traceback\n    | ValueError: no\n    +------------------------------------\n", "ValueError: no"),
    ],
)
def test_the_last_words_are_of_this_start(text: str, words: str, tmp_path: Path) -> None:
    one = child(tmp_path, text, before="an earlier life\n")
    assert one.last_words() == words
    end(one)


SENDER = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    s.connect("\\0" + sys.argv[1][1:])
    s.send(b"STATUS=replaying\\nEXTEND_TIMEOUT_USEC=5000000")
    s.send(b"READY=1")
"""


def send_from_process(address: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SENDER, address])


async def test_notifications_count_only_from_children(tmp_path: Path) -> None:
    notifications = Notifications()
    mine, stranger = child(tmp_path), os.getpid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.connect("\0" + notifications.address[1:])
        other.send(b"READY=1")  # from this process, which is not a child
        sender = send_from_process(notifications.address)
        mine.process, started = sender, mine.process
        children = {sender.pid: mine}
        with trio.fail_after(20):
            assert await notifications.receive(children) is mine
            assert (mine.ready, mine.status) == (False, "replaying")
            assert mine.extended_until > time.monotonic() + 1
            await notifications.receive(children)
        assert mine.ready and stranger not in children
        sender.wait()
        mine.process = started
    notifications.close()
    end(mine)


def test_an_ending_is_seen_by_process_and_lock(tmp_path: Path) -> None:
    one = child(tmp_path)
    held: list[int | None] = [one.process.pid]
    ending = Ending(lambda: held[0])
    assert ending.pid == one.process.pid
    assert not Ending(lambda: held[0]).wait(0.01), "it lives"
    ending.terminate()
    assert one.process.wait(20) == -signal.SIGTERM
    held[0] = None
    assert ending.wait(20)
    ending.terminate()
    end(one)


def test_nobody_is_waited_for_when_nobody_is_there() -> None:
    nobody = Ending(lambda: None)
    nobody.terminate()
    assert nobody.wait(0)


def test_the_command_line_of_a_server_names_its_cluster(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    for name, module in (("metadata-2", "metadata.server"), ("storage-1", "storage.server")):
        command = command_of(layout, name)
        assert module in command and str(tmp_path / "cluster.toml") in command and command[-1] == name
