"""The root machine and the frame around both: servers, table, epochs, time, unknown commands."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from metadata import api
from metadata.state import keys
from metadata.state.command import (
    HEADER_BYTES,
    AdvanceEpoch,
    CommandKind,
    Format,
    IntroduceServer,
    Nothing,
    Reclaim,
    RegisterServer,
    SetServerState,
    SetTable,
    TableItem,
    decode_command,
    encode_command,
)
from metadata.state.machine import Machine
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code, FsError
from tests.unit.state.support import World


@pytest.fixture
def world() -> World:
    return World()


def register(world: World, uuid: int = 1, **more: Any) -> Any:
    fields = {"name": "n", "address": "a", "host": "h", "rack": "r", "weight": 1.0, "capacity_bytes": 10, **more}
    return world.run(CommandKind.REGISTER_SERVER, RegisterServer(bytes([uuid]) * 16, **fields))


def test_servers_are_known_by_their_store(world: World) -> None:
    first = register(world)
    assert isinstance(first, api.ServerRecord) and (first.server, first.state) == (1, "serving")
    assert register(world) == first
    moved = register(world, address="b", state="joining")
    assert (moved.server, moved.address, moved.state) == (1, "b", "serving")
    assert register(world, 2, state="joining").server == 2
    assert world.machine.server_of(b"\1" * 16) == moved and world.machine.server_of(b"\7" * 16) is None
    assert [server.server for server in world.machine.servers()] == [1, 2]
    changed = world.run(CommandKind.SET_SERVER_STATE, SetServerState(2, "draining", 0.5))
    assert (changed.state, changed.weight) == ("draining", 0.5)
    assert world.run(CommandKind.SET_SERVER_STATE, SetServerState(2, "out")).weight == 0.5
    world.sound()
    assert Machine(world.tables).servers() == world.machine.servers()


def test_malformed_servers(world: World) -> None:
    for more in ({"weight": float("nan")}, {"weight": -1.0}, {"state": "odd"}, {"name": "n" * 5000}):
        assert world.code(register(world, **more)) == Code.INVALID
    body = RegisterServer(b"short", "n", "a", "h", "r", 1.0, 1)
    assert world.code(world.run(CommandKind.REGISTER_SERVER, body)) == Code.INVALID
    assert world.code(world.run(CommandKind.SET_SERVER_STATE, SetServerState(9, "out"))) == Code.NOT_FOUND
    assert world.machine.servers() == ()


def test_the_table_changes_from_the_epoch_it_was_seen_at(world: World) -> None:
    register(world, 1)
    register(world, 2)
    reply = world.run(CommandKind.SET_TABLE, SetTable(0, (TableItem(0, (1, 2)), TableItem(3, (2,))), 4))
    assert (reply.pg_epoch, world.machine.table) == (1, ((1, 2), (), (), (2,)))
    stale = world.run(CommandKind.SET_TABLE, SetTable(0, (TableItem(0, (2,)),)))
    assert world.code(stale) == Code.STALE_EPOCH
    for items, groups in (
        ((TableItem(4, (1,)),), 0),
        ((TableItem(-1, (1,)),), 0),
        ((TableItem(0, (1, 1)),), 0),
        ((TableItem(0, (9,)),), 0),
        ((), 8),
        ((), -1),
    ):
        assert world.code(world.run(CommandKind.SET_TABLE, SetTable(1, items, groups))) == Code.INVALID
    assert world.machine.pg_epoch == 1
    world.run(CommandKind.SET_TABLE, SetTable(1, (TableItem(0, (2, 1)),), 4))
    assert world.machine.table[0] == (2, 1)
    world.sound()
    assert Machine(world.tables).table == world.machine.table


def test_an_epoch_advances_once(world: World) -> None:
    for _ in range(2):
        assert world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(1)).gc_epoch == 2
    assert world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(9)).gc_epoch == 2
    assert Machine(world.tables).gc_epoch == 2


def test_nothing_goes_before_the_format() -> None:
    machine = Machine(MemoryEngine())
    assert not machine.formatted and machine.applied == 0
    for index, (kind, body) in enumerate(
        (
            (CommandKind.OPEN_SESSION, api.OpenSession(b"n" * 16, "h", "m", "v")),
            (CommandKind.RECLAIM, Reclaim(1)),
            (CommandKind.FORMAT, Format(b"", 1)),
            (CommandKind.FORMAT, Format(b"c", 0)),
            (CommandKind.FORMAT, Format(b"c", 1, uid=-1)),
            (CommandKind.FORMAT, Format(b"c", 1, mode=1 << 20)),
        ),
        1,
    ):
        reply = machine.apply(index, 1, encode_command(kind, 0, body)).reply
        assert isinstance(reply, FsError) and reply.code == Code.INVALID
    unknown = machine.apply(7, 1, encode_command(CommandKind.SUBMIT, 0, api.Submit(1, 1, 1, ()))).reply
    assert isinstance(unknown, FsError) and unknown.code == Code.UNKNOWN_SESSION
    assert machine.query((api.GetAttr(1), api.StatVolume()))[0].code == Code.STALE  # type: ignore[union-attr]
    assert machine.apply(8, 1, encode_command(CommandKind.FORMAT, 5, Format(b"c", 3, 7, 8, 0o700))).freed == []
    (root,) = machine.query((api.GetAttr(1),))
    assert isinstance(root, api.AttrResult)
    assert (root.attr.mode, root.attr.uid, root.attr.gid, machine.replicas) == (0o40700, 7, 8, 3)


def test_entries_come_one_after_the_other(world: World) -> None:
    applied = world.machine.applied
    for index in (applied, applied + 2, 0):
        with pytest.raises(AssertionError):
            world.machine.apply(index, 1, b"")
    assert world.machine.apply(applied + 1, 7, b"").reply == Nothing()
    assert (world.machine.applied, world.machine.term) == (applied + 1, 7)
    fresh = Machine(world.tables)
    assert (fresh.applied, fresh.term, fresh.time_ns) == (applied + 1, 7, world.machine.time_ns)


def test_time_strictly_rises_whatever_the_clocks_say(world: World) -> None:
    seen = [world.machine.time_ns]
    for now_ns in (seen[0], 0, 5, seen[0] + 100, seen[0] + 50):
        world.apply(encode_command(CommandKind.RECLAIM, now_ns, Reclaim(1)))
        seen.append(world.machine.time_ns)
    assert [time - seen[0] for time in seen] == [0, 1, 2, 3, 100, 101]


@pytest.mark.parametrize("position,value", [(0, 3), (0, 0), (1, 9), (2, 200), (1, 0), (7, 1)])
def test_a_command_of_the_future_stops_the_member(world: World, position: int, value: int) -> None:
    data = bytearray(encode_command(CommandKind.SUBMIT, 1, api.Submit(1, 1, 1, ())))
    data[position] = value
    before = world.machine.digest()
    for broken in (bytes(data), b"x"):
        with pytest.raises(FsError, match="UNSUPPORTED_VERSION"):
            world.machine.apply(world.machine.applied + 1, 1, broken)
    assert world.machine.digest() == before


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x93\x01", msgspec.msgpack.encode((b"", b"", 1, ((99,),))), b"\xff" * 40, b"\x91" * 5000]
)
def test_a_malformed_body_is_answered(world: World, body: bytes) -> None:
    for kind in CommandKind:
        reply = world.apply(encode_command(kind, 1, body)).reply
        assert isinstance(reply, FsError) and reply.code == Code.PROTOCOL
    world.sound()


def test_a_body_is_taken_as_it_is() -> None:
    body = msgspec.msgpack.encode(api.Submit(1, 2, 1, (api.Release((5,)),)))
    data = encode_command(CommandKind.SUBMIT, 77, body)
    assert data[HEADER_BYTES:] == body
    assert struct.unpack_from(">Q", data, 8) == (77,)
    assert decode_command(data).body == api.Submit(1, 2, 1, (api.Release((5,)),))


def test_a_wild_clock_does_not_use_up_the_time(world: World) -> None:
    for _ in range(3):
        world.apply(encode_command(CommandKind.RECLAIM, (1 << 64) - 1, Reclaim(1)))
    assert world.machine.time_ns == (1 << 62) + 2
    world.make(b"f")
    world.sound()


def test_every_slot_belongs_to_group_0_until_the_table_says_otherwise(world: World) -> None:
    assert {world.machine.group_of(ino) for ino in (1, 1 << 44, (1 << 64) - 1)} == {0}
    world.tables.put(keys.slot(5), keys.NUMBER.pack(3))
    assert [world.machine.group_of(slot << 44) for slot in (4, 5, 6)] == [0, 3, 3]


def test_introduced_servers_are_known_by_their_keys(world: World) -> None:
    first, second = "k" * 40, "j" * 40
    told = world.run(CommandKind.INTRODUCE_SERVER, IntroduceServer("s1", "tcp://h:1", first))
    assert isinstance(told, api.ServerRecord) and (told.server, told.public_key) == (0, first)
    before = world.machine.introduced
    world.run(CommandKind.INTRODUCE_SERVER, IntroduceServer("s1", "tcp://h:1", first))
    assert world.machine.introduced is before, "nothing changed"
    assert register(world, name="s1", address="tcp://h:1").public_key == first
    assert register(world, 2, name="s1", address="tcp://h:2").public_key == "", "somebody else"
    assert register(world, 3, public_key=second).public_key == second
    world.run(CommandKind.INTRODUCE_SERVER, IntroduceServer("s2", "tcp://h:2", second))
    world.sound()
    assert Machine(world.tables).introduced == world.machine.introduced
    world.run(CommandKind.INTRODUCE_SERVER, IntroduceServer("s1", ""))
    assert [known.name for known in world.machine.introduced] == ["s2"]
    for name, key in (("", first), ("n" * 5000, first), ("s", "short")):
        refused = world.run(CommandKind.INTRODUCE_SERVER, IntroduceServer(name, "a", key))
        assert isinstance(refused, FsError) and refused.code is Code.INVALID
    world.sound()
