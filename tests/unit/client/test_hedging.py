"""Reads that take long are asked of another replica, within a budget; what is bad is told to whom it belongs."""

from __future__ import annotations

import os
import random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusefs.client import hedging
from fusefs.client.hedging import Hedging
from metadata import api
from node.wire.types import ROOT_INO
from storage import api as storage

from .world import Gate, World


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_extra_requests_stay_within_the_budget(requests: int, seed: int) -> None:
    choice = random.Random(seed)
    hedges = Hedging()
    for _ in range(requests):
        hedges.ask()
        if choice.random() < 0.5:
            hedges.spend(choice.randrange(1, 5))
    assert hedges.hedged <= hedging.BUDGET_MAX + requests * hedging.SHARE


def test_patience_is_what_all_but_a_few_kept() -> None:
    hedges = Hedging()
    assert hedges.patience_s(100) == hedging.PATIENCE_S_FIRST
    for _ in range(20):
        for number in range(100):
            hedges.answered(1, 100, 0.010 if number % 50 else 1.0)
    assert hedges.patience_s(100) == 0.010
    assert hedges.patience_s(1 << 20) == hedging.PATIENCE_S_FIRST, "another class"
    for _ in range(500):
        hedges.answered(1, 100, 1e-6)
    assert hedges.patience_s(100) == hedging.PATIENCE_S_MIN
    for _ in range(500):
        hedges.answered(1, 100, 100.0)
    assert hedges.patience_s(100) == hedging.PATIENCE_S_MAX


def test_a_silent_server_is_asked_last_for_a_while() -> None:
    hedges = Hedging()
    for _ in range(hedging.SILENT_MAX - 1):
        hedges.silent(1, 100, 0.1, 10.0)
    assert hedges.order([1, 2, 3], 10.0) == [1, 2, 3]
    hedges.silent(1, 100, 0.1, 10.0)
    assert hedges.order([1, 2, 3], 10.0) == [2, 3, 1]
    assert hedges.order([1, 2, 3], 10.0 + hedging.AVOIDED_S + 0.1) == [1, 2, 3]
    hedges.answered(1, 100, 0.1)
    assert hedges.order([1, 2, 3], 10.0) == [1, 2, 3]


async def test_a_server_that_hangs_costs_no_reader_its_timeout(autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(cache_bytes_max=0) as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        data = os.urandom(5000)
        await volume.write(handle, 0, data)
        await volume.flush(handle)
        world.stores[2].before.append(Gate(lambda request: isinstance(request, storage.Get)))  # for ever
        for _ in range(30):
            start = trio.current_time()
            assert bytes(await volume.read(handle, 0, 5000)) == data
            assert trio.current_time() - start <= hedging.PATIENCE_S_FIRST
        statistics = volume.statistics()["blocks"]
        assert 3 <= statistics["hedged"] <= 6, "the third time in a row it is asked last"
        await volume.release(handle)


async def test_nobody_is_asked_twice_when_all_are_slow(autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(cache_bytes_max=0) as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        await volume.write(handle, 0, b"x" * 5000)
        await volume.flush(handle)

        async def slow(request: object) -> None:
            await trio.sleep(1.0)

        for store in world.stores.values():
            store.before.append(slow)
        for _ in range(200):
            assert len(await volume.read(handle, 0, 5000)) == 5000
        statistics = volume.statistics()["blocks"]
        assert statistics["requests"] <= 200 * (1 + hedging.SHARE) + hedging.BUDGET_MAX + 1
        await volume.release(handle)


async def test_batches_ahead_of_a_reader_are_paid_from_the_budget_too(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusefs.client.codec.THREAD_BYTES_MIN", 1 << 40)  # the clock would overtake threads
    blocks = 60
    world = World(servers=3, replicas=3)
    async with world.mount(cache_bytes_max=20 << 20) as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        for number in range(blocks):
            await volume.write(handle, number << 20, bytes([number]) * (1 << 20))
        await volume.flush(handle)
        choice = random.Random(1)

        async def slow(request: object) -> None:
            await trio.sleep(choice.random())  # up to twice the first patience

        for store in world.stores.values():
            store.before.append(slow)
        for number in range(blocks):
            assert bytes(await volume.read(handle, number << 20, 1 << 20)) == bytes([number]) * (1 << 20)
        asked = sum(len(request.ranges) for store in world.stores.values() for request in store.gets)
        assert asked <= blocks + hedging.BUDGET_MAX + blocks * hedging.SHARE
        await volume.release(handle)


async def test_a_bad_copy_is_told_to_its_server_once_another_had_it(autojump_clock: object) -> None:
    world = World(servers=3, replicas=3)
    async with world.mount(cache_bytes_max=0) as volume:
        handle, _ = await volume.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
        data = os.urandom(5000)
        await volume.write(handle, 0, data)
        await volume.flush(handle)
        await trio.testing.wait_all_tasks_blocked()
        (extent,) = world.ops(api.Commit)[0].extents
        world.stores[1].damage(extent.block)
        del world.stores[3].blocks[extent.block]
        for _ in range(6):
            assert bytes(await volume.read(handle, 0, 5000)) == data
        await trio.sleep(1.0)
        suspects = {ident: [name for some in store.suspects for name in some] for ident, store in world.stores.items()}
        assert suspects[1] and set(suspects[1]) == {extent.block}
        assert suspects[3] and set(suspects[3]) == {extent.block}
        assert not suspects[2]
        await volume.release(handle)
