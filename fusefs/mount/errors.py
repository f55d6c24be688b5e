"""From what a handler raised to the errno the program sees, and to the log when the fault is ours."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Coroutine
from time import perf_counter_ns
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from fusefs.mount.names import Busy
from fusefs.mount.profile import Profile
from node.host.logging import get_logger
from node.wire.errors import Code, FsError

log = get_logger(__name__)

REPEAT_S = 5.0  # the same complaint is logged at most this often
COMPLAINTS_MAX = 256

P = ParamSpec("P")
R = TypeVar("R")


class Complaints:
    """Keep one broken server from filling the log: a complaint that was just made is counted instead."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: dict[tuple[str, str], tuple[float, int]] = {}  # when last logged, how many were swallowed since

    def make(self, operation: str, error: FsError) -> None:
        """Log one failed operation, unless the same was logged a moment ago."""
        key = (operation, str(error))
        now = self._clock()
        logged_at, swallowed = self._made.get(key, (float("-inf"), 0))
        if now - logged_at < REPEAT_S:
            self._made[key] = (logged_at, swallowed + 1)
            return
        if len(self._made) >= COMPLAINTS_MAX:
            self._made.clear()
        self._made[key] = (now, 0)
        log.warning("operation failed", operation=operation, error=str(error), repeated=swallowed)


class HasComplaints(Protocol):
    complaints: Complaints
    profile: Profile


class HasBusy(HasComplaints, Protocol):
    busy: Busy


S = TypeVar("S", bound=HasComplaints)
B = TypeVar("B", bound=HasBusy)


def handler(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a request handler: whatever it raises becomes an errno, and the mount lives on.

    An error that POSIX knows is the program's business; one of the distributed system is logged with its detail, and
    anything unforeseen with its traceback. Cancellation passes: it comes only when the mount is being torn down.
    """
    name = function.__name__

    @functools.wraps(function)
    async def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        row, began_ns = self.profile.operations[name], perf_counter_ns()
        try:
            return await function(self, *args, **kwargs)
        except Exception as error:
            row.errors += 1
            raise _answer(self.complaints, name, error) from None
        finally:
            row.add(perf_counter_ns() - began_ns)

    return wrapped


def locked(
    function: Callable[Concatenate[B, int, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[B, int, P], Coroutine[Any, Any, R]]:
    """Wrap a handler during which the kernel holds the lock of the directory that is its first argument."""
    name = function.__name__

    @functools.wraps(function)
    async def wrapped(self: B, parent: int, /, *args: P.args, **kwargs: P.kwargs) -> R:
        row, began_ns = self.profile.operations[name], perf_counter_ns()
        self.busy.enter(parent)
        try:
            return await function(self, parent, *args, **kwargs)
        except Exception as error:
            row.errors += 1
            raise _answer(self.complaints, name, error) from None
        finally:
            self.busy.leave(parent)
            row.add(perf_counter_ns() - began_ns)

    return wrapped


def _answer(complaints: Complaints, operation: str, error: Exception) -> pyfuse3.FUSEError:
    if isinstance(error, FsError):
        if error.code >= Code.IO:
            complaints.make(operation, error)
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, MemoryError):
        log.exception("out of memory", operation=operation)
        return pyfuse3.FUSEError(errno.ENOMEM)
    log.exception("operation failed unexpectedly", operation=operation)
    return pyfuse3.FUSEError(errno.EIO)
