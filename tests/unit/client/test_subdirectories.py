"""Directories of a directory that are listed in its order, or backwards, come before they are asked for."""

from __future__ import annotations

import os
import random

import pytest
import trio
import trio.testing

from fusefs.client import subdirectories
from fusefs.client.volume import Volume
from metadata import api
from node.wire.types import ROOT_INO

from .test_neighbours import LeasingWorld

DIRECTORIES = 200


def name_of(number: int) -> bytes:
    return b"d%04d" % number


async def fill(world: LeasingWorld, files: int = 1) -> int:
    async with world.mount(leases=False) as volume:
        top = (await volume.mkdir(ROOT_INO, b"top", 0o755, 0, 0)).ino
        for number in range(DIRECTORIES):
            made = await volume.mkdir(top, name_of(number), 0o755, 0, 0)
            for name in range(files):
                handle, _ = await volume.create(made.ino, b"x%d" % name, 0o644, os.O_RDWR, 0, 0)
                await volume.release(handle)
    return top


async def names(volume: Volume, ino: int) -> list[tuple[bytes, int]]:
    handle = await volume.opendir(ino)
    found: list[tuple[bytes, int]] = []
    offset = 0
    while page := await volume.readdir(handle, offset):
        found += [(name, attr.ino) for name, attr, _ in page]
        offset = page[-1][2]
    await volume.releasedir(handle)
    await trio.testing.wait_all_tasks_blocked()
    return found


def asked(world: LeasingWorld) -> int:
    """How many directories the service was asked for."""
    reads = [request for request in world.member.requests if isinstance(request, api.Read)]
    return sum(isinstance(query, api.ReadDir) for request in reads for query in request.queries)


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_walk_takes_a_few_questions(backwards: bool, autojump_clock: object) -> None:
    world = LeasingWorld()
    top = await fill(world)
    async with world.mount() as volume:
        below = await names(volume, top)
        assert len(below) == DIRECTORIES
        questions, before = world.reads(), asked(world)
        for _, ino in reversed(below) if backwards else below:
            assert [name for name, _ in await names(volume, ino)] == [b"x0"]
        assert world.reads() - questions < DIRECTORIES // 8
        assert asked(world) - before == DIRECTORIES, "each once"


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_listed_in_no_order_brings_little(seed: int, autojump_clock: object) -> None:
    world = LeasingWorld()
    top = await fill(world)
    async with world.mount() as volume:
        below = await names(volume, top)
        before = asked(world)
        for _, ino in random.Random(seed).sample(below, 20):
            await names(volume, ino)
        assert asked(world) - before <= 20 + 2 * subdirectories.WINDOW_MIN


async def test_one_question_is_bounded_in_entries(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subdirectories, "ENTRIES_MAX", 10)
    world = LeasingWorld()
    top = await fill(world, files=4)
    async with world.mount() as volume:
        for _, ino in (await names(volume, top))[:40]:
            assert len(await names(volume, ino)) == 4
        reads = [request for request in world.member.requests if isinstance(request, api.Read)]
        assert max(len(request.queries) for request in reads) == 2
