"""From what a handler raised to the errno the program sees, and to the log when the fault is ours."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

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


S = TypeVar("S", bound=HasComplaints)


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
        try:
            return await function(self, *args, **kwargs)
        except FsError as error:
            if error.code >= Code.IO:
                self.complaints.make(name, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except MemoryError:
            log.exception("out of memory", operation=name)
            raise pyfuse3.FUSEError(errno.ENOMEM) from None
        except Exception:
            log.exception("operation failed unexpectedly", operation=name)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapped
