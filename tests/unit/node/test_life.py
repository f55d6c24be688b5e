"""The life of a process: signals, exit codes, notification, logs, metrics."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node.host import notify
from node.host.exitcodes import UsageError
from node.host.http import serve_http
from node.host.logging import get_logger, setup_logging
from node.host.metrics import Metrics

DAEMON = """
import sys, trio
from node.host.daemon import run_daemon
from node.host.logging import setup_logging
from node.wire.errors import Code, FsError

async def main(life):
    what = sys.argv[1]
    if what == "fails":
        raise FsError(Code.FOREIGN_CLUSTER, "the wrong cluster")
    if what == "port":
        raise OSError(98, "Address already in use", "tcp://a:1")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    life.ready("serving")
    print("ready", flush=True)
    if what == "dies":
        raise FsError(Code.IO, "the disk is gone")
    if what == "ends badly":
        life.ending = True
        raise FsError(Code.IO, "not everything could be stored")
    if what == "asks":
        life.request_stop("enough")
    await life.wait_stop()
    print("flushing", flush=True)
    if what == "stuck":
        await trio.sleep_forever()
    if what == "deaf":
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

setup_logging("daemon")
sys.exit(run_daemon("daemon", main, flush_timeout_s=float(sys.argv[2])))
"""


@contextlib.contextmanager
def daemon(what: str, flush_timeout_s: float = 60.0, *options: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, *options, "-c", DAEMON, what, str(flush_timeout_s)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order(number: signal.Signals) -> None:
    with daemon("serves") as process:
        assert line(process) == "ready"
        process.send_signal(number)
        assert line(process) == "flushing"
        assert process.wait(10) == 0


def test_a_second_signal_does_not_wait_for_the_flush() -> None:
    with daemon("stuck") as process:
        assert line(process) == "ready"
        process.terminate()
        assert line(process) == "flushing"
        process.terminate()
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert "stopped before everything was flushed" in process.stderr.read()


def test_a_third_signal_ends_what_does_not_end() -> None:
    with daemon("deaf") as process:
        assert line(process) == "ready"
        process.terminate()
        assert line(process) == "flushing"
        process.terminate()
        assert process.stderr is not None
        while "at once" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 1


def test_a_flush_that_takes_too_long_is_cut() -> None:
    with daemon("stuck", 0.1) as process:
        assert line(process) == "ready"
        process.terminate()
        assert process.wait(10) == 1


def test_main_may_ask_for_the_stop_itself() -> None:
    with daemon("asks") as process:
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "stopping: enough" in process.stderr.read()


@pytest.mark.parametrize(
    ("what", "code", "said", "traced"),
    [
        ("fails", 7, "daemon: the wrong cluster\n", False),
        ("port", 1, "daemon: tcp://a:1: Address already in use\n", False),
        ("bug", 1, "ZeroDivisionError: a bug", True),
        ("dies", 1, "the disk is gone", True),
        ("ends badly", 1, "daemon: not everything could be stored\n", False),
    ],
)
def test_failures_are_one_line_or_a_traceback(what: str, code: int, said: str, traced: bool) -> None:
    with daemon(what) as process:
        output = process.communicate(timeout=10)[1]
        assert process.returncode == code
        assert said in output
        assert ("Traceback" in output) == traced
        assert traced or output == said


def test_nothing_runs_with_assertions_off() -> None:
    with daemon("serves", 1.0, "-O") as process:
        output = process.communicate(timeout=10)[1]
        assert process.returncode == 2
        assert "assertions" in output


# --- notification ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = str(tmp_path / "notify") if request.param == "path" else f"@fusefs-test-{os.getpid()}"
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_the_service_manager_is_told(manager: socket.socket) -> None:
    notify.ready("leader of 3\nREADY=0")
    assert manager.recv(500) == b"READY=1\nSTATUS=leader of 3 READY=0"
    notify.ready()
    assert manager.recv(500) == b"READY=1"
    notify.status("x")
    assert manager.recv(500) == b"STATUS=x"
    notify.stopping()
    assert manager.recv(500) == b"STOPPING=1"
    notify.watchdog()
    assert manager.recv(500) == b"WATCHDOG=1"
    notify.extend_timeout(2.5)
    assert manager.recv(500) == b"EXTEND_TIMEOUT_USEC=2500000"


def test_a_daemon_says_ready_and_stopping(manager: socket.socket) -> None:
    with daemon("asks") as process:
        assert manager.recv(500) == b"READY=1\nSTATUS=serving"
        assert manager.recv(500) == b"STOPPING=1"
        assert process.wait(10) == 0


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("", "vsock:2:1", str(tmp_path / "nobody")):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.ready("x")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.watchdog()


def test_the_watchdog_interval_is_ours_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert notify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert notify.watchdog_interval_s() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval_s() is None


# --- logs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


def emit() -> None:
    log = get_logger("a.module")
    log.debug("not shown")
    log.info("sealed %s", "it", segment=7, path="a b", name=b"x")
    logging.getLogger("library").warning("old style %d", 3)
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        log.exception("failed")


def test_logs_are_lines_for_people(capsys: pytest.CaptureFixture[str], root_logger: None) -> None:
    setup_logging("fusefs-meta")
    emit()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("Z info    fusefs-meta a.module: sealed it segment=7 path='a b' name=b'x'")
    assert lines[1].endswith("warning fusefs-meta library: old style 3")
    assert lines[2].endswith("error   fusefs-meta a.module: failed")
    assert lines[3].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: a bug"


def test_logs_are_json_when_asked(capsys: pytest.CaptureFixture[str], root_logger: None) -> None:
    setup_logging("fusefs-meta", "debug", json=True)
    emit()
    entries = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert [entry["level"] for entry in entries] == ["debug", "info", "warning", "error"]
    assert entries[1]["segment"] == 7
    assert entries[1]["process"] == "fusefs-meta"
    assert "ZeroDivisionError: a bug" in entries[3]["exception"]


def test_the_journal_gets_priorities(tmp_path: Path) -> None:
    """stderr is the journal when device and inode are the ones that systemd names."""
    script = (
        "import os, runpy, sys\n"
        "status = os.fstat(2)\n"
        "os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'\n"
        "from node.host.logging import setup_logging\n"
        "from tests.unit.node.test_life import emit\n"
        "setup_logging('m'); emit()\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, check=True)
    lines = finished.stderr.splitlines()
    assert lines[0].startswith("<6>info    m a.module: sealed it")
    assert lines[1].startswith("<4>")
    assert all(text.startswith("<3>") for text in lines[2:])


# --- metrics and health ---------------------------------------------------------------------------------------


def test_metrics_are_named_alike() -> None:
    metrics = Metrics("storage")
    metrics.counter("puts", "Blocks put.", ["outcome"]).labels("ok").inc(3)
    metrics.gauge("used_bytes", "On disk.").set(5)
    metrics.histogram("fsync_seconds", "Of a batch.").observe(0.0002)
    values = {"connected": 1.0}
    metrics.collect_from("rpc", lambda: values)
    values["in_flight"] = 2.0  # read when asked, not when registered
    text = metrics.render().decode()
    for wanted in (
        'fusefs_storage_puts_total{outcome="ok"} 3.0', "fusefs_storage_used_bytes 5.0",
        'fusefs_storage_fsync_seconds_bucket{le="0.00025"} 1.0', "fusefs_storage_rpc_connected 1.0",
        "fusefs_storage_rpc_in_flight 2.0",
    ):
        assert wanted in text


async def fetch(port: int, request: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        answer = b""
        async for chunk in stream:
            answer += chunk
        return answer


async def test_health_over_http(nursery: trio.Nursery) -> None:
    metrics = Metrics("meta")
    metrics.gauge("term", "Of the group.").set(4)
    problem: list[str | None] = [None]
    port: int = await nursery.start(serve_http, "127.0.0.1:0", metrics, lambda: None, lambda: problem[0])
    with trio.fail_after(20):
        assert b"fusefs_meta_term 4.0" in await fetch(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await fetch(port, b"GET /healthz?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await fetch(port, b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        problem[0] = "no quorum"
        answer = await fetch(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 503 " in answer
        assert answer.endswith(b"no quorum\n")
        assert b" 404 " in await fetch(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 405 " in await fetch(port, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert await fetch(port, b"nonsense\r\n\r\n") == b""
        assert b" 200 " in await fetch(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    for address in ("", "nowhere", "host:port", "a:99999"):
        with pytest.raises(UsageError):
            await serve_http(address, metrics, lambda: None, lambda: None)
