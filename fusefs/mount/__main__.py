"""The mount process: ``python -m fusefs.mount --cluster FILE --mount DIR [-o OPTS] [--ready-fd N]``.

Started by the commands, never by hand: ``fusefs mount`` and ``mount.fusefs`` check what they can before.
"""

from __future__ import annotations

import argparse
import logging.handlers
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fusefs.mount.interpose  # noqa: F401  first: before pyfuse3
from fusefs.mount.launch import Announcer
from fusefs.mount.options import parse_options
from fusefs.mount.plan import STOP_S, make_plan
from fusefs.mount.run import raise_descriptor_limit, serve
from fusefs.mount.state import label_of
from node.host.daemon import Lifecycle, run_daemon
from node.host.exitcodes import describe, exit_code
from node.host.logging import setup_logging
from node.host.memory import keep_freed_buffers
from node.wire.limits import BUFFER_BYTES_MAX, BUFFERS_KEPT_BYTES

NAME = "fusefs-mount"
SWITCH_INTERVAL_S = 5e-4  # a codec thread that has finished a piece waits no longer for the interpreter


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one mount until it is unmounted; return the exit code."""
    parser = argparse.ArgumentParser(prog=NAME)
    parser.add_argument("--cluster", type=Path, required=True)
    parser.add_argument("--mount", required=True)
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("--ready-fd", type=int)
    given = parser.parse_args(arguments)
    announcer = Announcer(given.ready_fd)
    try:
        plan = make_plan(given.cluster, given.mount, parse_options(given.options, sloppy=True))
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        if given.ready_fd is None:
            print(f"{NAME}: {line}", file=sys.stderr)
        announcer.failed(line)
        return exit_code(error)
    background = given.ready_fd is not None
    if background:
        plan = plan.with_log(_redirect_output(given.cluster, given.mount))
    setup_logging(NAME, plan.config.log.level, json=plan.config.log.json)
    if background and not plan.log_path:
        _log_to_syslog()
    raise_descriptor_limit()
    keep_freed_buffers(buffer_bytes_max=BUFFER_BYTES_MAX, kept_bytes_max=BUFFERS_KEPT_BYTES)
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def run(life: Lifecycle) -> None:
        try:
            await serve(life, plan, _Detacher(announcer) if background else announcer)
        except Exception as error:
            announcer.failed(describe(error) or f"unexpected {type(error).__name__}{_see(plan.log_path)}")
            raise

    return run_daemon(NAME, run, flush_timeout_s=STOP_S)


class _Detacher(Announcer):
    """Leave the session of whoever mounted, then say that we serve: only now, because mount(2) is behind us."""

    def __init__(self, announcer: Announcer) -> None:
        super().__init__(None)
        self._announcer = announcer

    def serving(self) -> None:
        os.setsid()
        os.chdir("/")
        self._announcer.serving()


def _see(log_path: str) -> str:
    return f"; see {log_path}" if log_path else ""


def _redirect_output(cluster_path: Path, mount: str) -> str:
    """Send what this process prints to its log beside cluster.toml; return its path, "" when there is no place."""
    path = cluster_path.parent / "log" / f"{label_of(mount)}.log"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        log_path = str(path)
    except OSError:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        log_path = ""
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    return log_path


def _log_to_syslog() -> None:
    if os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.setFormatter(logging.getLogger().handlers[0].formatter)
        logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
