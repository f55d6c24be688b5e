"""What takes long, on a clock that jumps: the memory transport carries the production protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock as Clock

from node.rpc import Call, Connection, CurveKeys, Security, Server
from node.rpc.memory import MemoryTransport
from node.wire.errors import Code, FsError
from node.wire.limits import HEARTBEAT_TIMEOUT_S, PEER_SWEEP_S, RECONNECT_GRACE_S, REFUSED_RETRY_S
from tests.unit.node.echo_process import CATALOGUE, CLUSTER, Echo, EchoReply, Forget


class Net:
    """A server that answers Echo, keeps Forget, and a connection to it."""

    def __init__(self) -> None:
        self.transport = MemoryTransport()
        self.kept: list[Call] = []
        self.server = Server(self.transport, "a", cluster_id=CLUSTER)
        self.server.register(CATALOGUE.by_number[1], lambda call: call.reply(EchoReply(call.request.value)))
        self.server.register(CATALOGUE.by_number[2], self.kept.append)
        self.connection = Connection(self.transport, "a", CATALOGUE, cluster_id=CLUSTER, credit_bytes=1000)


@pytest.fixture
async def net(nursery: trio.Nursery) -> Net:
    net = Net()
    await nursery.start(net.server.run)
    await nursery.start(net.connection.run)
    await net.connection.wait_connected()
    return net


async def code_of(ask: Callable[[], Awaitable[object]]) -> Code:
    with pytest.raises(FsError) as caught:
        await ask()
    return caught.value.code


async def test_a_paused_peer_ends_in_a_timeout_exactly_at_the_deadline(net: Net, autojump_clock: Clock) -> None:
    net.transport.pause("a")
    start = trio.current_time()
    assert await code_of(lambda: net.connection.call(Echo(1), timeout_s=7)) == Code.TIMEOUT
    assert trio.current_time() - start == pytest.approx(7)
    net.transport.resume("a")
    assert (await net.connection.call(Echo(2))).body == EchoReply(2)


async def test_a_cut_peer_is_unreachable_after_the_grace_and_found_again(net: Net, autojump_clock: Clock) -> None:
    net.transport.cut("a")
    start = trio.current_time()
    assert await code_of(lambda: net.connection.call(Echo(1))) == Code.UNREACHABLE
    assert trio.current_time() - start == pytest.approx(RECONNECT_GRACE_S, abs=0.01)
    assert await code_of(lambda: net.connection.call(Echo(1))) == Code.UNREACHABLE
    assert trio.current_time() - start == pytest.approx(RECONNECT_GRACE_S, abs=0.01)  # at once, this time
    net.transport.heal("a")
    await net.connection.wait_connected()
    assert (await net.connection.call(Echo(2))).body == EchoReply(2)


async def test_what_waits_for_a_connection_is_sent_when_there_is_one(net: Net, autojump_clock: Clock) -> None:
    net.transport.cut("a")
    async with trio.open_nursery() as callers:
        callers.start_soon(net.connection.call, Echo(1))
        await trio.sleep(RECONNECT_GRACE_S / 2)
        net.transport.heal("a")
    assert net.connection.statistics()["connects"] == 2


async def test_an_abandoned_request_keeps_its_credit_for_a_while(net: Net, autojump_clock: Clock) -> None:
    big = [b"x" * 900]
    assert await code_of(lambda: net.connection.call(Forget(), big, timeout_s=1)) == Code.TIMEOUT
    assert net.connection.statistics()["in_flight_bytes"] > 900
    start = trio.current_time()
    assert (await net.connection.call(Echo(1), big)).body == EchoReply(1)  # waited until the first was given up
    assert trio.current_time() - start == pytest.approx(HEARTBEAT_TIMEOUT_S, abs=0.01)
    assert net.connection.statistics()["in_flight_bytes"] == 0


async def test_an_answer_gives_the_credit_of_an_abandoned_request_back(net: Net, autojump_clock: Clock) -> None:
    big = [b"x" * 900]
    assert await code_of(lambda: net.connection.call(Forget(), big, timeout_s=1)) == Code.TIMEOUT
    net.kept[0].reply(EchoReply(1))
    start = trio.current_time()
    assert (await net.connection.call(Echo(1), big)).body == EchoReply(1)
    assert trio.current_time() - start < 0.1


async def test_timers_of_answered_requests_do_not_pile_up(net: Net, autojump_clock: Clock) -> None:
    for value in range(2000):
        await net.connection.call(Echo(value))
    assert len(net.connection._timers) < 1000


async def test_silent_peers_that_are_gone_are_forgotten(net: Net, autojump_clock: Clock) -> None:
    assert net.server.statistics()["peers"] == 1
    await trio.sleep(3 * PEER_SWEEP_S)
    assert net.server.statistics()["peers"] == 1  # silent, but there
    net.connection.close()
    await trio.sleep(3 * PEER_SWEEP_S)
    assert net.server.statistics()["peers"] == 0


async def test_a_refused_client_is_let_in_once_its_key_is_known(
    autojump_clock: Clock, nursery: trio.Nursery
) -> None:
    transport = MemoryTransport()
    own, client = CurveKeys.generate(), CurveKeys.generate()
    connection = Connection(
        transport, "a", CATALOGUE, cluster_id=CLUSTER, security=Security.curve_client(client, own.public)
    )
    await nursery.start(connection.run)
    for allowed, expected in ((frozenset[bytes](), Code.UNAUTHORIZED), ({client.public}, None)):
        async with trio.open_nursery() as life:
            server = Server(transport, "a", cluster_id=CLUSTER, security=Security.curve_server(own, allowed))
            server.register(CATALOGUE.by_number[1], lambda call: call.reply(EchoReply(call.request.value)))
            await life.start(server.run)
            if expected is not None:
                assert await code_of(lambda: connection.call(Echo(1))) == expected
            else:
                await trio.sleep(2 * REFUSED_RETRY_S)
                assert (await connection.call(Echo(2))).body == EchoReply(2)
                assert connection.failure is None
            life.cancel_scope.cancel()
