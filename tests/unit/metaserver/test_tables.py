"""What the leader tells chunk servers of the table."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from metadata.server.tables import Tables
from metadata.state.command import CommandKind, Format, RegisterServer, SetTable, TableItem, encode_command
from metadata.state.machine import Machine
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import FsError
from storage.api import GroupRow, PlacementTable
from tests.harness import seed
from tests.unit.metaserver.test_member import beat
from tests.unit.metaserver.world import world

GROUPS = 16
SERVERS = 5


class Volume:
    """A machine whose table changes."""

    def __init__(self) -> None:
        self.machine = Machine(MemoryEngine())
        self.apply(CommandKind.FORMAT, Format(b"c" * 16, 2))
        for server in range(1, SERVERS + 1):
            body = RegisterServer(bytes([server]) * 16, f"s{server}", f"mem:{server}", "", "", 1.0, 1 << 40)
            self.apply(CommandKind.REGISTER_SERVER, body)

    def apply(self, kind: CommandKind, body: msgspec.Struct) -> None:
        reply = self.machine.apply(self.machine.applied + 1, 1, encode_command(kind, 1, body)).reply
        assert not isinstance(reply, FsError), reply

    def change(self, rng: random.Random) -> None:
        items = []
        for group in rng.sample(range(GROUPS), rng.randrange(GROUPS)):
            row = tuple(rng.sample(range(1, SERVERS + 1), 3))
            items.append(TableItem(group, row, row[:1] if rng.random() < 0.3 else (), row[2:]))
        length = 0 if self.machine.groups else GROUPS
        self.apply(CommandKind.SET_TABLE, SetTable(self.machine.pg_epoch, tuple(items), length))

    def rows(self) -> list[GroupRow]:
        return [GroupRow(n, g.changed, g.servers, g.filling, g.leaving) for n, g in enumerate(self.machine.groups)]


def test_servers_that_ask_now_and_then_end_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadata.server.tables.TABLE_ROWS_MAX", 3)
    rng = random.Random(seed("tables"))
    volume = Volume()
    leaders = [Tables(volume.machine)]
    readers = [PlacementTable() for _ in range(4)]
    assert leaders[0].behind((0, 0)) is None
    for _ in range(400):
        chance = rng.random()
        if chance < 0.1:
            volume.change(rng)
        elif chance < 0.13:
            leaders.append(Tables(volume.machine))  # another leader, which has told nobody yet
        else:
            reader = rng.choice(readers)
            found = leaders[-1].behind(reader.reached)
            assert found is None or len(found.rows) <= 3
            assert (found is not None and reader.take(found)) or reader.epoch == volume.machine.pg_epoch
    for reader in readers:
        while (found := leaders[-1].behind(reader.reached)) is not None:
            reader.take(found)
        assert list(reader.rows) == volume.rows() and reader.epoch == volume.machine.pg_epoch


async def test_heartbeats_bring_the_table(tmp_path: Path) -> None:
    async with world(tmp_path, servers=2, replicas=2) as made:
        await made.ask(beat(1))
        assert (await made.ask(beat(2))).table is None
        machine = made[1].node is not None and made[1].node.machine
        assert machine
        await made.until(lambda: machine.table)
        known = PlacementTable()
        reply = await made.ask(beat(1))
        assert known.take(reply.table) and known.epoch == reply.pg_epoch == machine.pg_epoch
        assert [row.servers for row in known.rows] == list(machine.table)
        again = await made.ask(msgspec.structs.replace(beat(1), reached=known.reached))
        assert again.table is None


async def test_lists_are_told_until_a_server_has_taken_them(tmp_path: Path) -> None:
    """An answer that was lost is no answer: whom to let in must not wait for the next change of the table."""
    async with world(tmp_path, servers=2, replicas=2) as made:
        await made.ask(beat(1))
        await made.ask(beat(2))
        machine = made[1].node is not None and made[1].node.machine
        assert machine
        await made.until(lambda: machine.table)
        lost = await made.ask(beat(1))
        told = await made.ask(msgspec.structs.replace(beat(1), pg_epoch=lost.pg_epoch))
        assert told.servers is not None and len(told.servers) == 2 and told.members
        knows = msgspec.structs.replace(beat(1), pg_epoch=told.pg_epoch, lists=told.lists)
        silent = await made.ask(knows)
        assert silent.servers is None and not silent.members
        third = beat(3)
        assert (await made.ask(third)).pg_epoch == told.pg_epoch, "the table is as it was"
        assert len((await made.ask(knows)).servers) == 3
