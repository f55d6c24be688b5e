"""The serving loop, under workers that do what those of pyfuse3 do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from fusefs.mount.loop import Loop, noticing
from fusefs.mount.operations import Operations
from fusefs.mount.profile import OPERATIONS

from .attrs import until

WORKERS = 4


class Session:
    """A descriptor that requests come from, a byte each, and workers that take them as pyfuse3's do."""

    def __init__(self, loop: Loop, handler: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        self.loop = loop
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.exited = False
        self._handler = handler

    async def worker(self) -> None:
        lock = self.loop.Lock()
        while not self.exited:
            try:
                async with lock:
                    if self.exited:
                        return
                    await self.loop.lowlevel.wait_readable(self.ours.fileno())
            except trio.ClosedResourceError:
                return
            try:
                request = self.ours.recv(1)
            except BlockingIOError:
                continue
            if not request:
                self.exited = True
                return
            await self.loop.noticed(self._handler)(request[0])

    async def run(self) -> None:
        with self.ours, self.theirs:
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(self.worker)


@pytest.fixture
def loop() -> Iterator[Loop]:
    yield Loop(budget=8)


async def test_all_are_answered_and_slow_ones_overlap(loop: Loop) -> None:
    """Requests that wait for one another: served one by one they would wait for ever."""
    answered: list[int] = []
    gate = trio.Event()

    async def handler(request: int) -> None:
        if request == 1:
            await gate.wait()
        elif request == 2:
            gate.set()
            await trio.lowlevel.checkpoint()
        answered.append(request)

    session = Session(loop, handler)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            for request in (0, 1, 3, 1, 0, 2, *[0] * 50):
                session.theirs.send(bytes([request]))
            await until(lambda: len(answered) == 56)
            session.theirs.close()
    assert answered.count(0) == 52 and answered.count(1) == 2


async def test_it_tells_when_there_was_no_request(loop: Loop) -> None:
    idle: list[tuple[float, float]] = []

    async def handler(number: int) -> None:
        idle.append((loop.idle_s(), time.monotonic()))
        await trio.lowlevel.checkpoint()

    session = Session(loop, handler)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await trio.sleep(0.05)
        sent_s = time.monotonic()
        for number in (1, 2):
            session.theirs.send(bytes([number]))
        await until(lambda: len(idle) == 2)
        nursery.cancel_scope.cancel()
    (first_s, _), (second_s, _) = idle
    assert 0 < first_s == second_s <= sent_s, "both were there before it looked"


async def test_others_get_their_turn(loop: Loop) -> None:
    """A flood of requests that are answered at once leaves time for other tasks."""
    turns = 0
    served = 0

    async def handler(_: int) -> None:  # noqa: ASYNC124
        nonlocal served
        served += 1
        if served < 400:
            session.theirs.send(b"x")

    async def other() -> None:
        nonlocal turns
        while served < 400:
            turns += 1
            await trio.lowlevel.checkpoint()

    session = Session(loop, handler)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            nursery.start_soon(other)
            session.theirs.send(b"x")
            await until(lambda: served == 400)
            session.theirs.close()
    assert turns >= 400 // 8


async def test_the_loop_ends_when_told(loop: Loop) -> None:
    async def handler(_: int) -> None:
        await trio.lowlevel.checkpoint()

    session = Session(loop, handler)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await trio.testing.wait_all_tasks_blocked()
            session.exited = True
            loop.lowlevel.notify_closing(session.ours.fileno())


async def test_noticing_passes_everything_through() -> None:
    seen: list[str] = []

    async def quick() -> int:  # noqa: ASYNC124
        return 3

    async def slow() -> int:
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(0.001):
            await trio.sleep_forever()
        return 4

    async def forever() -> None:
        await trio.sleep_forever()

    async def wrong() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("as it was")

    ended: list[str] = []

    def watched(coroutine: Coroutine[Any, Any, Any], name: str) -> noticing[Any]:
        return noticing(coroutine, lambda: seen.append(name), lambda: ended.append(name))

    assert await watched(quick(), "quick") == 3 and not seen and not ended
    assert await watched(slow(), "slow") == 4 and seen == ended == ["slow"]
    with pytest.raises(ValueError, match="as it was"):
        await watched(wrong(), "wrong")
    with trio.move_on_after(0.001) as scope:
        await watched(forever(), "forever")
    assert scope.cancelled_caught
    assert seen == ended == ["slow", "wrong", "forever"]
    left = watched(forever(), "left")
    left.send(None)
    left.close()
    left.close()
    assert ended[3:] == ["left"], "once"


def test_every_handler_is_wrapped() -> None:
    own: dict[str, Any] = {name: value for name, value in vars(Operations).items() if not name.startswith("_")}
    handlers = {name for name in own if callable(getattr(pyfuse3.Operations, name, None))} - {"init", "stacktrace"}
    assert handlers == set(OPERATIONS)
