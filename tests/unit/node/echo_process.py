"""A server in a process of its own: ``python -m tests.unit.node.echo_process ADDRESS``; prints ``ready``."""

from __future__ import annotations

import sys

import msgspec
import trio

from node.rpc import Server, Transport
from node.wire.catalogue import Catalogue, Method

CLUSTER = b"0123456789abcdef"


class Echo(msgspec.Struct, frozen=True, array_like=True):
    value: int


class EchoReply(msgspec.Struct, frozen=True, array_like=True):
    value: int


class Forget(msgspec.Struct, frozen=True, array_like=True):
    """Never answered."""


CATALOGUE = Catalogue("echo", [Method(1, Echo, EchoReply), Method(2, Forget, EchoReply)])


async def main(address: str) -> None:
    async with Transport(insecure_tcp=True) as transport, trio.open_nursery() as nursery:
        server = Server(transport, address, cluster_id=CLUSTER)
        server.register(CATALOGUE.by_number[1], lambda call: call.reply(EchoReply(call.request.value)))
        server.register(CATALOGUE.by_number[2], lambda call: None)
        await nursery.start(server.run)
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
