"""Real chunk servers under a leader that only gives orders: killed, wiped and damaged, they become whole again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pytest
import trio

from storage import api
from tests.unit.storage.processes import cluster

SEED = int(os.environ.get("SEED") or Random().randrange(1 << 30))
ROUNDS, MISFORTUNES = (20, 4) if os.environ.get("LONG") else (1, 2)


def flip_some(directory: Path, chance: Random, count: int) -> None:
    """Damage bytes behind the header of segments, wherever they fall."""
    for _ in range(count):
        segment = chance.choice(sorted(directory.glob("segments/*.seg")))
        size = segment.stat().st_size
        if size > 200:
            with open(segment, "r+b") as file:
                at = chance.randrange(128, size)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 0x41]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_any_order_of_misfortunes(tmp_path: Path, round_: int) -> None:
    seed = SEED + round_
    print(f"SEED={seed}")
    chance = Random(seed)
    datas = [chance.randbytes(chance.choice([300, 4096, 40_000])) for _ in range(300)]
    datas += [chance.randbytes(1 << 20) for _ in range(20)]
    async with cluster(tmp_path) as servers:
        for at in range(0, len(datas), 10):
            encoded = [(*api.encode_block(data), len(data)) for data in datas[at : at + 10]]
            for number in (1, 2):
                for each in range(0, len(encoded), 3):
                    part = encoded[each : each + 3]
                    put = api.Put(tuple(api.BlockInfo(name, length) for name, _, length in part), 1 + number)
                    reply = await servers.patiently(number, put, tuple(frame for _, frame, _ in part))
                    assert not any(reply.body.codes)
        order = servers.sync(3)
        await trio.sleep(chance.random() * 0.5)  # any time: the kill may meet any step of it
        servers.kill(3)
        servers.spawn(3)
        await servers.until(lambda: servers.complete(3, order))
        for what in chance.sample(["kill", "wipe", "flip", "flip and kill"], MISFORTUNES):
            number = chance.choice([1, 2, 3])
            if what == "kill":
                servers.kill(number)
                servers.spawn(number)
            elif what == "wipe":
                servers.kill(number)
                shutil.rmtree(servers.data(number))
                servers.reports[number].clear()
                servers.spawn(number)
            elif what == "flip":
                flip_some(servers.data(number), chance, 5)
                servers.number += 1
                scrub = api.Scrub(servers.number, 1 << 30, restart=True)
                passes = max([report.passes for report in servers.scrubs(number)], default=0)
                servers.orders[number][1, 0] = scrub
                await servers.until(
                    lambda: any(
                        report.order == scrub.order and report.passes > passes  # noqa: B023  waited for here
                        for report in servers.scrubs(number)  # noqa: B023
                    )
                )
            else:
                servers.kill(number)
                flip_some(servers.data(number), chance, 3)
                servers.spawn(number)
            order = servers.sync(number)
            await servers.until(lambda: servers.complete(number, order))  # noqa: B023  waited for here
        for number in (1, 2, 3):
            found = await servers.get(number, datas)
            for data, got in zip(datas, found):
                assert isinstance(got, int) or got == data, "wrong bytes are never served"
            again = [data for data, got in zip(datas, found) if isinstance(got, int)]  # damage that only a read found
            order = servers.sync(number)
            await servers.until(lambda: servers.complete(number, order))  # noqa: B023  waited for here
            assert await servers.get(number, again) == again, f"SEED={seed}"
            assert len(again) <= 10
