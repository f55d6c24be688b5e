"""The machine against the dumb model: names, links, renames, data, sessions, in any order, with small geometry."""

from __future__ import annotations

import os
import stat
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from metadata import api
from metadata.state.command import BlocksReply, CommandKind, ExpireSession, MoveOut, Reclaim
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code
from storage.api import name_block
from tests.unit.state.model import Byte, Model, Node
from tests.unit.state.support import DIR, FILE, LNK, World, block, replay, small_geometry

CHUNK = 16
FILE_BYTES = 12 * CHUNK
NAMES = st.sampled_from([b"a", b"b", b"c"])
SEED = st.integers(0, 1 << 30)
OFFSETS = st.integers(0, FILE_BYTES)
LENGTHS = st.integers(1, FILE_BYTES)


def pieces(offset: int, cells: list[Byte]) -> tuple[api.Extent, ...]:
    """Extents that write these cells at an offset, cut at chunk boundaries; holes between them stay holes."""
    found: list[api.Extent] = []
    for at, cell in enumerate(cells, offset):
        if cell is None:
            continue
        name, start = cell
        last = found[-1] if found else None
        if (
            last is not None
            and last.offset + last.length == at
            and last.block == name
            and last.block_offset + last.length == start
            and at % CHUNK
        ):
            found[-1] = api.Extent(last.offset, last.length + 1, name, last.block_offset, CHUNK)
        else:
            found.append(api.Extent(at, 1, name, start, CHUNK))
    return tuple(found)


class Comparison(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(sessions=2)
        self.model = Model()
        self.model.sessions = {1, 2}
        self.opened = 2
        self.plant()

    def plant(self) -> None:
        """Something to work on: two directories, one in the other, and two files with data."""
        for parent, name, mode in ((1, b"a", DIR), (2, b"b", DIR), (1, b"c", FILE), (2, b"a", FILE)):
            self.world.do(api.Make(parent, name, mode, 0, 0))
            self.model.make(parent, name, mode, True)
        for ino, number in ((4, 1), (5, 2)):
            cells: list[Byte] = [(block(number), at % CHUNK) for at in range(6 * CHUNK)]
            self.world.do(api.Commit(ino, pieces(0, cells), len(cells), 0, 1))
            self.model.write(ino, 0, cells)

    # --- choosing: seeds become inodes and sessions that exist, or existed ---

    def ino(self, seed: int) -> int:
        """Mostly something that exists, sometimes something that did."""
        known = sorted(self.model.all)
        return known[seed % len(known)] if seed % 11 else 1 + seed % self.model.next_ino

    def directory(self, seed: int) -> int:
        known = sorted(ino for ino, node in self.model.all.items() if node.is_dir)
        return known[seed % len(known)] if seed % 11 else self.ino(seed)

    def file(self, seed: int) -> int:
        known = sorted(ino for ino, node in self.model.all.items() if node.is_file)
        return known[seed % len(known)] if known and seed % 11 else self.ino(seed)

    def session(self, seed: int) -> int:
        known = sorted(self.model.sessions)
        return known[seed % len(known)]

    def same(self, expected: Node | Code, result: Any) -> None:
        if isinstance(expected, Code):
            assert isinstance(result, api.Failed), (expected, result)
            assert result.code == expected, (expected, result)
        else:
            assert not isinstance(result, api.Failed), result
            attr = getattr(result, "attr", None)
            assert (attr.ino if attr is not None else result.ino) == expected.ino

    # --- names ---

    @rule(
        parent=SEED,
        name=NAMES,
        mode=st.sampled_from([FILE, FILE, DIR, DIR, DIR | stat.S_ISGID, LNK]),
        exclusive=st.booleans(),
    )
    def make(self, parent: int, name: bytes, mode: int, exclusive: bool) -> None:
        ino = self.directory(parent)
        target = b"there" if mode == LNK else b""
        result = self.world.try_(api.Make(ino, name, mode, 0, 0, target=target, exclusive=exclusive))
        self.same(self.model.make(ino, name, mode, exclusive, target), result)

    @rule(ino=SEED, parent=SEED, name=NAMES)
    def link(self, ino: int, parent: int, name: bytes) -> None:
        ino, parent = self.file(ino), self.directory(parent)
        self.same(self.model.link(ino, parent, name), self.world.try_(api.Link(ino, parent, name)))

    @rule(parent=SEED, name=NAMES, directory=st.booleans(), session=SEED, vouch=st.booleans())
    def remove(self, parent: int, name: bytes, directory: bool, session: int, vouch: bool) -> None:
        parent, session = self.directory(parent), self.session(session)
        vouched = tuple(self.model.all) if vouch else ()
        result = self.world.try_(api.Remove(parent, name, directory, vouched), session)
        expected = self.model.remove(parent, name, directory, session, vouch)
        self.same(expected, result)
        if isinstance(expected, Node):
            assert result.held == (session in expected.holders and expected.ino in self.model.all)

    @rule(
        parent=SEED,
        name=NAMES,
        new_parent=SEED,
        new_name=NAMES,
        flags=st.sampled_from([0, 0, 0, 1, 2, 2, 3]),
        session=SEED,
        vouch=st.booleans(),
    )
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, session: int, vouch: bool
    ) -> None:
        parent, new_parent, session = self.directory(parent), self.directory(new_parent), self.session(session)
        vouched = tuple(self.model.all) if vouch else ()
        result = self.world.try_(api.Rename(parent, name, new_parent, new_name, flags, vouched), session)
        self.same(self.model.rename(parent, name, new_parent, new_name, flags, session, vouch), result)

    @rule(session=SEED, ino=SEED)
    def release(self, session: int, ino: int) -> None:
        session = self.session(session)
        removed = sorted(number for number, node in self.model.all.items() if node.holders)
        ino = removed[ino % len(removed)] if removed and ino % 11 else self.ino(ino)
        self.world.do(api.Release((ino, ino, 10**9)), session)
        self.model.release(session, ino)

    @rule(seed=SEED)
    def end_session(self, seed: int) -> None:
        session = self.session(seed)
        if session == 1:
            return
        self.world.run(CommandKind.EXPIRE_SESSION, ExpireSession(session))
        self.model.end_session(session)
        self.world.reclaim(budget=2)

    @rule()
    def open_session(self) -> None:
        if len(self.model.sessions) < 3:
            self.opened += 1
            self.model.sessions.add(self.world.open(self.opened))

    # --- data ---

    def cells(self, seed: int, length: int, offset: int) -> list[Byte]:
        """Bytes of a few blocks: sometimes contiguous ones, sometimes every byte from another place, some holes."""
        name, style = block(seed % 5), seed % 3
        if style == 0:
            return [(name, (offset + at) % CHUNK) for at in range(length)]
        if style == 1:
            return [(name, (at * 7 + seed) % CHUNK) for at in range(length)]
        return [None if at % 3 == 2 else (block(at % 4), at % CHUNK) for at in range(length)]

    @rule(ino=SEED, offset=OFFSETS, length=st.integers(0, 3 * CHUNK), seed=SEED)
    def write(self, ino: int, offset: int, length: int, seed: int) -> None:
        ino = self.file(ino)
        cells = self.cells(seed, length, offset)
        result = self.world.try_(api.Commit(ino, pieces(offset, cells), offset + length, 0, 1))
        node = self.model.all.get(ino)
        if node is not None and node.is_file:
            for at, cell in enumerate(cells):
                if cell is None and offset + at < len(node.data):
                    cells[at] = node.data[offset + at]  # what no extent covers stays
        self.same(self.model.write(ino, offset, cells), result)

    @rule(ino=SEED, offset=OFFSETS, length=st.integers(1, CHUNK), seed=SEED)
    def write_along(self, ino: int, offset: int, length: int, seed: int) -> None:
        """The bytes come with the commit."""
        ino, length = self.file(ino), min(length, CHUNK - offset % CHUNK)
        data = bytes([65 + seed % 4]) * length
        cells: list[Byte] = [(name_block(data), at) for at in range(length)]
        extent = api.Extent(offset, length, name_block(data), 0, length)
        result = self.world.try_(api.Commit(ino, (extent,), offset + length, 0, 1, data=data))
        self.same(self.model.write(ino, offset, cells), result)

    @rule(seed=SEED)
    def move(self, seed: int) -> None:
        """Some of those that came so are on chunk servers now. Nobody sees a difference."""
        logged = [block for block, _ in self.world.machine.logged(b"", 100, 1 << 20)]
        chosen = tuple([block for at, block in enumerate(logged) if seed >> at & 1])
        reply = self.world.run(CommandKind.MOVE_OUT, MoveOut(chosen, self.world.machine.gc_epoch, 0))
        assert reply == BlocksReply(len(chosen))

    @rule(ino=SEED, expected=OFFSETS, length=st.integers(1, 3 * CHUNK), seed=SEED)
    def append(self, ino: int, expected: int, length: int, seed: int) -> None:
        ino = self.file(ino)
        cells = self.cells(seed, length, expected)
        node = self.model.all.get(ino)
        size = len(node.data) if node is not None else 0
        op = api.Commit(
            ino, pieces(expected, cells), expected + length, 0, 1, append=True, expected_size=expected
        )
        result = self.world.try_(op)
        self.same(self.model.append(ino, cells), result)
        if isinstance(result, api.Committed):
            assert result.offset == size

    @rule(ino=SEED, size=OFFSETS)
    def truncate(self, ino: int, size: int) -> None:
        ino = self.file(ino)
        self.same(self.model.truncate(ino, size), self.world.try_(api.SetAttr(ino, size=size)))

    @rule(ino=SEED, offset=OFFSETS, length=LENGTHS)
    def punch(self, ino: int, offset: int, length: int) -> None:
        ino = self.file(ino)
        self.same(self.model.punch(ino, offset, length), self.world.try_(api.PunchHole(ino, offset, length)))

    @rule(source=SEED, offset=OFFSETS, copy=SEED, to=OFFSETS, length=LENGTHS)
    def clone(self, source: int, offset: int, copy: int, to: int, length: int) -> None:
        source, target = self.file(source), self.file(copy)
        result = self.world.try_(api.CloneRange(source, offset, target, to, length))
        self.same(self.model.clone(source, offset, target, to, length), result)

    @rule(budget=st.integers(1, 5))
    def reclaim(self, budget: int) -> None:
        self.world.run(CommandKind.RECLAIM, Reclaim(budget))

    # --- attributes ---

    @rule(ino=SEED, mode=st.sampled_from([0o600, 0o755, 0o2755]))
    def chmod(self, ino: int, mode: int) -> None:
        ino = self.ino(ino)
        self.same(self.model.chmod(ino, mode), self.world.try_(api.SetAttr(ino, mode=mode)))

    @rule(ino=SEED, name=NAMES, value=st.binary(max_size=3), flags=st.sampled_from([0, 1, 2]))
    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        ino = self.ino(ino)
        result = self.world.try_(api.SetXattr(ino, name, value, flags))
        self.same(self.model.set_xattr(ino, name, value, flags), result)

    @rule(ino=SEED, name=NAMES)
    def remove_xattr(self, ino: int, name: bytes) -> None:
        ino = self.ino(ino)
        self.same(self.model.remove_xattr(ino, name), self.world.try_(api.RemoveXattr(ino, name)))

    # --- comparing ---

    @invariant()
    def agree(self) -> None:
        self.world.sound()
        assert self.world.machine.files == len(self.model.all)
        for ino, node in self.model.all.items():
            self.agree_on(ino, node)
        for session in self.model.sessions:
            held = {ino for ino, node in self.model.all.items() if session in node.holders}
            assert set(self.world.machine.orphans_of(session)) == held

    def agree_on(self, ino: int, node: Node) -> None:
        attr = self.world.attr(ino)
        assert (attr.mode, attr.nlink, attr.gid) == (node.mode, self.model.nlink(node), node.gid)
        names = self.world.ask(api.ListXattr(ino)).names
        assert {name: self.world.ask(api.GetXattr(ino, name)).value for name in names} == node.xattrs
        if node.is_dir:
            entries = self.world.ask(api.ReadDir(ino, b"", 100)).entries
            assert [(e.name, e.ino) for e in entries] == [(n, node.entries[n].ino) for n in sorted(node.entries)]
            for name, child in node.entries.items():
                if child.is_dir:
                    assert self.world.ask(api.Walk(ino, (name, b".."))).attr.ino == ino
        elif node.is_file:
            cells: list[Byte] = [None] * attr.size
            for extent in self.world.extents(ino):
                for at in range(extent.length):
                    cells[extent.offset + at] = (extent.block, extent.block_offset + at)
            assert cells == node.data

    def teardown(self) -> None:
        self.world.reclaim(budget=3)
        self.world.sound()
        alive = self.model.references()
        for number in range(5):
            assert (self.world.machine.references(block(number)) > 0) == (block(number) in alive)
        again = replay(self.world.log, MemoryEngine())
        assert again.digest() == self.world.machine.digest()


@pytest.mark.parametrize("erase_rows", [3, 1000])
def test_any_sequence_of_operations_agrees_with_the_model(
    monkeypatch: pytest.MonkeyPatch, erase_rows: int
) -> None:
    small_geometry(monkeypatch, CHUNK, erase_rows)
    run_state_machine_as_test(
        Comparison,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def stride(walk: Comparison, random: Random) -> None:
    """One random rule of a long walk; data and names in equal shares, the rare ones rarely."""
    seed = partial(random.randrange, 1 << 30)
    name = partial(random.choice, [b"a", b"b", b"c", b"d"])
    offset = partial(random.randrange, FILE_BYTES)
    flip = partial(random.choice, [False, True])
    match random.choices(range(14), [30, 8, 10, 20, 6, 1, 2, 12, 6, 6, 6, 8, 4, 4])[0]:
        case 0:
            walk.make(seed(), name(), random.choice([FILE, FILE, DIR, DIR, DIR | stat.S_ISGID, LNK]), flip())
        case 1:
            walk.link(seed(), seed(), name())
        case 2:
            walk.remove(seed(), name(), flip(), seed(), flip())
        case 3:
            walk.rename(seed(), name(), seed(), name(), random.choice([0, 0, 0, 1, 2, 2, 3]), seed(), flip())
        case 4:
            walk.release(seed(), seed())
        case 5:
            walk.end_session(seed())
        case 6:
            walk.open_session()
        case 7:
            walk.write(seed(), offset(), random.randrange(3 * CHUNK), seed())
        case 8:
            walk.append(seed(), offset(), 1 + random.randrange(3 * CHUNK), seed())
        case 9:
            walk.truncate(seed(), random.choice([0, offset(), offset()]))
        case 10:
            walk.punch(seed(), offset(), 1 + offset())
        case 11:
            walk.clone(seed(), offset(), seed(), offset(), 1 + offset())
        case 12:
            walk.reclaim(1 + random.randrange(4))
        case 13:
            if flip():
                walk.set_xattr(seed(), name(), random.randbytes(2), random.choice([0, 1, 2]))
            else:
                walk.remove_xattr(seed(), name())
                walk.chmod(seed(), random.choice([0o600, 0o755, 0o2755]))


@pytest.mark.parametrize("erase_rows", [3, 1000])
@pytest.mark.parametrize("seed", range(100 if os.environ.get("LONG") else 2))
def test_long_walks_agree_with_the_model(monkeypatch: pytest.MonkeyPatch, erase_rows: int, seed: int) -> None:
    small_geometry(monkeypatch, CHUNK, erase_rows)
    random = Random(seed)
    walk = Comparison()
    for step in range(1200):
        stride(walk, random)
        if step % 25 == 0:
            walk.agree()
    walk.agree()
    walk.teardown()
