"""What a journal may ask of its session."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from fusefs.client.leader import PAUSE_S_MAX
from metadata import api
from node.wire.errors import Code, FsError

if TYPE_CHECKING:
    from fusefs.client.session import Session

log = logging.getLogger(__name__)

_AGAIN = frozenset({Code.TIMEOUT, Code.NO_SPACE, Code.OVERLOADED})


class SessionChannel:
    """What the journal may ask of its session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def changed_here(self) -> None:
        self._session.exclusive.changed()

    async def bring(
        self,
        ops: tuple[api.Op, ...],
        times_ns: tuple[int, ...],
        bases: tuple[tuple[int, int], ...],
        gives: tuple[int, ...],
    ) -> tuple[api.Result, ...]:
        session = self._session
        mutation = await session.begin(*ops, stop_on_error=True, deadline=session.deadline(), journal=True)
        mutation.times_ns, mutation.bases, mutation.gives = times_ns, bases, gives
        try:
            while True:
                try:
                    return await session.finish(mutation, session.deadline())
                except FsError as error:
                    if error.code not in _AGAIN:
                        raise
                    log.warning("changes made here do not reach the metadata service: %s", error)
                await trio.sleep(PAUSE_S_MAX)
        finally:
            session.abandon(mutation)

    async def more_inos(self, count: int) -> api.InoRange:
        return await self._session.change(api.AllocateInos(count), api.InoRange)
