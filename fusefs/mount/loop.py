"""A serving loop for pyfuse3 that answers requests back to back: a stand-in for the parts of trio that its loop uses.

pyfuse3 looks up the name ``trio`` in its module at run time (that is how its asyncio mode works). Its workers take a
lock, wait until the descriptor of /dev/fuse is readable, release the lock, read a request and run its handler. With
trio's own lock each release hands over to another worker, and each wait is a turn of the loop, though most handlers
answer from memory and the next request is there already. Here

* whoever releases the lock does not hand it over: having answered, it takes it again. Only when a handler really
  suspends (``noticing``) another worker is woken to read on;
* the descriptor is polled before it is waited for, and while no handler waits for anything, for a moment longer: a
  program that was answered is likely to ask again, and a turn of the loop takes longer than that;
* after ``BUDGET`` requests without a pause the loop gets its turn, for the tasks that talk to the servers.

Everything here is public trio API.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

import pyfuse3
import trio

from fusefs.mount.profile import OPERATIONS

BUDGET = 12  # requests
SPIN_S = 0.00005  # after an answer, for the next request

R = TypeVar("R")


class _Lock:
    """Held by the worker that waits for a request. Not handed over."""

    def __init__(self) -> None:
        self._held = False
        self._parked: deque[trio.lowlevel.Task] = deque()
        self.closing = False

    async def __aenter__(self) -> None:
        while self._held:
            await self._park()
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        self._held = False
        if self.closing:
            self.kick()  # each worker has to see it, one after the other

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def kick(self) -> None:
        """Have another worker read, if none does."""
        if not self._held and self._parked:
            trio.lowlevel.reschedule(self._parked.popleft())


class _LowLevel:
    """What pyfuse3 uses of trio.lowlevel."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def __init__(self, lock: _Lock, budget: int) -> None:
        self._lock = lock
        self._budget = budget
        self._served = 0
        self.suspended = 0  # handlers that wait for something
        self.idle_s = 0.0  # when there was no request last, by the monotonic clock
        self._polled = -1
        self._poll = select.poll()

    async def wait_readable(self, fd: int) -> None:
        """Return when there is a request, or the end."""
        if fd != self._polled:
            self._poll.register(fd, select.POLLIN)
            self._polled = fd
        while not self._ready():
            if self._served and not self.suspended and self._soon():
                break
            self._served = 0
            await trio.lowlevel.wait_readable(fd)
        self._served += 1
        if self._served >= self._budget:
            self._served = 0
            await trio.lowlevel.checkpoint()

    def _soon(self) -> bool:
        """Whether a request comes within a moment. Whoever is about to make one gets the CPU."""
        end = time.perf_counter() + SPIN_S
        while time.perf_counter() < end:
            os.sched_yield()
            if self._ready():
                return True
        return False

    def _ready(self) -> bool:
        before_s = time.monotonic()
        events = self._poll.poll(0)
        if not events:
            self.idle_s = before_s
        elif events[0][1] != select.POLLIN:
            self._lock.closing = True  # unmounted
        return bool(events)

    def notify_closing(self, fd: int) -> None:
        """The loop is to end."""
        self._lock.closing = True
        trio.lowlevel.notify_closing(fd)
        self._lock.kick()


class Loop:
    """Stands in for the module trio in pyfuse3, until ``restore``."""

    open_nursery = staticmethod(trio.open_nursery)
    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, budget: int = BUDGET) -> None:
        self._lock = _Lock()
        self.lowlevel = _LowLevel(self._lock, budget)

    def idle_s(self) -> float:
        """When no request was there last, by the monotonic clock."""
        return self.lowlevel.idle_s

    def Lock(self) -> _Lock:
        """The one lock that pyfuse3 makes."""
        return self._lock

    def install(self, operations: pyfuse3.Operations) -> None:
        """Serve this mount. Before pyfuse3.main."""
        for name in OPERATIONS:
            setattr(operations, name, self.noticed(getattr(operations, name)))
        pyfuse3.trio = self  # type: ignore[attr-defined]

    def restore(self) -> None:
        """The mount is gone."""
        pyfuse3.trio = trio  # type: ignore[attr-defined]

    def noticed(self, handler: Callable[..., Coroutine[Any, Any, R]]) -> Callable[..., Any]:
        """A handler that has another worker read on when it suspends, and none spin while it waits."""
        suspends, ended = self._suspends, self._ended

        def call(*args: Any) -> Any:
            return noticing(handler(*args), suspends, ended)

        return call

    def _suspends(self) -> None:
        self.lowlevel.suspended += 1
        self._lock.kick()

    def _ended(self) -> None:
        self.lowlevel.suspended -= 1


class noticing(Generic[R]):
    """Awaits a coroutine; ``suspends`` is called when it suspends for the first time, not when it never does, and
    ``ended`` when such a one has ended, in whatever way."""

    __slots__ = ("_coroutine", "_suspends", "_ended", "_waiting")

    def __init__(
        self, coroutine: Coroutine[Any, Any, R], suspends: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self._coroutine = coroutine
        self._suspends = suspends
        self._ended = ended
        self._waiting = False

    def __await__(self) -> Generator[Any, Any, R]:
        return self

    def __iter__(self) -> noticing[R]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """As of a generator; the end of the coroutine passes through as StopIteration."""
        try:
            wish = self._coroutine.send(value)
        except BaseException:
            self._end()
            raise
        if not self._waiting:
            self._waiting = True
            self._suspends()
        return wish

    def throw(self, *error: Any) -> Any:
        """As of a generator."""
        try:
            return self._coroutine.throw(*error)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """As of a generator."""
        try:
            self._coroutine.close()
        finally:
            self._end()

    def _end(self) -> None:
        if self._waiting:
            self._waiting = False
            self._ended()
