"""Where clients meet members: requests and answers on the network, and what a member's service does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import msgspec

from metadata.api import Query, Result
from metadata.raft.core import Role
from metadata.state.command import CommandKind, encode_command
from metadata.state.machine import Outcome
from node.wire.errors import Code, FsError
from tests.sim.member import SimNode
from tests.sim.world import World

Answer = Callable[[msgspec.Struct | FsError], None]
Results = Callable[[tuple[Result, ...] | FsError], None]


class Requests:
    """What clients ask of the members of a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self.world.later(delay_s, action, *args)

    def members_to_ask(self) -> list[int]:
        return [ident for ident, member in self.world.members.items() if not member.gone]

    def mutate(
        self, client: int, member: int, kind: CommandKind, body: msgspec.Struct, answer: Answer
    ) -> None:
        self.world.network.post(client, member, self._asked, client, member, kind, body, answer)

    def _asked(
        self, client: int, ident: int, kind: CommandKind, body: msgspec.Struct, answer: Answer
    ) -> None:
        member = self.world.members[ident]
        node = member.node
        if node is None:
            if self.world.random.random() < 0.5:
                self.world.network.post(ident, client, answer, FsError(Code.UNREACHABLE, ""))
            return
        if member.paused:
            member.inbox.append((self._asked, (client, ident, kind, body, answer)))
            return
        self.world.happens("submit", client, ident)

        def done(outcome: Optional[Outcome], error: Optional[FsError]) -> None:
            reply = error if outcome is None else outcome.reply
            assert reply is not None
            self.world.network.post(ident, client, answer, reply)

        with self.world.guard(member):
            try:
                if not node.machine.formatted:
                    raise FsError(Code.RETRY, "not formatted")
                if node.full:
                    raise FsError(Code.NO_SPACE, "full")
                node.propose(encode_command(kind, self.world.wall_ns(ident), body), done)
            except FsError as error:
                done(None, error)
        self.world.wake(member)

    def query(
        self, client: int, member: int, queries: tuple[Query, ...], answer: Results
    ) -> None:
        self.world.network.post(client, member, self._queried, client, member, queries, answer)

    def _queried(
        self, client: int, ident: int, queries: tuple[Query, ...], answer: Results
    ) -> None:
        member = self.world.members[ident]
        node = member.node
        if node is None:
            return
        if member.paused:
            member.inbox.append((self._queried, (client, ident, queries, answer)))
            return
        self.world.happens("read", client, ident)
        served: SimNode = node

        def done(error: Optional[FsError]) -> None:
            reply = error if error is not None else served.machine.query(queries)
            self.world.network.post(ident, client, answer, reply)

        with self.world.guard(member):
            try:
                if node.readable_now:
                    done(None)
                elif node.role is Role.LEADER:
                    node.read(done)
                else:
                    node.read_here(done)
            except FsError as error:
                done(error)
        self.world.wake(member)
