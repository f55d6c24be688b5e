"""Heartbeats to the metadata service: which leader to tell, and what it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Optional

import trio

from node.wire.errors import Code, FsError
from storage import api
from storage.server.forward import Connection

HEARTBEAT_TIMEOUT_S = 2.0
BAD_BLOCKS_MAX = 256  # in one heartbeat; the others go with the next
_INTERVAL_S_MIN, _INTERVAL_S_MAX = 0.1, 60.0
_SPACE_S = 0.1
_RETRY_S = 0.25  # while no leader answers
_log = logging.getLogger(__name__)


class Heartbeats:
    """Tells the leader about this server every few seconds.

    ``members`` are (id, connection); ``make`` returns the next heartbeat; ``take`` gets each with its reply; ``dial``
    makes a connection to a member that a leader tells of.
    """

    def __init__(
        self, members: Sequence[tuple[int, Connection]], make: Callable[[], api.Heartbeat],
        take: Callable[[api.Heartbeat, api.HeartbeatReply], None], *, interval_s: float,
        dial: Optional[Callable[[api.MemberAddress], Connection]] = None,
    ) -> None:
        assert members
        self._members = dict(members)
        self._make = make
        self._take = take
        self._dial = dial
        self._nursery: Optional[trio.Nursery] = None
        self._interval_s = interval_s
        self._woken = trio.Event()
        self._target = next(iter(self._members))
        self._answered: Optional[bool] = None  # None: never tried

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for connection in list(self._members.values()):
                await nursery.start(connection.run)
            task_status.started()
            while True:
                answered = await self.beat()
                await trio.sleep(min(self._interval_s, _SPACE_S))  # no wake comes closer to the last than this
                with trio.move_on_after(max(0.0, (self._interval_s if answered else _RETRY_S) - _SPACE_S)):
                    await self._woken.wait()
                self._woken = trio.Event()

    def wake(self) -> None:
        """There is something to tell: have the next heartbeat go soon. From the trio thread."""
        self._woken.set()

    async def beat(self) -> bool:
        """Send one heartbeat, to one member after the other until the leader answers. Return whether it did."""
        tried: set[int] = set()
        problem = ""
        while len(tried) < len(self._members):
            tried.add(self._target)
            try:
                heartbeat = self._make()
                reply = await self._members[self._target].call(heartbeat, timeout_s=HEARTBEAT_TIMEOUT_S)
            except FsError as error:
                problem = str(error)
                self._target = self._next(error, tried)
                continue
            self._interval_s = min(max(reply.body.interval_s, _INTERVAL_S_MIN), _INTERVAL_S_MAX)
            if not self._answered:
                _log.info("registered as server %d with member %d", reply.body.server, self._target)
            self._answered = True
            self._take(heartbeat, reply.body)
            self._meet(reply.body.members)
            return True
        if self._answered is not False:
            _log.warning("no metadata leader answers (%s)", problem)
        self._answered = False
        return False

    def _meet(self, members: Sequence[api.MemberAddress]) -> None:
        """The leader names all members: connect to new ones, forget those that are gone."""
        if not members or self._dial is None or self._nursery is None:
            return
        for entry in members:
            if entry.member not in self._members:
                _log.info("a new metadata member: %s at %s", entry.name, entry.address)
                self._members[entry.member] = connection = self._dial(entry)
                self._nursery.start_soon(connection.run)
        named = {entry.member for entry in members}
        for member in [member for member in self._members if member not in named]:
            self._members.pop(member).close()
        if self._target not in self._members:
            self._target = next(iter(self._members))

    def _next(self, error: FsError, tried: set[int]) -> int:
        """Return whom to ask after a failure: the leader that a member names, or the next one not yet asked."""
        if error.code == Code.NOT_LEADER and error.hint in self._members and error.hint not in tried:
            return error.hint
        order = list(self._members)
        start = order.index(self._target)
        around = order[start + 1 :] + order[:start]
        return next((member for member in around if member not in tried), self._target)
