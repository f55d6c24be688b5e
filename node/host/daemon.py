"""The life of a process: start, serve, stop in order. Signals, exit codes and the last line on stderr are decided here.

The first SIGTERM or SIGINT asks for an orderly stop: ``main`` sees ``stopping``, flushes and returns. When that takes
too long, or at a second signal, ``main`` is cancelled. A third ends the process on the spot.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import trio

from node.host import notify
from node.host.exitcodes import Exit, describe, exit_code
from node.wire.limits import STOP_FLUSH_S

log = logging.getLogger(__name__)

GC_ALLOCATIONS = 5000  # net, between collections: what a request needs is freed without one
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Lifecycle:
    """What ``main`` knows of the life of its process."""

    def __init__(self) -> None:
        self.stopping = trio.Event()
        self.served = False  # ready() was called
        self.ending = False  # it serves no more, and what it cannot finish is said in one line

    async def wait_stop(self) -> None:
        """Wait until the process is asked to stop; then flush and return from main."""
        await self.stopping.wait()

    def request_stop(self, reason: str) -> None:
        """Ask for an orderly stop, as a signal does."""
        if not self.stopping.is_set():
            log.info("stopping: %s", reason)
            notify.stopping()
            self.stopping.set()

    def ready(self, status: str = "") -> None:
        """The process serves: tell the service manager, and take what was loaded so far out of the collector's way."""
        assert not self.served, "ready twice"
        self.served = True
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 10, 10)
        notify.ready(status)


Main = Callable[[Lifecycle], Awaitable[None]]


def run_daemon(name: str, main: Main, *, flush_timeout_s: float = STOP_FLUSH_S) -> int:
    """Run ``main`` to its end and return the exit code.

    0 only when main returned by itself. An expected failure of the start is one line on stderr; anything else, and
    whatever ends a process that serves, is a traceback in the log (but what makes it unfit to serve ever again is one
    line too). Refuses to run with assertions off.
    """
    if not __debug__:
        sys.stderr.write(f"{name}: does not run with assertions off (python -O, PYTHONOPTIMIZE)\n")
        return Exit.USAGE
    life = Lifecycle()
    try:
        finished = trio.run(_supervise, main, life, flush_timeout_s)
    except KeyboardInterrupt:  # before the signals were ours
        return Exit.FAILED
    except Exception as error:
        return _report(name, error, served=life.served and not life.ending)
    if not finished:
        sys.stderr.write(f"{name}: stopped before everything was flushed\n")
        return Exit.FAILED
    return Exit.OK


async def describe_when_asked(
    describe: Callable[[], Mapping[str, object]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """At each SIGUSR1, write what ``describe`` returns into the log. Runs until cancelled."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            log.info("statistics: %s", ", ".join(f"{name} {value}" for name, value in describe().items()))


async def _supervise(main: Main, life: Lifecycle, flush_timeout_s: float) -> bool:
    scope = trio.CancelScope()
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, life, scope)
            nursery.start_soon(_limit, life, scope, flush_timeout_s)
            with scope:
                await main(life)
            nursery.cancel_scope.cancel()
    return not scope.cancelled_caught


async def _obey(signals: AsyncIterator[int], life: Lifecycle, scope: trio.CancelScope) -> None:
    async for number in signals:
        if not life.stopping.is_set():
            life.request_stop(signal.Signals(number).name)
        elif not scope.cancel_called:
            log.warning("stopping at once: %s again", signal.Signals(number).name)
            scope.cancel()
        else:
            os._exit(Exit.FAILED)


async def _limit(life: Lifecycle, scope: trio.CancelScope, flush_timeout_s: float) -> None:
    await life.stopping.wait()
    await trio.sleep(flush_timeout_s)
    log.error("could not flush within %g s", flush_timeout_s)
    scope.cancel()


def _report(name: str, error: Exception, *, served: bool) -> int:
    line = describe(error)
    if line is None or served and exit_code(error) is not Exit.INTEGRITY:
        log.critical("%s failed", name, exc_info=error)
    else:
        sys.stderr.write(f"{name}: {line}\n")
    return exit_code(error)
