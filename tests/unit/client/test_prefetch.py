"""Directories in which names are looked up come whole, and for who looks at a tree with the first name of each."""

from __future__ import annotations

import trio.testing

from fusefs.client import prefetch
from fusefs.client.volume import Volume
from metadata import api
from node.wire.types import ROOT_INO

from .test_neighbours import LeasingWorld, fill, name_of

FILES = 10
DIRECTORIES = 20


async def look_up(volume: Volume, directory: int, *numbers: int) -> None:
    for number in numbers:
        await volume.lookup(directory, name_of(number))
        await trio.testing.wait_all_tasks_blocked()


def asked(world: LeasingWorld, directory: int) -> list[list[str]]:
    """The kinds of questions about a directory, by request."""
    reads = [request for request in world.member.requests if isinstance(request, api.Read)]
    kinds = [[type(one).__name__ for one in request.queries if directory in _about(one)] for request in reads]
    return [kind for kind in kinds if kind]


def _about(query: api.Query) -> tuple[object, ...]:
    return getattr(query, "parent", None), getattr(query, "ino", None)


async def open_tree(world: LeasingWorld, files: int = FILES) -> list[int]:
    return [await fill(world, files, b"d%d" % number) for number in range(DIRECTORIES)]


async def test_who_looks_at_a_tree_asks_once_for_each_directory(autojump_clock: object) -> None:
    world = LeasingWorld()
    directories = await open_tree(world)
    async with world.mount() as volume:
        for number, directory in enumerate(directories):
            assert (await volume.lookup(ROOT_INO, b"d%d" % number)).ino == directory
            await look_up(volume, directory, *range(FILES))
            questions = asked(world, directory)
            if number:
                assert questions == [["Lookup", "ReadDir"]], number
            else:
                assert questions == [["Lookup"]] * prefetch.MISSES + [["ReadDir"]]


async def test_who_looks_at_one_name_of_each_directory_soon_gets_no_more(autojump_clock: object) -> None:
    world = LeasingWorld()
    directories = await open_tree(world)
    async with world.mount() as volume:
        for number, directory in enumerate(directories):
            await volume.lookup(ROOT_INO, b"d%d" % number)
            await look_up(volume, directory, *range(FILES if number < 2 else 1))
        listed = sum("ReadDir" in kinds for directory in directories for kinds in asked(world, directory))
        assert listed < DIRECTORIES // 2


async def test_large_directories_are_not_listed_for_one_name(autojump_clock: object) -> None:
    world = LeasingWorld()
    small = [await fill(world, FILES, b"d%d" % number) for number in range(3)]
    large = await fill(world, prefetch.EAGER_ENTRIES_MAX + 1, b"large")
    async with world.mount() as volume:
        for number, directory in enumerate(small):
            await volume.lookup(ROOT_INO, b"d%d" % number)
            await look_up(volume, directory, *range(FILES))
        await volume.lookup(ROOT_INO, b"large")
        await look_up(volume, large, 0)
        assert asked(world, large) == [["Lookup"]]
