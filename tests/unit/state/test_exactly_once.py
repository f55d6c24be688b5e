"""Exactly once under a network that loses, repeats and reorders: each counts once, after its predecessor."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from metadata import api
from metadata.state.command import CommandKind
from node.wire.errors import Code, FsError
from tests.unit.state.support import FILE, World


class Client:
    """Sends chained requests, any number in flight; each makes one name in its own directory."""

    def __init__(self, world: World, session: int, directory: int, random: Random) -> None:
        self.world, self.session, self.directory, self.random = world, session, directory, random
        self.sent = self.world.sequences[session]
        self.lowest = self.sent + 1
        self.wire: list[api.Submit] = []  # copies on the way
        self.waiting: dict[int, api.Submit] = {}
        self.answers: dict[int, Any] = {}
        self.order: list[int] = []  # sequences by first execution

    def step(self) -> None:
        dice = self.random.random()
        if dice < 0.3 and len(self.waiting) < 8:
            self.sent += 1
            op = api.Make(self.directory, b"%06d" % self.sent, FILE, 0, 0)
            previous = self.sent - 1 if self.random.random() < 0.7 and self.sent - 1 in self.waiting else 0
            submit = api.Submit(self.session, self.sent, self.lowest, (op,), previous)
            self.waiting[self.sent] = submit
            self.wire.append(submit)
        elif dice < 0.36 and self.waiting:
            self.wire.append(self.waiting[self.random.choice(list(self.waiting))])  # a retry
        elif self.wire:
            at = self.random.randrange(len(self.wire))
            submit = self.wire[at] if self.random.random() < 0.3 else self.wire.pop(at)  # repeated by the network
            self.arrive(submit)

    def arrive(self, submit: api.Submit) -> None:
        existed = b"%06d" % submit.sequence in self.world.names(self.directory)
        reply = self.world.run(CommandKind.SUBMIT, submit)
        exists = b"%06d" % submit.sequence in self.world.names(self.directory)
        if isinstance(reply, FsError):
            assert existed == exists, "refused, but executed"
            if reply.code == Code.RETRY:
                assert submit.after in self.waiting and submit.after not in self.order
            else:
                assert reply.code == Code.STALE_SEQUENCE and submit.sequence < self.lowest
            return
        (made,) = reply.results
        assert isinstance(made, api.Made) and exists
        if not existed:
            assert submit.sequence not in self.order
            assert submit.after == 0 or submit.after in self.order or submit.after < self.lowest
            self.order.append(submit.sequence)
        assert self.answers.setdefault(submit.sequence, reply) == reply
        if self.random.random() < 0.6 and submit.sequence in self.waiting:  # else the reply is lost
            del self.waiting[submit.sequence]
            self.lowest = min(self.waiting, default=self.sent + 1)


@pytest.mark.parametrize("seed", range(5))
def test_each_request_counts_once(seed: int) -> None:
    random = Random(seed)
    world = World(sessions=2)
    directories = [world.make(b"%d" % number, 0o040755) for number in range(2)]
    clients = [Client(world, number + 1, directories[number], random) for number in range(2)]
    for step in range(1200):
        random.choice(clients).step()
        if step % 100 == 50:
            world.machine.reload()  # a restart, or another leader
            world.sound()
    for client in clients:
        while client.waiting:
            client.arrive(client.waiting[min(client.waiting)])
        assert sorted(client.order) == [int(name) for name in world.names(client.directory)]
        assert len(client.order) > 50
    world.sound()
