"""The auditor finds every kind of damage: each is done to a sound state, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from metadata import api
from metadata.state import keys
from metadata.state.check import check
from metadata.state.command import CommandKind, RegisterServer
from metadata.state.records import (
    Purge,
    decode_inode,
    decode_row,
    decode_server,
    decode_session,
    decode_shard,
    encode,
)
from metadata.state.tables import Tables
from tests.unit.state.support import DIR, ROOT, World, block, extent

Damage = Callable[[Tables], None]
D, F, G, BIG, GONE = 2, 3, 4, 5, 6  # inodes of the sound state


def sound_state() -> World:
    """A directory, a file with two names in it, a plain file, a file with rows, a removed file, some of the rest."""
    world = World(sessions=2)
    world.make(b"d", DIR)
    world.make(b"f", parent=D)
    world.do(api.Link(F, ROOT, b"f2"))
    world.make(b"g")
    world.make(b"big")
    world.make(b"gone")
    world.write(G, extent(0, 8, 1))
    world.write(BIG, *[extent(chunk << 20, 8, chunk, 0, 8) for chunk in range(2, 23)])
    world.write(G, extent(0, 8, 3))
    world.do(api.SetXattr(G, b"user.a", b"1"))
    world.do(api.AllocateInos(3))
    world.do(api.Remove(ROOT, b"gone", not_held=(GONE,)))
    world.run(CommandKind.REGISTER_SERVER, RegisterServer(b"u" * 16, "a", "b", "c", "d", 1.0, 5))
    assert check(world.tables) == []
    return world


def inode(number: int, /, **changes: Any) -> Damage:
    def damage(tables: Tables) -> None:
        value = tables.get(keys.inode(number))
        assert value is not None
        tables.put(keys.inode(number), encode(replace(decode_inode(value), **changes)))

    return damage


def put(key: bytes, value: bytes = b"") -> Damage:
    return lambda tables: tables.put(key, value)


def delete(key: bytes) -> Damage:
    def damage(tables: Tables) -> None:
        assert tables.delete(key), key

    return damage


def change(key: bytes, decode: Callable[[bytes], Any], **changes: Any) -> Damage:
    def damage(tables: Tables) -> None:
        value = tables.get(key)
        assert value is not None
        tables.put(key, encode(replace(decode(value), **changes)))

    return damage


number = keys.NUMBER.pack
entry = keys.DENTRY_VALUE.pack

DAMAGES: dict[str, Damage] = {
    "a lost entry": delete(keys.dentry(D, b"f")),
    "an entry of nothing": put(keys.dentry(D, b"x"), entry(99, 8)),
    "an entry in a file": put(keys.dentry(G, b"x"), entry(G, 8)),
    "an entry with a bad name": put(keys.dentry(D, b"a/b"), entry(G, 8)),
    "an entry of another type": put(keys.dentry(ROOT, b"g"), entry(G, 4)),
    "a second name of a directory": put(keys.dentry(D, b"self"), entry(D, 4)),
    "a lost inode": delete(keys.inode(G)),
    "an inode out of nothing": put(keys.inode(7), b""),
    "nlink of a file": inode(G, nlink=2),
    "nlink of a directory": inode(ROOT, nlink=9),
    "entries of a directory": inode(D, size=7),
    "the parent of a directory": inode(D, parent=G),
    "the parent of a file": inode(G, parent=D),
    "the name in a file": inode(G, name=b"other"),
    "the root's parent": inode(ROOT, parent=D),
    "the type": inode(G, mode=0o644),
    "the number": inode(G, ino=9),
    "a lost link parent": delete(keys.link(F, D, b"f")),
    "a link parent too many": put(keys.link(G, ROOT, b"g")),
    "a link parent of nothing": put(keys.link(99, ROOT, b"g")),
    "a lost orphan": delete(keys.orphan(2, GONE)),
    "an orphan with a name": put(keys.orphan(1, G)),
    "an orphan of an unknown session": put(keys.orphan(7, GONE)),
    "holders": inode(GONE, holders=2),
    "stored bytes": inode(G, stored=9),
    "the number of rows": inode(BIG, rows=3),
    "a lost row": delete(keys.extents(BIG, 0, 5)),
    "a row of another generation": inode(BIG, generation=1),
    "extents in a directory": inode(D, extents=(extent(0, 8, 3),)),
    "extents out of order": inode(G, extents=(extent(4, 4, 3, 4, 8), extent(0, 4, 3, 0, 8))),
    "extents that should be one": inode(G, extents=(extent(0, 4, 3, 0, 8), extent(4, 4, 3, 4, 8))),
    "data beyond the end": inode(G, size=3),
    "a purge without a job": inode(BIG, purges=(Purge(0, 5, 1),)),
    "a row of the future": change(keys.extents(BIG, 0, 5), decode_row, version=99),
    "a row in the wrong chunk": change(keys.extents(BIG, 0, 5), decode_row, extents=(extent(0, 8, 2, 0, 8),)),
    "a reference too many": put(keys.count(block(3)), number(3)),
    "a reference too few": delete(keys.count(block(3))),
    "a lost candidate": delete(keys.candidate(1, block(1000))),
    "a candidate with references": put(keys.candidate(1, block(3))),
    "a candidate of another epoch": put(keys.count(block(1000)), number(0) + number(5)),
    "an attribute of nothing": put(keys.xattr(99, b"user.a"), b"1"),
    "a lost attribute": delete(keys.xattr(G, b"user.a")),
    "the size of attributes": inode(G, xattr_bytes=3),
    "a result of nobody": put(keys.result(9, 1), b""),
    "a result outside the window": put(keys.result(1, 100_000), b""),
    "result bytes": change(keys.session(1), decode_session, result_bytes=1),
    "a lost nonce": delete(keys.nonce(bytes(16))),
    "unused numbers": change(keys.session(1), decode_session, unused=1),
    "unused numbers that were not given": put(keys.unused(1, 1 << 40), number(1 << 39)),
    "the count of inodes": change(keys.SHARD_KEY, decode_shard, files=1),
    "the count of bytes": change(keys.SHARD_KEY, decode_shard, bytes=1),
    "the next inode number": change(keys.SHARD_KEY, decode_shard, next_sequence=4),
    "the identity of a server": change(keys.server(1), decode_server, uuid=b"v" * 16),
    "a row of no kind": put(b"Q12345678"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found(what: str) -> None:
    world = sound_state()
    if what in ("a lost candidate", "a candidate of another epoch"):
        world.do(api.Commit(G, (extent(0, 8, 1000),), 8, 0, 1))
        world.do(api.Commit(G, (extent(0, 8, 3),), 8, 0, 1))
        assert check(world.tables) == []
    if what == "an inode out of nothing":
        value = world.tables.get(keys.inode(G))
        assert value is not None
        world.tables.put(keys.inode(7), encode(replace(decode_inode(value), ino=7)))
    else:
        DAMAGES[what](world.tables)
    assert check(world.tables)


def test_a_cycle_of_directories_is_found() -> None:
    world = World()
    a = world.make(b"a", DIR)
    b = world.make(b"b", DIR, a)
    world.tables.delete(keys.dentry(ROOT, b"a"))
    world.tables.put(keys.dentry(b, b"a"), entry(a, 4))
    for ino, changes in ((ROOT, {"nlink": 2, "size": 0}), (a, {"parent": b}), (b, {"nlink": 3, "size": 1})):
        inode(ino, **changes)(world.tables)
    assert check(world.tables) == [f"inode {ino} cannot be reached from the root" for ino in (a, b)]
