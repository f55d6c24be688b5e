"""Who the metadata members are, kept up to date: a mount outlives the members that it was told of.

Any member names all that it knows, so a new one is met before it leads. Only the leader's word makes this client
forget one: a member that was removed, or is cut off, does not know of its successors.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from fusefs.client.caller import Caller
from fusefs.client.options import Peer
from metadata.api import GetStatus, StatusReply
from node.wire.errors import FsError
from node.wire.limits import SESSION_RENEW_S

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0


class Roster:
    """Keeps ``members``, which whoever looks for the leader shares, to what the service says. ``peers``: where each
    of them is; ``dial`` makes a connection to a new one."""

    def __init__(
        self,
        members: dict[int, Caller],
        peers: dict[int, Peer],
        dial: Callable[[int, Peer], Awaitable[Caller]],
        *,
        every_s: float = SESSION_RENEW_S,
    ) -> None:
        self._members = members
        self._peers = peers
        self._dial = dial
        self._every_s = every_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._every_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Ask one member after the other until one answers, and take its word."""
        for ident in sorted(self._members):
            member = self._members[ident]
            if not member.connected:
                continue
            try:
                reply: StatusReply = (await member.call(GetStatus(brief=True), timeout_s=ASK_TIMEOUT_S)).body
            except FsError as error:
                log.debug("member %d does not name the others: %s", ident, error)
                continue
            await self._take(reply)
            if reply.status.role == "leader":
                return

    async def _take(self, reply: StatusReply) -> None:
        told = {entry.member: Peer(entry.address, entry.public_key.encode()) for entry in reply.roster}
        for ident, peer in told.items():
            if self._peers.get(ident) != peer and (ident not in self._peers or reply.status.role == "leader"):
                old = self._members.get(ident)
                self._peers[ident], self._members[ident] = peer, await self._dial(ident, peer)
                log.info("metadata member %d is at %s", ident, peer.address)
                if old is not None:
                    old.close()
        if told and reply.status.role == "leader":
            for ident in [ident for ident in self._members if ident not in told]:
                self._peers.pop(ident, None)
                self._members.pop(ident).close()
                log.info("metadata member %d is gone", ident)
