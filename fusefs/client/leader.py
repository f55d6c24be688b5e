"""The way to the leader of the metadata service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Optional

import msgspec
import trio

from fusefs.client.caller import Answer, Caller
from node.wire.errors import Code, FsError

TRY_TIMEOUT_S = 5.0  # of one attempt; the next one, with the same sequence, may go to another member
PAUSE_S_MIN = 0.01
PAUSE_S_MAX = 0.5

_AGAIN = frozenset(
    {Code.NOT_LEADER, Code.UNREACHABLE, Code.TIMEOUT, Code.OVERLOADED, Code.RETRY, Code.SHUTTING_DOWN}
)
_LEADER_LOST = frozenset({Code.NOT_LEADER, Code.UNREACHABLE, Code.SHUTTING_DOWN})
_NEXT_MEMBER = frozenset({Code.NOT_LEADER, Code.UNREACHABLE, Code.TIMEOUT, Code.SHUTTING_DOWN})


class Leader:
    """Finds the leader among the members, by their hints, and keeps to it."""

    def __init__(self, members: Mapping[int, Caller]) -> None:
        assert members, "a cluster without members"
        self._members = members
        self._current = min(members)
        self.calls = 0
        self.retries = 0
        self.on_lost: Callable[[], None] = lambda: None  # whom we asked does not lead, or is gone

    async def call(
        self, request: msgspec.Struct, deadline: float, misses_seen: Optional[list[FsError]] = None
    ) -> Answer:
        """Ask until someone answers with anything but "not me", "not now"; at the deadline TIMEOUT.

        ``misses_seen`` is told each answer that was not final.
        """
        pause_s = PAUSE_S_MIN
        tried: set[int] = set()
        self.calls += 1
        while True:
            asked = self._current = self._askable()
            timeout_s = min(TRY_TIMEOUT_S, deadline - trio.current_time())
            if timeout_s <= 0:
                raise FsError(Code.TIMEOUT, "no metadata member answered in time")
            try:
                return await self._members[asked].call(request, timeout_s=timeout_s)
            except FsError as error:
                if error.code not in _AGAIN:
                    raise
                self.retries += 1
                if error.code in _LEADER_LOST:
                    self.on_lost()
                if misses_seen is not None:
                    misses_seen.append(error)
                tried.add(asked)
                if self._next(asked, error, tried):
                    continue
                if trio.current_time() + pause_s >= deadline:
                    raise FsError(Code.TIMEOUT, f"no metadata member answered in time; last: {error}") from error
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            tried.clear()

    @property
    def connected(self) -> bool:
        """Whether the connection to whom we believe to lead stands."""
        return self._stands(self._current)

    def _stands(self, ident: int) -> bool:
        member = self._members.get(ident)
        return member is not None and member.connected

    def _askable(self) -> int:
        """Whom we believe to lead. Where it is not connected, another that is, if any: waiting for a dead leader's
        connection would take longer than an election."""
        if self._stands(self._current):
            return self._current
        around = self._around(self._current)
        return next(filter(self._stands, around), self._current if self._current in self._members else around[0])

    def _around(self, ident: int) -> list[int]:
        """All members, beginning behind one of them."""
        ids = sorted(self._members)
        return [other for other in ids if other > ident] + [other for other in ids if other <= ident]

    def _next(self, asked: int, error: FsError, tried: set[int]) -> bool:
        """Choose whom to ask next; return whether that may help at once: somebody who was not asked yet."""
        if error.code not in _NEXT_MEMBER:
            return False
        if self._current != asked:  # somebody else has found a better one meanwhile
            return self._current not in tried and self._stands(self._current)
        around = self._around(asked)
        fresh = [ident for ident in (error.hint, *around) if ident in self._members and ident not in tried]
        if any(map(self._stands, around)):
            fresh = [ident for ident in fresh if self._stands(ident)]
        self._current = fresh[0] if fresh else around[0]
        return bool(fresh)

    def statistics(self) -> dict[str, Any]:
        return {"member": self._current, "calls": self.calls, "retries": self.retries}
