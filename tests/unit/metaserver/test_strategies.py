"""A volume in use changes its strategy: who has how much afterwards, and that nothing is ever lost on the way."""

from __future__ import annotations

import random

import pytest

from metadata.balance import slots
from metadata.placement import choose
from metadata.server.healing import Volume
from metadata.state.command import CommandKind, SetServerState, SetTable
from storage.api import GroupDigest
from tests.harness import seed
from tests.unit.metaserver.test_healing import World

MIB = 1 << 20


class Store(World):
    """A world that knows its volume's strategy, and in which groups are of different sizes."""

    def __init__(self, servers: int, replicas: int, weights: tuple[float, ...] = (), *, skew: bool = False) -> None:
        self.skew = skew
        super().__init__(servers, replicas, random.Random(seed("strategies")))
        for server, weight in enumerate(weights, 1):
            self.weigh(server, weight)

    def weigh(self, server: int, weight: float) -> None:
        self.apply(CommandKind.SET_SERVER_STATE, SetServerState(server, "serving", weight))

    @property
    def volume(self) -> Volume:
        machine = self.machine
        strategy = machine.strategy or "weighted"
        return Volume(self.replicas, strategy, machine.pg_epoch, machine.groups, machine.servers())

    def bytes_of(self, group: int, blocks: int) -> int:
        """Groups from a third of the usual size to three times that."""
        return blocks * (MIB * (1 + group * 7 % 17) // 6 if self.skew else MIB)

    def digest(self, number: int, group: int) -> GroupDigest:
        found = super().digest(number, group)
        return GroupDigest(group, found.blocks, self.bytes_of(group, found.blocks), found.digest, found.touches)

    def choose(self, strategy: str) -> None:
        self.apply(CommandKind.SET_TABLE, SetTable(self.machine.pg_epoch, (), strategy=strategy))

    def load(self) -> None:
        """A hundred blocks at most in each group, and all that they are short of."""
        for _ in range(30):
            self.write(100)
            self.step()
            self.check_readable()
        self.settle(400)
        self.check()

    def stored(self) -> dict[int, int]:
        return {
            server: sum(self.bytes_of(block[0], 1) for block in held.blocks) for server, held in self.servers.items()
        }


def by_weight(world: Store, weights: dict[int, float]) -> None:
    """Bytes are within a tenth of the weights."""
    stored = world.stored()
    total, whole = sum(stored.values()), sum(weights.values())
    for server, weight in weights.items():
        assert stored[server] == pytest.approx(total * weight / whole, rel=0.1), (stored, weights)


@pytest.mark.parametrize("skew", [False, True])
def test_a_fourth_server_ends_within_a_tenth_of_the_weights_in_bytes(skew: bool) -> None:
    world = Store(3, 2, skew=skew)
    world.load()
    world.add()
    world.weigh(4, 1.5)
    world.load()
    by_weight(world, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.5})


def test_groups_of_the_same_size_everywhere_are_left_alone() -> None:
    """Bytes differ a little all the time; who is close enough does not move for that."""
    world = Store(4, 3, skew=True)
    world.load()
    moved = world.healing.counts["moves"]
    for _ in range(50):
        world.write(20)
        world.step()
    assert world.healing.counts["moves"] - moved <= 8
    world.settle()


def test_every_strategy_on_a_volume_in_use() -> None:
    weights = {1: 1.0, 2: 2.0, 3: 1.0, 4: 0.5, 5: 1.5}
    world = Store(5, 2, tuple(weights.values()))
    world.load()
    by_weight(world, weights)
    groups = len(world.machine.groups)

    world.choose("round-robin")
    world.load()
    counts = slots(world.machine.table)
    assert max(counts.values()) - min(counts.values()) <= 1 and sum(counts.values()) == 2 * groups

    world.choose("random")
    world.load()
    servers = list(world.healing.view(world.volume, world.fleet, world.now_s).servers)
    candidates = world.healing.candidates(world.volume, world.fleet)
    assert {c.server for c in candidates} == set(servers)
    for number, row in enumerate(world.machine.table):
        assert sorted(row) == sorted(choose(number, candidates, 2, strategy="random")), number
    counts = slots(world.machine.table)
    mean, deviation = 2 * groups / 5, (groups * 0.4 * 0.6) ** 0.5
    assert all(abs(count - mean) < 4 * deviation for count in counts.values())
    assert max(counts.values()) - min(counts.values()) > 1, "chance is not even"

    world.choose("weighted")
    world.load()
    by_weight(world, weights)


@pytest.mark.parametrize("strategy", ["round-robin", "random"])
def test_servers_come_and_go_under_every_strategy(strategy: str) -> None:
    world = Store(4, 2)
    world.choose(strategy)
    world.load()
    world.add()
    world.load()
    counts = slots(world.machine.table)
    assert counts[5] >= len(world.machine.groups) * 2 / 5 / 2
    world.apply(CommandKind.SET_SERVER_STATE, SetServerState(1, "draining"))
    world.load()
    assert world.state(1) == "out" and 1 not in slots(world.machine.table)
    if strategy == "round-robin":
        left = slots(world.machine.table)
        assert max(left.values()) - min(left.values()) <= 1


def test_new_writes_go_where_the_new_strategy_wants_them_before_the_data_have_followed() -> None:
    """A substitute that is still filling takes what is written, and readers find what is older with the others."""
    world = Store(4, 1, (1.0, 1.0, 1.0, 0.01))
    world.load()
    before = slots(world.machine.table).get(4, 0)
    world.choose("round-robin")
    for server in world.servers.values():
        server.up = True
    change = world.healing.table_change(
        world.volume, world.view, world.healing.candidates(world.volume, world.fleet)
    )
    assert change is not None
    world.apply(CommandKind.SET_TABLE, change)
    joined = [group for group in world.machine.groups if 4 in group.filling]
    assert before <= 1 and len(joined) > 5
    assert all(len(group.servers) == 2 and not group.leaving for group in joined)
    world.check_readable()
