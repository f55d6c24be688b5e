"""What was changed here by right of exclusive leases and is not brought yet: under which leader, and how it goes on.

A recall has it brought before it is acknowledged. A new leader knows nothing of it, so everything is brought before
its term is named. Where that takes long, because chunk servers are away, the leader is told instead which inodes are
changed here (``RenewSession.keeps``): it treats them as leased exclusively and recalls them before it shows them to
anybody, and nobody else waits for us.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Optional, Protocol

import trio

from fusefs.client.journal import Journal
from fusefs.client.leader import PAUSE_S_MIN
from fusefs.client.leases import Leases
from fusefs.client.recalls import Recalls
from node.wire.errors import Code, FsError
from node.wire.limits import RECLAIM_AFTER_S

log = logging.getLogger(__name__)

LATE = -1  # the term of what came while a lease was given back: of none, but not nothing


class Session(Protocol):
    """The session, as far as this needs it."""

    leases: Leases
    journal: Journal
    recalls: Recalls

    def deadline(self) -> float: ...

    async def keep(self, inos: Sequence[int], deadline: float) -> None:
        """Name the newest term to the service, and tell it what is changed here."""
        ...


class Exclusive:
    """``term``: of the leader under whose leases something was changed here; 0: nothing was."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.term = 0
        self.reclaim_after_s = RECLAIM_AFTER_S
        self.surrender: Callable[[Optional[Collection[int]], float], Awaitable[None]] = self._drain

    async def _drain(self, inos: Optional[Collection[int]], deadline: float) -> None:
        await self._session.journal.drain(deadline)

    def changed(self) -> None:
        """Something is changed by right of exclusive leases now: sync, before any await."""
        if not self.term:  # else what was changed under an earlier leader is not brought yet
            self.term = self._session.leases.term

    def given_late(self) -> None:
        """Bytes came while the kernel was made to forget. A recall brings them before it is acknowledged; where all
        leases are gone, they go like what an earlier leader let us change: before anything is asked."""
        self.term = LATE if self._session.recalls.giving_all else self.term or self._session.leases.term or LATE

    async def recalled(self, inos: Collection[int]) -> None:
        """Bring what was changed here of these inodes, and all before it. Returns also when it is lost."""
        while self.term:
            try:
                with self._session.journal.suspended():
                    await self.surrender(inos, self._session.deadline())
                return
            except FsError as error:
                log.warning("changes made here are recalled, but cannot be brought: %s", error)
            await trio.sleep(PAUSE_S_MIN)

    async def renounce(self, deadline: float) -> None:
        """There is another leader: bring what was changed under the leases of the last one, or tell what that is."""
        term, journal = self.term, self._session.journal
        named = self._session.leases.term
        with journal.suspended():
            try:
                await self.surrender(None, min(deadline, trio.current_time() + self.reclaim_after_s))
                named = 0
            except FsError as error:
                if error.code is not Code.TIMEOUT:
                    raise
                log.warning("changes made here cannot be brought to a new leader yet: %s", error)
                await self._session.keep(journal.inos(), deadline)
        if self.term == term:
            self.term = named
