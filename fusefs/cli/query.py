"""Ask the processes of a cluster about themselves, all at once and in bounded time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio

from metadata.api import CATALOGUE as METADATA
from metadata.api import ChangeMembers, ChangeMembersReply, GetStatus, StatusReply
from node.host.cluster import ChunkServer, ClusterConfig, Member
from node.host.keys import client_security
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.security import CurveKeys
from node.wire.catalogue import Catalogue
from node.wire.errors import Code, FsError
from storage.api import CATALOGUE as STORAGE
from storage.api import GetServerStatus, ServerStatus

ASK_TIMEOUT_S = 2.0
CHANGE_TIMEOUT_S = 20.0
CHANGE_TRY_S = 8.0
CHANGE_PAUSE_S = 0.1
# What a peer says of us rather than of itself: the same will be true of the next attempt.
REFUSALS = frozenset({Code.UNAUTHORIZED, Code.FOREIGN_CLUSTER, Code.UNSUPPORTED_VERSION})


@dataclass(slots=True)
class Answers:
    """What each process said: a reply or why there is none."""

    members: dict[str, StatusReply | FsError] = field(default_factory=dict)
    servers: dict[str, ServerStatus | FsError] = field(default_factory=dict)

    @property
    def leader(self) -> StatusReply | None:
        """Return the view of the leader; of several that think they lead, the one of the highest term."""
        leading = [
            reply
            for reply in self.members.values()
            if isinstance(reply, StatusReply) and reply.status.role == "leader"
        ]
        return max(leading, key=lambda reply: reply.status.term, default=None)

    @property
    def refusal(self) -> FsError | None:
        """Return why this client is not let in, when somebody said so and nobody let it in."""
        everyone = [*self.members.values(), *self.servers.values()]
        if any(not isinstance(answer, FsError) for answer in everyone):
            return None
        return next((a for a in everyone if isinstance(a, FsError) and a.code in REFUSALS), None)


async def ask_all(config: ClusterConfig, keys: CurveKeys | None, timeout_s: float = ASK_TIMEOUT_S) -> Answers:
    """Ask every member and every chunk server; return after ``timeout_s`` at the latest."""
    answers = Answers()
    async with Transport() as transport, trio.open_nursery() as nursery:

        async def ask(
            into: dict[str, Any], entry: Member | ChunkServer, service: Catalogue, request: Any
        ) -> None:
            security = client_security(config, keys, entry.public_key)
            connection = Connection(
                transport, entry.address, service, cluster_id=config.cluster_id_bytes, security=security
            )
            into[entry.name] = await ask_one(connection, request, timeout_s)

        for member in config.members:
            nursery.start_soon(ask, answers.members, member, METADATA, GetStatus())
        for server in config.servers:
            nursery.start_soon(ask, answers.servers, server, STORAGE, GetServerStatus())
    return answers


async def ask_one(connection: Connection, request: Any, timeout_s: float) -> Any:
    """Put one question over a connection of its own; return the reply's body or the FsError."""
    answer: Any = FsError(Code.UNREACHABLE, f"{connection.address} does not answer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with trio.move_on_after(timeout_s):
            try:
                await connection.wait_connected()
                answer = (await connection.call(request, timeout_s=timeout_s)).body
            except FsError as error:
                answer = error
        nursery.cancel_scope.cancel()
    return answer


async def change_members(
    config: ClusterConfig, keys: CurveKeys | None, request: ChangeMembers, timeout_s: float = CHANGE_TIMEOUT_S
) -> ChangeMembersReply:
    """Have the leader, whoever it is, change the membership. Safe to repeat. FsError UNREACHABLE where none answers."""
    async with Transport() as transport, trio.open_nursery() as nursery:
        connections = {}
        for member in config.members:
            security = client_security(config, keys, member.public_key)
            connections[member.id] = Connection(
                transport, member.address, METADATA, cluster_id=config.cluster_id_bytes, security=security
            )
            nursery.start_soon(connections[member.id].run)
        reply = await _ask_leader(connections, request, trio.current_time() + timeout_s)
        nursery.cancel_scope.cancel()
    if isinstance(reply, FsError):
        raise reply
    return reply


async def _ask_leader(
    connections: dict[int, Connection], request: ChangeMembers, deadline: float
) -> ChangeMembersReply | FsError:
    """Ask one after the other, following their hints, until one gives an answer that is final."""
    target, last = 0, FsError(Code.UNREACHABLE, "no metadata member answers")
    while trio.current_time() < deadline:
        numbers = [number for number, connection in connections.items() if connection.connected]
        if numbers:
            target = target if target in numbers else numbers[0]
            try:
                reply: ChangeMembersReply = (await connections[target].call(request, timeout_s=CHANGE_TRY_S)).body
                return reply
            except FsError as error:
                if not error.retryable:
                    return error
                last = error
                target = error.hint or numbers[(numbers.index(target) + 1) % len(numbers)]
        await trio.sleep(CHANGE_PAUSE_S)
    if last.code is Code.NOT_LEADER:  # what the last one of many said of itself alone is no answer
        return FsError(Code.UNREACHABLE, "no metadata member leads; there is no quorum, or not for long enough")
    return last
