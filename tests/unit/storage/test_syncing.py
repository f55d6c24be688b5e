"""Making a group complete: the core against sources that fail, restart, lie and change meanwhile."""

from __future__ import annotations

import os
from hashlib import blake2b
from random import Random

import pytest

from node.wire.limits import SYNC_PULLS_MAX
from storage.api import GroupBlock, GroupDigest
from storage.order import key_of
from storage.syncing import Action, AskDigest, AskList, GroupSync, Pull, Raise, Wanted

SEED = int(os.environ.get("SEED") or Random().randrange(1 << 30))
ROUNDS = 60 * (10 if os.environ.get("LONG") else 1)
Blocks = dict[bytes, int]  # name -> touch epoch


def name(number: int) -> bytes:
    return blake2b(b"%d" % number, digest_size=32).digest()


def digest(blocks: Blocks) -> GroupDigest:
    """As storage.tally, in fewer words."""
    names = sum(int.from_bytes(block[:15], "big") for block in blocks) % (1 << 120)
    touches = sum(int.from_bytes(block[:7], "big") * epoch for block, epoch in blocks.items()) % (1 << 60)
    return GroupDigest(0, len(blocks), 100 * len(blocks), names.to_bytes(16, "big"), touches)


class World:
    """One server that becomes complete, and its sources."""

    def __init__(self, chance: Random, own: Blocks, sources: dict[int, Blocks], page: int = 7) -> None:
        self.chance = chance
        self.own, self.sources = own, sources
        self.quarantined: set[bytes] = set()
        self.page = page
        self.core = GroupSync(list(sources))
        self.out: list[Action] = []
        self.now_s = 0.0
        self.liars: set[int] = set()  # list blocks, send nothing that is good
        self.down: set[int] = set()
        self.asked: dict[int, int] = {}

    def local(self, block: bytes) -> int | None:
        return -1 if block in self.quarantined else self.own.get(block)

    def step(self) -> None:
        """Begin what is to be begun, then finish one thing that is under way."""
        self.out += self.core.actions(self.now_s)
        pulls = [action for action in self.out if isinstance(action, Pull)]
        assert len(pulls) <= SYNC_PULLS_MAX
        pulled = [each.block for pull in pulls for each in pull.blocks]
        assert len(pulled) == len(set(pulled)), "no block is pulled twice at a time"
        if self.out:
            self.finish(self.out.pop(self.chance.randrange(len(self.out))))
        else:
            resume_s = self.core.resume_s()
            assert self.core.progress.complete or resume_s is not None, "stuck"
            self.now_s = resume_s or self.now_s

    def finish(self, action: Action) -> None:
        if isinstance(action, Raise):
            missing = {block for block, _ in action.touches if self.local(block) is None}
            for block, epoch in action.touches:
                if block not in missing:
                    self.quarantined.discard(block)
                    self.own[block] = max(epoch, self.own.get(block, 0))
            self.core.raised(action, missing)
            return
        self.asked[action.server] = self.asked.get(action.server, 0) + 1
        theirs = self.sources[action.server]
        if action.server in self.down:
            self.core.failed(action, self.local)
        elif isinstance(action, AskDigest):
            self.core.digested(action.server, digest(theirs), digest(self.own))
        elif isinstance(action, AskList):
            after = key_of(action.after) if action.after else b""
            found = [block for block in sorted(theirs, key=key_of) if key_of(block) > after]
            page = [GroupBlock(block, theirs[block], 100, 100) for block in found[: self.page]]
            self.core.listed(action.server, page, len(found) > self.page, self.local)
        else:
            got = {} if action.server in self.liars else {b.block: b for b in action.blocks if b.block in theirs}
            for block, wanted in got.items():
                self.own[block] = max(wanted.epoch, self.own.get(block, 0))
            self.core.pulled(action, got.keys())

    def run(self, steps: int = 20_000) -> None:
        for _ in range(steps):
            if self.core.progress.complete:
                return
            self.step()
        raise AssertionError(f"not complete: {self.core.progress}")


def test_nothing_to_do() -> None:
    blocks = {name(n): 3 for n in range(50)}
    world = World(Random(1), dict(blocks), {2: dict(blocks), 3: dict(blocks)})
    world.run()
    assert world.asked == {2: 1, 3: 1}, "digests that are equal are enough"


def test_missing_blocks_come_from_both_sources_with_the_highest_epoch() -> None:
    world = World(Random(1), {}, {2: {name(n): n % 5 for n in range(1000)}, 3: {name(n): 2 for n in range(1000)}})
    world.run()
    assert world.own == {name(n): max(n % 5, 2) for n in range(1000)}
    assert world.core.progress.pulled == 1000


def test_a_block_that_only_one_source_has() -> None:
    world = World(Random(1), {name(1): 1}, {2: {name(1): 1}, 3: {name(1): 1, name(2): 7}, 4: {}})
    world.run()
    assert world.own == {name(1): 1, name(2): 7}


def test_touch_epochs_are_raised_without_pulling() -> None:
    world = World(Random(1), {name(n): 1 for n in range(20)}, {2: {name(n): 1 + n % 2 for n in range(20)}})
    world.run()
    assert world.own == {name(n): 1 + n % 2 for n in range(20)}
    assert world.core.progress.pulled == 0


def test_a_block_in_quarantine_is_brought_back() -> None:
    world = World(Random(1), {}, {2: {name(1): 4}})
    world.quarantined = {name(1)}
    world.run()
    assert (world.own, world.quarantined, world.core.progress.pulled) == ({name(1): 4}, set(), 0)


def test_a_liar_costs_a_try() -> None:
    blocks = {name(n): 1 for n in range(300)}
    world = World(Random(1), {}, {2: dict(blocks), 3: dict(blocks)})
    world.liars = {2}
    world.run()
    assert world.own == blocks


def test_a_block_that_nobody_gives_keeps_the_group_incomplete() -> None:
    world = World(Random(1), {}, {2: {name(1): 1, name(2): 1}})
    world.liars = {2}
    for _ in range(50):
        world.step()
    state = world.core.progress
    assert (state.complete, state.missing, state.missing_bytes, state.failed) == (False, 2, 200, ())
    world.liars.clear()
    world.run()
    assert len(world.own) == 2


def test_a_source_that_is_down_keeps_the_group_incomplete() -> None:
    """It may have what nobody else has."""
    world = World(Random(1), {}, {2: {name(1): 1}, 3: {name(2): 1}})
    world.down = {3}
    for _ in range(50):
        world.step()
    assert not world.core.progress.complete
    assert world.core.progress.failed in ((3,), ())
    assert world.own == {name(1): 1}, "what there is, is here already"
    world.down.clear()
    world.run()
    assert len(world.own) == 2


def test_pauses_grow() -> None:
    world = World(Random(1), {}, {2: {name(1): 1}})
    world.down = {2}
    ends = []
    while len(ends) < 10:
        world.step()
        if world.core.resume_s() not in (None, *ends):
            ends.append(world.core.resume_s())
    pauses = [later - sooner for sooner, later in zip(ends, ends[1:]) if later and sooner]
    assert pauses == sorted(pauses) and pauses[0] == 1.0 and pauses[-1] == 30.0


def test_no_room_here() -> None:
    core = GroupSync([2, 3])
    page = [GroupBlock(name(1), 1, 100, 100)]
    for action in core.actions(0):
        core.digested(action.server, digest({name(1): 1}), digest({}))  # type: ignore[union-attr]
    for action in core.actions(0):
        core.listed(action.server, page, False, {}.get)  # type: ignore[union-attr]
    (pull,) = core.actions(0)
    assert isinstance(pull, Pull)
    core.pulled(pull, (), refused={name(1)})
    assert core.actions(0) == [], "another holder would not help"
    assert core.progress.missing == 1
    assert core.resume_s() is not None


@pytest.mark.parametrize("page,more", [
    ([], True), ([2, 1], False), ([1, 1], False), ([0], True),
])
def test_a_source_that_lists_nonsense(page: list[int], more: bool) -> None:
    order = sorted([name(n) for n in range(3)], key=key_of)
    core = GroupSync([2])
    core.actions(0)
    core.digested(2, digest({name(1): 1}), digest({}))
    core.actions(0)
    core.listed(2, [GroupBlock(order[1], 1, 100, 100)], True, {order[1]: 1}.get)
    (again,) = core.actions(0)
    assert again == AskList(2, order[1])
    core.listed(2, [GroupBlock(order[n], 1, 100, 100) for n in page], more, {}.get)
    assert not any(isinstance(action, AskList) for action in core.actions(0))
    assert core.progress.failed == (2,)
    assert not core.progress.complete


def test_any_schedule() -> None:
    """Sources go down and come back, lie for a while, gain blocks; in the end all is here, and no epoch is too low."""
    for round_ in range(ROUNDS):
        seed = SEED + round_
        chance = Random(seed)
        universe = [name(n) for n in range(chance.choice([3, 30, 120]))]
        sources: dict[int, Blocks] = {
            server: {block: chance.randrange(4) for block in universe if chance.random() < 0.7}
            for server in range(2, 2 + chance.randrange(1, 5))
        }
        own = {block: chance.randrange(4) for block in universe if chance.random() < chance.random()}
        world = World(chance, own, sources, page=chance.choice([1, 3, 50]))
        world.quarantined = {block for block in universe if block not in own and chance.random() < 0.2}
        promised = {server: dict(blocks) for server, blocks in sources.items()}
        for _ in range(chance.randrange(400)):
            server = chance.choice(list(sources))
            what = chance.random()
            if what < 0.05:
                world.down ^= {server}
            elif what < 0.08:
                world.liars ^= {server}
            elif what < 0.12:
                sources[server][chance.choice(universe)] = 9
            world.step()
        world.down.clear()
        world.liars.clear()
        world.run()
        for blocks in promised.values():
            for block, epoch in blocks.items():
                assert world.own.get(block, -1) >= epoch, f"SEED={seed}"


def test_the_backlog_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.syncing.SYNC_WANTED_MAX", 20)
    world = World(Random(1), {}, {2: {name(n): 1 for n in range(500)}, 3: {name(n): 1 for n in range(250)}}, page=10)
    most = 0
    while not world.core.progress.complete:
        world.step()
        most = max(most, world.core.progress.missing)
    assert most <= 40
    assert len(world.own) == 500


def test_wanted_is_what_pulls_carry() -> None:
    core = GroupSync([5])
    core.actions(0)
    core.digested(5, digest({name(1): 3}), digest({}))
    core.actions(0)
    core.listed(5, [GroupBlock(name(1), 3, 77, 66)], False, {}.get)
    assert core.actions(0) == [Pull(5, (Wanted(name(1), 3, 77, 66, [5]),))]
