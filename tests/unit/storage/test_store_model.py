"""Random lives of a store against a model: whatever was acknowledged survives, and nothing is ever wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node.wire.errors import Code
from storage.catalog import MemoryCatalog, State
from storage.order import BUCKETS, group_of
from storage.records import Kind
from storage.store import BlockStore, Operation
from storage.tally import delta
from tests.unit.storage.faultdisk import FaultDisk, PowerLoss
from tests.unit.storage.stores import delete, open_store, outcome, plain, put, touch

EXAMPLES = 2000 if os.environ.get("LONG") else 60
SIZES = (1, 300, 5000, 70_000)
BLOCKS = {at: plain(at + 1, SIZES[at % len(SIZES)]) for at in range(12)}
NAMES = {at: put(data).block for at, data in BLOCKS.items()}

operation_lists = st.lists(
    st.tuples(
        st.sampled_from([Kind.DATA, Kind.TOUCH, Kind.DELETE]), st.sampled_from(sorted(BLOCKS)), st.integers(1, 5)
    ),
    min_size=1, max_size=6,
)


@dataclass
class Known:
    """What the model knows of a block. States are sets, because an interrupted group may or may not have happened."""

    states: set[str] = field(default_factory=lambda: {"absent"})  # absent, live, quarantined
    epoch: int = 0  # acknowledged at least


class Life(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.disk, self.catalog = FaultDisk(), MemoryCatalog()
        self.known = {name: Known() for name in NAMES.values()}
        self.store: BlockStore = open_store(self.disk, self.catalog, segment_bytes=40_000)

    def build(self, wanted: list[tuple[Kind, int, int]]) -> list[Operation]:
        make = {
            Kind.DATA: lambda at, epoch: put(BLOCKS[at], epoch),
            Kind.TOUCH: lambda at, epoch: touch(NAMES[at], epoch),
            Kind.DELETE: lambda at, epoch: delete(NAMES[at], epoch),
        }
        return [make[kind](at, epoch) for kind, at, epoch in wanted]

    @rule(wanted=operation_lists)
    def commit(self, wanted: list[tuple[Kind, int, int]]) -> None:
        operations = self.build(wanted)
        self.store.commit(operations)
        for operation in operations:
            self.acknowledged(operation)

    def acknowledged(self, operation: Operation) -> None:
        known = self.known[operation.block]
        if operation.kind == Kind.DATA:
            assert operation.code == 0
            known.states = {"live"}
            known.epoch = max(known.epoch, operation.epoch)
        elif operation.kind == Kind.TOUCH:
            if operation.code == 0:
                assert known.states != {"absent"}
                known.states = {"live"}
                known.epoch = max(known.epoch, operation.epoch)
            else:
                assert operation.code == Code.MISSING_BLOCK
                assert "absent" in known.states
                known.states = {"absent"}
        elif operation.code == 0:
            assert "live" in known.states
            assert operation.epoch >= known.epoch, "deleted although it was touched later"
            known.states = {"quarantined"}
        elif operation.code == Code.MISSING_BLOCK:
            known.states -= {"live"}
            assert known.states
        else:
            assert operation.code == Code.STALE_EPOCH
            known.states = {"live"}

    @rule(wanted=operation_lists, steps=st.integers(0, 3), seed=st.integers(0, 1 << 30))
    def lose_power_while_committing(self, wanted: list[tuple[Kind, int, int]], steps: int, seed: int) -> None:
        operations = self.build(wanted)
        self.disk.step_limit = steps
        try:
            self.store.commit(operations)
        except PowerLoss:
            for operation in operations:  # any prefix of what it would have written may be there
                known = self.known[operation.block]
                if operation.kind == Kind.DATA or (operation.kind == Kind.TOUCH and known.states != {"absent"}):
                    known.states = known.states | {"live"}
                elif operation.kind == Kind.DELETE and "live" in known.states and operation.epoch >= known.epoch:
                    known.states = known.states | {"quarantined"}
        else:
            for operation in operations:
                self.acknowledged(operation)
        self.lose_power(seed)

    @rule(seed=st.integers(0, 1 << 30))
    def lose_power(self, seed: int) -> None:
        self.disk.crash(Random(seed))
        self.catalog.crash()
        self.start()

    @rule(seed=st.integers(0, 1 << 30))
    def lose_power_while_starting(self, seed: int) -> None:
        random = Random(seed)
        self.disk.crash(random)
        self.catalog.crash()
        self.disk.step_limit = random.randint(0, 4)
        try:
            open_store(self.disk, self.catalog, segment_bytes=40_000, seed=seed, commit_entries=3)
        except PowerLoss:
            pass
        self.lose_power(seed)

    @rule(clean=st.booleans())
    def start_again(self, clean: bool) -> None:
        if clean:
            self.store.close()
        else:
            self.catalog.crash()
        self.start()

    @rule()
    def forget_the_catalog(self) -> None:
        self.catalog = MemoryCatalog()
        self.start()

    @rule()
    def checkpoint(self) -> None:
        self.store.checkpoint()

    @rule(wanted=operation_lists, room=st.integers(0, 3000), honest=st.booleans())
    def commit_on_a_full_disk(self, wanted: list[tuple[Kind, int, int]], room: int, honest: bool) -> None:
        operations = self.build(wanted)
        capacity_bytes = self.disk.capacity_bytes
        self.disk.capacity_bytes -= self.disk.room - room
        self.disk.claimed_free_bytes = None if honest else 1 << 40
        self.store.commit(operations)
        self.disk.capacity_bytes, self.disk.claimed_free_bytes = capacity_bytes, None
        for operation in operations:
            if operation.code != Code.NO_SPACE:
                self.acknowledged(operation)

    def start(self) -> None:
        self.store = open_store(self.disk, self.catalog, segment_bytes=40_000, commit_entries=5)
        assert not self.store.recovery.damaged or self.store._at.epoch_floor > 0

    @invariant()
    def everything_acknowledged_is_there(self) -> None:
        live = 0
        for at, name in NAMES.items():
            known, result = self.known[name], outcome(self.store, name)
            if result == Code.MISSING_BLOCK:
                assert "absent" in known.states, f"block {at} is lost"
                continue
            if result == Code.CORRUPT_BLOCK:  # torn before it was acknowledged; a scan of everything cannot know
                assert "absent" in known.states, f"block {at} is damaged"
                live += 1
                continue
            assert result == BLOCKS[at], f"block {at}: {result!r}"
            entry = self.store.locate(name)
            state = "live" if entry.state == State.LIVE else "quarantined"
            assert state in known.states, (at, state, known)
            assert entry.epoch >= known.epoch, f"block {at} forgot a touch"
            live += state == "live"
        assert self.store.block_count == live

    @invariant()
    def the_tally_is_that_of_the_entries(self) -> None:
        for name in NAMES.values():  # each is alone in its bucket
            found = self.store.group_sum(group_of(name, BUCKETS), BUCKETS)
            row = delta(name, None, self.store.find(name)) or (0, 0, 0, 0, 0, 0)
            assert (found.blocks, found.damaged, found.stored_bytes, found.touches) == (*row[:3], row[5])


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=EXAMPLES, stateful_step_count=25, deadline=None)
