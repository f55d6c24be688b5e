"""Members meet: those that the configuration names, those that the log names, and a leader nobody has told of yet."""

from __future__ import annotations

from typing import Any

import trio

from metadata.raft.messages import ConfState
from metadata.server.peers import Peers
from metadata.server.wire import CATALOGUE
from node.host.cluster import Member
from node.rpc.client import Connection
from node.rpc.memory import MemoryTransport
from node.rpc.security import Security
from node.rpc.server import Server

CLUSTER = b"c" * 16


class Remembered:
    """Pins in memory."""

    def __init__(self) -> None:
        self.members: dict[int, bytes] = {}

    def get(self, member: int) -> bytes:
        return self.members.get(member, b"")

    def pin(self, member: int, incarnation: bytes) -> bytes:
        return self.members.setdefault(member, incarnation)


def member(number: int) -> Member:
    return Member(id=number, name=f"metadata-{number}", address=f"ipc://m{number}", peer_address=f"ipc://p{number}")


class World:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.transport = MemoryTransport()

    async def start(self, number: int, *known: int) -> Peers:
        def connect(other: Member) -> Connection:
            return Connection(
                self.transport, other.peer_address, CATALOGUE, cluster_id=CLUSTER, security=Security.plain()
            )

        own = Peers(number, bytes([number]) * 16, Remembered(), [member(n) for n in known], connect=connect)
        server = Server(self.transport, f"ipc://p{number}", cluster_id=CLUSTER)
        own.register(server)
        await self.nursery.start(server.run)
        await self.nursery.start(own.run)
        return own


async def met(one: Peers, other: int) -> None:
    with trio.fail_after(10):
        while True:  # nobody announces it
            if one.pins.get(other) and other in one._met:
                return
            await trio.sleep(0.01)


async def test_a_member_that_missed_the_news_is_met_by_the_newcomer(autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        old = await world.start(1, 1, 2)
        new = await world.start(4, 1, 2, 4)
        await met(new, 1)
        await met(old, 4)
        assert old.peers[4].member == member(4)
        old.update({n: member(n) for n in (1, 2)}, highest=2)  # its own log does not name 4 yet
        assert 4 in old.peers
        old.update({n: member(n) for n in (1, 2)}, highest=4)  # 4 has come and gone
        assert 4 not in old.peers
        nursery.cancel_scope.cancel()


async def test_a_removed_member_is_a_stranger(autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        staying = await world.start(1, 1, 2, 3)
        staying.update({n: member(n) for n in (1, 3)}, highest=3)
        gone = await world.start(2, 1, 2, 3)
        await trio.sleep(5)
        assert 1 not in gone._met and set(staying.peers) == {3} and not staying.pins.get(2)
        nursery.cancel_scope.cancel()


async def test_a_newcomer_begins_when_it_has_met_most_and_a_founder_when_it_has_met_all(autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        founder = await world.start(1, 1, 2, 3)
        newcomer = await world.start(4, 1, 2, 3, 4)
        for peers in (founder, newcomer):
            peers.first = ConfState((1, 2, 3))
        assert newcomer.joins and not founder.joins
        await world.start(2, 1, 2, 3, 4)
        await met(newcomer, 1)
        await met(newcomer, 2)
        with trio.fail_after(10):
            await newcomer.admitted()
        await met(founder, 2)
        with trio.move_on_after(10) as waiting:
            await founder.admitted()
        assert waiting.cancelled_caught, "member 3 may know that this one was wiped"
        nursery.cancel_scope.cancel()
