"""A whole member whose log lost entries: it comes back, fetches them again, and counts again only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from metadata import api
from metadata.raft.core import Role
from metadata.store.scan import segment_numbers, segment_path
from metadata.store.disk import RealDisk
from tests.unit.metaserver.world import Session, World, make, world


def damage(made: World, number: int, part: float) -> None:
    """Flip a bit in the newest segment that holds records, some way through them."""
    path = str(made.path / f"metadata-{number}" / "log")
    newest = Path(segment_path(path, segment_numbers(RealDisk(), path)[-1]))
    content = bytearray(newest.read_bytes())
    content[int(len(content.rstrip(b"\0")) * part)] ^= 4
    newest.write_bytes(content)


@pytest.mark.parametrize("part", [0.3, 0.8])
async def test_a_member_that_lost_entries_fetches_them_again(tmp_path: Path, part: float) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        for index in range(40):
            await session.do(make(b"%d" % index))
        leader = await made.leader()
        victim, other = (number for number in (1, 2, 3) if number != leader)
        await made.running[victim].crash()
        damage(made, victim, part)
        await made.start(victim)
        node = made[victim].node
        assert node is not None and node.stable.store.damage is not None
        await made.until(lambda: not node.stable.store.damaged, 10)
        await made.running[other].crash()  # from here on nothing is acknowledged without the victim
        assert isinstance((await session.do(make(b"more")))[0], api.Made)
        await made.start(other)
        await made.running[leader].crash()
        await made.leader(victim, other)
        for index in range(40):
            assert isinstance(await session.look(b"%d" % index), api.AttrResult)
        assert isinstance(await session.look(b"more"), api.AttrResult)


async def test_a_member_that_lost_entries_elects_nobody(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        session = await Session.open(made)
        for index in range(20):
            await session.do(make(b"%d" % index))
        leader = await made.leader()
        victim, other = (number for number in (1, 2, 3) if number != leader)
        for number in (victim, leader):
            await made.running[number].crash()
        damage(made, victim, 0.5)
        await made.start(victim)
        survivor, lost = made[other].node, made[victim].node
        assert survivor is not None and lost is not None and lost.stable.store.damaged
        ticks = survivor.ticker.ticks
        await made.until(lambda: survivor.ticker.ticks > ticks + 30, 20)
        assert Role.LEADER not in (survivor.role, lost.role) and lost.stable.store.damaged
        await made.start(leader)
        await made.leader(leader, other)
        await made.until(lambda: not lost.stable.store.damaged, 10)
