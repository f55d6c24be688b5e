"""One owner task per ZeroMQ socket.

A ZeroMQ descriptor is edge-triggered: it becomes readable once for a change and any later call into the socket, a
send as well, may swallow the change. Three habits follow, and leaving out any one hangs a connection sooner or later:

- the owner reads until nothing is left, then reads EVENTS again, and waits only when that says nothing is there;
- nothing touches the socket between that look and the wait;
- who sends while the owner waits looks at EVENTS afterwards and wakes the owner when there is input.

Only the owner receives. Sending is allowed from any task, because nothing here is awaited in the middle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import trio
import zmq

from node.wire.limits import FRAME_PARTS_MAX
from node.wire.types import Buffer

_DRAIN_MAX = 128  # messages before other tasks get a turn
_COPY_BELOW_BYTES = 256 * 1024  # below, a copy is cheaper than the bookkeeping of sharing

# Plain ints: the enumerations of pyzmq cost more than the calls that they go to.
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)

Receive = Callable[[Sequence[bytes], list[memoryview]], None]


class OwnedSocket:
    """A socket with its owner task.

    ``receive`` gets the first ``heads`` frames as bytes and the others as views into ZeroMQ's buffers. ``turn`` is
    called before each wait and returns the time (trio's clock) at which the owner must not wait any longer.
    """

    def __init__(self, sock: zmq.Socket[bytes], heads: int, receive: Receive, turn: Callable[[], float]) -> None:
        self.sock = sock
        self._heads = heads
        self._receive = receive
        self._turn = turn
        self._events: Callable[[], int] = functools.partial(_get_int, sock, int(zmq.EVENTS))
        self._awake = True  # the owner will look at EVENTS before it waits
        self._park: trio.CancelScope | None = None
        self.received = 0
        self.sent = 0
        self.wakes = 0

    def send(self, frames: Sequence[bytes], data: Sequence[Buffer] = ()) -> None:
        """Send one message. Raises zmq.Again (no connection) or zmq.ZMQError EHOSTUNREACH (no such peer)."""
        send = self.sock.send
        last = frames[-1]
        for frame in frames[:-1]:
            send(frame, _MORE)
        if data:
            send(last, _MORE)
            for part in data[:-1]:
                send(part, _MORE, copy=len(part) < _COPY_BELOW_BYTES)
            send(data[-1], _NOBLOCK, copy=len(data[-1]) < _COPY_BELOW_BYTES)
        else:
            send(last, _NOBLOCK)
        self.sent += 1
        if not self._awake and self._events() & _POLLIN:
            self.wake()

    def takes_messages(self) -> bool:
        """Whether a send would succeed."""
        return bool(self._events() & _POLLOUT)

    def wake(self) -> None:
        """Make the owner take another turn."""
        self._awake = True
        if self._park is not None:
            self._park.cancel()

    def wake_at(self, deadline: float) -> None:
        """Make the owner take another turn at ``deadline``, or sooner."""
        if self._park is not None and deadline < self._park.deadline:
            self._park.deadline = deadline

    async def run(self) -> None:
        """Own the socket until cancelled; does not close it."""
        sock = self.sock
        descriptor = _get_int(sock, int(zmq.FD))
        while True:
            self._awake = True
            self.drain()
            deadline = self._turn()
            if self._events() & _POLLIN:
                await trio.lowlevel.checkpoint()
                continue
            if deadline <= trio.current_time():
                await trio.lowlevel.checkpoint()
                continue
            self._park = trio.CancelScope(deadline=deadline)
            self._awake = False
            with self._park:
                await trio.lowlevel.wait_readable(descriptor)
            self._park = None
            self.wakes += 1

    def drain(self) -> None:
        """Receive what is there. From another task than the owner's too: what comes later is a new edge for it."""
        for _ in range(_DRAIN_MAX):
            try:
                first = self.sock.recv(_NOBLOCK)
            except zmq.Again:
                return
            self.received += 1
            self._receive(*self._rest(first))

    def _rest(self, first: bytes) -> tuple[list[bytes], list[memoryview]]:
        sock = self.sock
        heads = [first]
        data: list[memoryview] = []
        more = sock.get(zmq.RCVMORE)
        while more and len(heads) < self._heads:
            heads.append(sock.recv(_NOBLOCK))
            more = sock.get(zmq.RCVMORE)
        while more:
            frame = sock.recv(_NOBLOCK, copy=False)
            more = frame.more
            if len(data) <= FRAME_PARTS_MAX:  # one more than allowed is enough to be refused
                data.append(frame.buffer)
        return heads, data


def never() -> float:
    """A turn that has nothing to do."""
    return math.inf


def _get_int(sock: zmq.Socket[bytes], option: int) -> int:
    value = sock.get(option)
    assert isinstance(value, int)
    return value
