"""A mount that lives and cannot bring what it changed, because chunk servers are away, is waited for."""

from __future__ import annotations

import os
import random

import pytest
import trio

from fusefs.client.volume import Volume
from node.wire.errors import Code, FsError
from node.wire.limits import LEASE_MARGIN_S, SESSION_LEASE_S, SURRENDER_S_MAX
from node.wire.types import ROOT_INO
from storage import api as storage

from .test_leases import Truth, change_here, with_two_mounts
from .test_recalls import look_after
from .world import always

AWAY = always(storage.Put, Code.UNREACHABLE)
LONGER_THAN_A_LEASE_S = 2 * (SESSION_LEASE_S + LEASE_MARGIN_S)
DATA = random.Random(1).randbytes(100_000)  # too much to travel in the log


def chunk_servers(truth: Truth, *, away: bool) -> None:
    for store in truth.world.stores.values():
        store.before[:] = [AWAY] if away else []


async def write_here(truth: Truth, volume: Volume) -> int:
    """Write a file without asking while no chunk server is there; return its inode."""
    await change_here(volume, b"before")
    truth.nursery.start_soon(look_after, truth)
    chunk_servers(truth, away=True)
    with pytest.raises(FsError):
        await volume.lookup(ROOT_INO, b"f")  # as the kernel does first
    handle, attr = await volume.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
    await volume.write(handle, 0, DATA)
    await volume.flush(handle)
    await volume.release(handle)
    assert b"f" not in truth.names_now(), "nobody has asked for it"
    return attr.ino


async def read_there(volume: Volume) -> bytes:
    attr = await volume.lookup(ROOT_INO, b"f")
    handle = await volume.open(attr.ino, os.O_RDONLY)
    return bytes(await volume.read(handle, 0, 2 * len(DATA)))


async def tries_on(truth: Truth, volume: Volume) -> bytes:
    """Look until it is answered."""
    while True:
        try:
            return await read_there(volume)
        except FsError as error:
            assert error.code is Code.TIMEOUT


@pytest.mark.parametrize("away_s", [1.0, LONGER_THAN_A_LEASE_S, 90.0])
def test_what_was_written_here_is_not_lost_while_chunk_servers_are_away(away_s: float) -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        await write_here(truth, first)
        session = first._session.id
        seen: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                seen.append(await tries_on(truth, second))

            nursery.start_soon(look)
            await trio.sleep(away_s)
            assert not seen, "a name is shown with its data or not at all"
            chunk_servers(truth, away=False)
        assert seen == [DATA]
        assert first._session.id == session and truth.leasing.table.counts["fenced"] == 0

    with_two_mounts(scene)


@pytest.mark.parametrize("elections", [1, 3])
def test_a_new_leader_waits_for_it_too_and_for_nothing_else(elections: int) -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        other = await second.mkdir(ROOT_INO, b"other", 0o755, 0, 0)
        await second.syncfs()
        await write_here(truth, first)
        session = first._session.id
        for _ in range(elections):
            truth.elect()
            await trio.sleep(LONGER_THAN_A_LEASE_S)
            await second.mknod(other.ino, b"%d" % truth.node.term, 0o100644, 0, 0, 0)
        chunk_servers(truth, away=False)
        assert await tries_on(truth, second) == DATA
        assert first._session.id == session and truth.leasing.table.counts["fenced"] == 0
        assert truth.leasing.table.counts["reclaimed"] >= elections

    with_two_mounts(scene)


def test_others_come_first_in_the_end() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        await write_here(truth, first)
        begin = trio.current_time()
        assert await tries_on(truth, second) == b"", "the name did not wait for its data for ever"
        assert SURRENDER_S_MAX < trio.current_time() - begin < SURRENDER_S_MAX + 60.0
        chunk_servers(truth, away=False)
        await trio.sleep(60.0)
        assert await tries_on(truth, second) == DATA, "nothing is lost, nobody was fenced for it"

    with_two_mounts(scene)


def test_what_others_wanted_for_too_long_is_lost_and_that_is_said() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        ino = await write_here(truth, first)
        chunk_servers(truth, away=False)
        await first.syncfs()
        await first.lookup(ROOT_INO, b"f")
        chunk_servers(truth, away=True)
        handle = await first.open(ino, os.O_WRONLY)
        await first.write(handle, 0, DATA[::-1])
        begin = trio.current_time()
        assert await tries_on(truth, second) == DATA
        assert SURRENDER_S_MAX < trio.current_time() - begin < SURRENDER_S_MAX + 60.0
        assert truth.leasing.table.counts["fenced"] == 1
        chunk_servers(truth, away=False)
        await trio.sleep(60.0)
        with pytest.raises(FsError):
            await first.fsync(handle)
        assert first.statistics()["write_back"]["lost_bytes"] == len(DATA)

    with_two_mounts(scene)


def test_meanwhile_the_mount_answers_what_it_can() -> None:
    async def scene(truth: Truth, first: Volume, second: Volume) -> None:
        other = await second.mkdir(ROOT_INO, b"other", 0o755, 0, 0)
        await second.mknod(other.ino, b"x", 0o100644, 0, 0, 0)
        await second.syncfs()
        await write_here(truth, first)
        truth.nursery.start_soon(tries_on, truth, second)
        await trio.sleep(5.0)
        with trio.fail_after(5.0):
            assert (await first.lookup(other.ino, b"x")).ino
        chunk_servers(truth, away=False)

    with_two_mounts(scene)
