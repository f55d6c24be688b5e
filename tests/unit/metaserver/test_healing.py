"""Healing against chunk servers in a dict: whoever is lost, silent, drained or added, every block gets its copies.

The leader's core and the replicated state are the production code; the servers do what they are told, in any order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from metadata.placement import Table
from metadata.rows import View
from metadata.server.fleet import Fleet
from metadata.server.healing import Healing, Volume
from metadata.state.check import check
from metadata.state.command import CommandKind, Format, RegisterServer, SetServerState, SetTable, encode_command
from metadata.state.machine import Machine
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import FsError
from storage.api import DropGroup, GroupDigest, GroupReport, ServerStatus, SyncGroup
from tests.harness import LONG, seed

GIB = 1 << 30
SILENT_S, NOOUT_S = 10.0, 100.0
Block = tuple[int, int]  # group, number


@dataclass
class FakeServer:
    """What a server holds, and whether it runs."""

    address: str
    blocks: set[Block] = field(default_factory=set)
    up: bool = True
    known: dict[int, GroupReport] = field(default_factory=dict)


class World:
    """One leader and its servers. ``step`` lets two seconds pass."""

    def __init__(self, servers: int, replicas: int, random_: random.Random | None = None) -> None:
        self.random = random_ or random.Random(1)
        self.engine = MemoryEngine()
        self.machine = Machine(self.engine)
        self.now_s = 0.0
        self.replicas = replicas
        self.servers: dict[int, FakeServer] = {}
        self.committed: set[Block] = set()
        self.apply(CommandKind.FORMAT, Format(b"c" * 16, replicas))
        self.fleet = Fleet(0.0, replicas=replicas, expected=servers, silent_after_s=SILENT_S)
        for _ in range(servers):
            self.add()
        change = self.fleet.table_change(self.machine.servers(), (), 0, 0.0)
        assert change is not None
        self.apply(CommandKind.SET_TABLE, change)
        self.elect()

    def apply(self, kind: CommandKind, body: msgspec.Struct) -> Any:
        outcome = self.machine.apply(self.machine.applied + 1, 1, encode_command(kind, 1, body))
        assert not isinstance(outcome.reply, FsError), outcome.reply
        return outcome.reply

    def elect(self) -> None:
        """A new leader, which knows nothing."""
        self.term = getattr(self, "term", 0) + 1
        self.fleet = Fleet(self.now_s, replicas=self.replicas, expected=0, silent_after_s=SILENT_S)
        self.healing = Healing(self.term, self.now_s, noout_s=NOOUT_S)
        self.beat()

    def add(self, address: str = "") -> int:
        number = len(self.machine.servers()) + 1
        address = address or f"mem:{number}"
        state = "joining" if self.machine.table else "serving"
        body = RegisterServer(bytes([number]) * 16, f"s{number}", address, f"h{number}", "", 1.0, GIB, state)
        assert self.apply(CommandKind.REGISTER_SERVER, body).server == number
        self.servers[number] = FakeServer(address)
        self.beat()
        return number

    def wipe(self, number: int) -> int:
        """The disk of a server is gone; the process comes back with a new one."""
        address = self.servers.pop(number).address
        fresh = self.add(address)
        self.apply(CommandKind.SET_SERVER_STATE, SetServerState(number, "out", note="lost"))
        return fresh

    def beat(self) -> None:
        for number, server in self.servers.items():
            if server.up:
                uuid = bytes([number]) * 16
                status = ServerStatus(number, uuid, server.address, len(server.blocks), GIB, len(server.blocks))
                self.fleet.heard(number, status, self.now_s)
        self.fleet.lapse(self.now_s)

    @property
    def volume(self) -> Volume:
        machine = self.machine
        return Volume(self.replicas, "weighted", machine.pg_epoch, machine.groups, machine.servers())

    @property
    def view(self) -> View:
        return self.healing.view(self.volume, self.fleet, self.now_s)

    def write(self, count: int) -> int:
        """Put blocks as clients do, each on those of the row that run, or on as few as count; return how many took."""
        taken = 0
        for _ in range(count):
            block = self.random.randrange(len(self.machine.groups)), self.random.getrandbits(60)
            group = self.machine.groups[block[0]]
            able = [s for s in group.servers if s not in group.leaving and s in self.servers and self.servers[s].up]
            if len(able) < self.replicas // 2 + 1:
                continue
            for server in self.random.sample(able, self.random.randint(self.replicas // 2 + 1, len(able))):
                self.servers[server].blocks.add(block)
            self.committed.add(block)
            taken += 1
        return taken

    def step(self) -> None:
        """Heartbeats, questions, decisions, and the work of the servers, or of some of them."""
        self.now_s += 2.0
        self.beat()
        volume = self.volume
        for number, server in self.servers.items():
            if server.up:
                held = [self.digest(number, group) for group in range(len(volume.groups))]
                self.healing.census.asked(number, held)
        self.healing.compare(volume, self.view, self.now_s)
        for change in self.healing.transitions(volume, self.fleet, self.now_s):
            self.apply(CommandKind.SET_SERVER_STATE, change)
        rows: SetTable | None = self.healing.table_change(
            self.volume, self.view, self.healing.candidates(self.volume, self.fleet)
        )
        if rows is not None:
            self.apply(CommandKind.SET_TABLE, rows)
        self.healing.plan_orders(self.volume, self.view)
        for number in self.random.sample(list(self.servers), len(self.servers)):
            if self.servers[number].up:
                self.work(number)

    def digest(self, number: int, group: int) -> GroupDigest:
        mine = [block for block in self.servers[number].blocks if block[0] == group]
        return GroupDigest(group, len(mine), len(mine), repr(sorted(mine)).encode(), 0)

    def work(self, number: int) -> None:
        server = self.servers[number]
        reports = []
        for order in self.healing.orders.orders_for(number, len(self.machine.groups)):
            if isinstance(order, DropGroup):
                assert number not in self.machine.groups[order.group].servers
                server.blocks = {block for block in server.blocks if block[0] != order.group}
            elif isinstance(order, SyncGroup) and self.random.random() < 0.8:
                sources = [self.servers.get(source) for source in order.sources]
                complete = True
                for source in sources:
                    if source is None or not source.up:
                        complete = False
                    else:
                        server.blocks |= {block for block in source.blocks if block[0] == order.group}
                reports.append(GroupReport(
                    order.order, order.group, order.groups, order.pg_epoch, complete, 0, 0, 0, 0, 0, b"", 0
                ))
        self.healing.orders.reported(number, reports)

    def settle(self, steps: int = 200) -> None:
        """Let time pass until everything has its copies and nothing changes any more."""
        calm = 0
        for _ in range(steps):
            before = self.machine.pg_epoch
            self.step()
            short = self.healing.under_replicated(self.volume, self.view)
            changing = any(group.filling or group.leaving for group in self.machine.groups)
            calm = calm + 1 if before == self.machine.pg_epoch and not short and not changing else 0
            if calm > 4:
                return
        raise AssertionError(f"{short} blocks short, {self.machine.groups}, {self.machine.servers()}")

    def check(self) -> None:
        """Every committed block is on as many members of its row as there shall be copies."""
        assert not check(self.engine)
        for block in self.committed:
            row = self.machine.groups[block[0]].servers
            holders = [s for s in row if s in self.servers and block in self.servers[s].blocks]
            assert len(holders) == len(row) == self.replicas, (block, row, holders)

    def check_readable(self) -> None:
        for block in self.committed:
            row = self.machine.groups[block[0]].servers
            assert any(s in self.servers and block in self.servers[s].blocks for s in row), (block, row)

    def state(self, number: int) -> str:
        return next(record.state for record in self.machine.servers() if record.server == number)

    @property
    def table(self) -> Table:
        return self.machine.table


def test_a_silent_server_is_suspect_and_comes_back_without_a_refill() -> None:
    world = World(4, 3)
    world.write(200)
    world.settle()
    before = world.table
    world.servers[2].up = False
    for _ in range(20):
        world.step()
    assert world.state(2) == "suspect" and world.table == before
    assert world.healing.under_replicated(world.volume, world.view) > 0
    world.write(50)
    world.servers[2].up = True
    world.settle()
    assert world.state(2) == "serving" and world.table == before
    world.check()


def test_what_a_group_lacks_that_never_rests_is_known_and_comes() -> None:
    world = World(3, 3)
    world.write(200)
    world.servers[2].up = False
    before = set(world.committed)
    for _ in range(8):
        world.write(100)
        world.step()
    missed = world.committed - before
    world.servers[2].up = True
    told = 0
    for _ in range(30):
        world.write(400)  # to nearly every group
        world.step()
        told = max(told, world.healing.under_replicated(world.volume, world.view))
    assert told > len(missed) // 2, "what is missing has to be told"
    assert missed <= world.servers[2].blocks


def test_a_server_that_stays_away_is_replaced_for_good_and_empties_when_it_returns() -> None:
    world = World(4, 3)
    world.write(200)
    world.servers[2].up = False
    for _ in range(int((SILENT_S + NOOUT_S) / 2) + 2):
        world.step()
    assert world.state(2) == "out"
    world.settle()
    world.check()
    assert all(2 not in row for row in world.table)
    world.servers[2].up = True
    world.settle()
    assert world.state(2) == "serving"
    world.check()
    assert {block[0] for block in world.servers[2].blocks} <= {g for g, row in enumerate(world.table) if 2 in row}


def test_a_wiped_server_fills_up_under_a_new_identity() -> None:
    world = World(3, 3)
    world.write(200)
    fresh = world.wipe(1)
    world.write(50)
    world.settle()
    world.check()
    assert all(set(row) == {2, 3, fresh} for row in world.table)


def test_writers_find_a_substitute_before_anybody_is_given_up() -> None:
    world = World(5, 3)
    world.write(100)
    world.settle()
    for number in (1, 2):
        world.servers[number].up = False
    for _ in range(8):
        world.step()
    assert world.state(1) == "suspect"
    assert world.write(200) == 200
    for number in (1, 2):
        world.servers[number].up = True
    world.settle()
    world.check()


def test_a_drained_server_empties_while_writes_go_on() -> None:
    world = World(4, 3)
    world.write(300)
    world.settle()
    world.apply(CommandKind.SET_SERVER_STATE, SetServerState(3, "draining"))
    for _ in range(60):
        world.step()
        world.write(5)
        world.check_readable()
        for group in world.machine.groups:
            assert len(group.servers) - len(group.filling) >= 3
    world.settle()
    world.check()
    assert world.state(3) == "out" and not world.servers[3].blocks
    world.step()
    assert world.state(3) == "out"


def test_a_new_server_gets_its_share_while_writes_go_on() -> None:
    world = World(3, 3)
    world.write(300)
    fresh = world.add()
    for _ in range(40):
        world.step()
        world.write(5)
        world.check_readable()
    world.settle()
    world.check()
    counts = {number: sum(number in row for row in world.table) for number in world.servers}
    assert all(44 <= count <= 52 for count in counts.values()), counts
    assert fresh in counts


def test_a_new_leader_goes_on_where_the_old_one_was() -> None:
    world = World(4, 3)
    world.write(300)
    world.wipe(2)
    for turn in range(60):
        world.step()
        world.write(3)
        if turn % 5 == 4:
            world.elect()
    world.settle()
    world.check()


def test_a_lone_copy_is_never_given_up() -> None:
    world = World(2, 1)
    world.write(100)
    world.servers[1].up = False
    for _ in range(200):
        world.step()
    world.servers[1].up = True
    world.settle()
    world.check()


def test_any_order_of_losses_drains_and_returns() -> None:
    rng = random.Random(seed("healing"))
    for _ in range(60 if LONG else 4):
        world = World(5, 3, rng)
        world.write(100)
        for _ in range(8):
            _disturb(world, rng)
            for _ in range(rng.randrange(30)):
                world.step()
                world.write(rng.randrange(4))
                if rng.random() < 0.05:
                    world.elect()
            for server in world.servers.values():
                server.up = True
            world.settle(600)
            world.check()


def _disturb(world: World, rng: random.Random) -> None:
    able = [number for number in world.servers if world.state(number) == "serving"]
    number = rng.choice(able)
    action = rng.choice(("down", "wipe", "drain", "add")) if len(able) > 3 else "add"
    if action == "down":
        world.servers[number].up = False
    elif action == "wipe":
        world.wipe(number)
    elif action == "drain":
        world.apply(CommandKind.SET_SERVER_STATE, SetServerState(number, "draining"))
    else:
        world.add()


def test_the_only_server_comes_back_empty() -> None:
    world = World(1, 1)
    world.write(20)
    world.committed.clear()  # they are lost, and nothing can be done about it
    fresh = world.wipe(1)
    world.settle()
    assert set(world.table) == {(fresh,)}
