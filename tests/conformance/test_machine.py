"""The state machine on every engine: the same log gives the same outcomes and the same state, restarts included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metadata import api
from metadata.state.check import check
from metadata.state.machine import Machine, Outcome
from metadata.state.tables import Engine
from metadata.store.disk import RealDisk
from metadata.store.engine_lmdb import LmdbEngine
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import FsError
from node.wire.limits import MIB
from tests.unit.state.support import World
from tests.unit.state.test_hostile import Fuzz


@contextmanager
def lmdb_engine(directory: Path) -> Iterator[Engine]:
    engine = LmdbEngine(RealDisk(), str(directory / "state"), map_bytes=64 * MIB)
    try:
        yield engine
    finally:
        engine.close()


def recorded(seed: int, steps: int = 600) -> World:
    """A log of everything a client can send, sensible and hostile."""
    fuzz = Fuzz(seed)
    world = World(sessions=2)
    for step in range(steps):
        session = 1 + step % 2
        lowest = max(1, world.sequences[session] - 3)
        world.submit(fuzz.op(), fuzz.op(), session=session, lowest_unacked=lowest)
        if step % 40 == 0:
            world.reclaim(5)
    return world


def plain(outcome: Outcome) -> tuple[object, ...]:
    reply = (outcome.reply.code, outcome.reply.detail) if isinstance(outcome.reply, FsError) else outcome.reply
    return reply, outcome.encoded, outcome.orphaned, outcome.freed, outcome.ended


@pytest.mark.parametrize("seed", range(2))
def test_the_same_log_gives_the_same_state_on_every_engine(tmp_path: Path, seed: int) -> None:
    world = recorded(seed)
    memory = MemoryEngine()
    one = Machine(memory)
    with lmdb_engine(tmp_path) as engine:
        two = Machine(engine)
        for index, data in enumerate(world.log, 1):
            assert plain(one.apply(index, 1, data)) == plain(two.apply(index, 1, data))
            if index % 97 == 0:
                engine.commit()
        assert one.digest() == two.digest() == world.machine.digest()
        assert check(engine) == check(memory) == []
        queries = [Fuzz(seed).query() for _ in range(200)]
        assert one.query(queries) == two.query(queries)


def test_a_crash_goes_back_to_the_last_commit_and_the_log_leads_on(tmp_path: Path) -> None:
    world = recorded(7, 300)
    half = len(world.log) // 2
    with lmdb_engine(tmp_path) as engine:
        machine = Machine(engine)
        for index, data in enumerate(world.log, 1):
            machine.apply(index, 1, data)
            if index == half:
                engine.commit()
    with lmdb_engine(tmp_path) as engine:
        machine = Machine(engine)
        assert machine.applied == half
        for index in range(half + 1, len(world.log) + 1):
            machine.apply(index, 1, world.log[index - 1])
        assert machine.digest() == world.machine.digest()


def test_a_machine_goes_on_from_a_snapshot(tmp_path: Path) -> None:
    world = recorded(8, 200)
    engine = world.tables
    assert isinstance(engine, MemoryEngine)
    engine.commit()
    with lmdb_engine(tmp_path) as other:
        machine = Machine(other)
        machine.apply(1, 1, world.log[0])
        with engine.snapshot() as view:
            other.replace(view.items())
        machine.reload()
        assert (machine.applied, machine.digest()) == (world.machine.applied, world.machine.digest())
        before = len(world.log)
        world.submit(api.Make(1, b"after", 0o100644, 0, 0))
        machine.apply(before + 1, 1, world.log[-1])
        assert machine.digest() == world.machine.digest()
