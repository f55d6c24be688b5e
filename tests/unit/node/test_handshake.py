"""Peers that accept a connection and then do not play: which of them is unreachable, which will not have us."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from node.rpc import Connection, CurveKeys, Security, Transport, client, zmqlink
from node.wire.errors import Code, FsError
from tests.unit.node.echo_process import CATALOGUE, CLUSTER, Echo


async def outcome_of(port: int, security: Security | None = None) -> FsError:
    security = security or Security.curve_client(CurveKeys.generate(), CurveKeys.generate().public)
    async with Transport(insecure_tcp=True) as transport, trio.open_nursery() as nursery:
        connection = Connection(
            transport, f"tcp://127.0.0.1:{port}", CATALOGUE, cluster_id=CLUSTER, security=security
        )
        await nursery.start(connection.run)
        with trio.fail_after(20), pytest.raises(FsError) as caught:
            await connection.call(Echo(1))
        nursery.cancel_scope.cancel()
    return caught.value


async def test_a_peer_that_says_nothing_is_unreachable(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmqlink, "HANDSHAKE_TIMEOUT_S", 0.05)
    accepted = 0

    async def silent(stream: trio.SocketStream) -> None:
        nonlocal accepted
        accepted += 1
        while await stream.receive_some():
            pass

    listeners = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
    assert (await outcome_of(listeners[0].socket.getsockname()[1])).code == Code.UNREACHABLE
    assert accepted >= 3
    nursery.cancel_scope.cancel()


KEYED = Security.curve_client(CurveKeys.generate(), CurveKeys.generate().public)


@pytest.mark.parametrize(("security", "said"), [(KEYED, "expected key"), (Security.plain(), "wants a key")])
async def test_a_peer_that_hangs_up_each_time_will_not_have_us(
    nursery: trio.Nursery, security: Security, said: str
) -> None:
    async def rude(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, rude, 0, host="127.0.0.1"))
    error = await outcome_of(listeners[0].socket.getsockname()[1], security)
    assert error.code == Code.UNAUTHORIZED
    assert said in error.detail
    nursery.cancel_scope.cancel()


async def test_a_peer_that_is_slow_to_refuse_is_not_unreachable(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts, and then takes longer for its answer than a peer that is not there at all is waited for."""
    monkeypatch.setattr(client, "RECONNECT_GRACE_S", 0.1)

    async def slow(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await trio.sleep(0.3)
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, slow, 0, host="127.0.0.1"))
    assert (await outcome_of(listeners[0].socket.getsockname()[1])).code == Code.UNAUTHORIZED
    nursery.cancel_scope.cancel()


async def test_tcp_without_keys_is_refused_here() -> None:
    async with Transport() as transport:
        with pytest.raises(FsError) as caught:
            Connection(transport, "tcp://127.0.0.1:1", CATALOGUE, cluster_id=CLUSTER)
    assert caught.value.code == Code.UNAUTHORIZED
