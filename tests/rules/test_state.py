"""Rules that the state machine, the block store and the collector keep: 12, 15, 16, 17 and 20."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from metadata import api
from metadata.placement import group_of
from metadata.state.command import AdvanceEpoch, CommandKind, ForgetBlocks, RegisterServer, SetTable, TableItem
from metadata.state.sessions import Sessions
from metadata.state.turn import Turn
from node.wire.errors import Code
from node.wire.types import Buffer
from storage.catalog import MemoryCatalog, State
from storage.journal import Journal
from storage.recover import transition
from storage.records import Kind, Record
from tests.rules import violated
from tests.sim.test_gc_sim import simulate, weakened
from tests.unit.state.support import ROOT, World, block, extent
from tests.unit.storage.faultdisk import FaultDisk
from tests.unit.storage.stores import commit, delete, open_store, plain, store_all, touch


def test_rule_12_a_request_waits_for_its_predecessor(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next leader the creation in a directory arrives before the mkdir: ENOENT must not become its result."""

    def scene() -> None:
        world = World()
        first = world.do(api.AllocateInos(16)).first  # a client numbers what it makes by itself
        before = world.tables.range(b"R", b"T")
        mkdir = api.Submit(1, 2, 2, (api.Make(ROOT, b"d", 0o040755, 0, 0, ino=first),))
        create = api.Submit(1, 3, 2, (api.Make(first, b"f", 0o100644, 0, 0),), after=2)
        early = world.run(CommandKind.SUBMIT, create)
        assert world.code(early) == Code.RETRY, early
        assert world.tables.range(b"R", b"T") == before, "something was recorded"
        world.run(CommandKind.SUBMIT, mkdir)
        (made,) = world.run(CommandKind.SUBMIT, create).results
        assert isinstance(made, api.Made), made
        assert world.names(first) == [b"f"]
        later = api.Submit(1, 5, 5, (api.Make(first, b"g", 0o100644, 0, 0),), after=4)
        assert world.run(CommandKind.SUBMIT, later).results, "what is acknowledged needs no result"
        world.sound()

    scene()
    real = Sessions.admit

    def admit(self: Sessions, submit: api.Submit) -> bytes | None:
        return real(self, api.Submit(submit.session, submit.sequence, submit.lowest_unacked, submit.ops))

    monkeypatch.setattr(Sessions, "admit", admit)
    assert violated(scene)


@pytest.mark.parametrize("keep_catalog", [True, False])
def test_rule_15_touches_and_deletions_are_as_durable_as_data(
    monkeypatch: pytest.MonkeyPatch, keep_catalog: bool
) -> None:
    """The power fails before the catalog is committed. A delayed delete must not win over a touch of before, nor may
    what was deleted live again."""

    def scene() -> None:
        disk, catalog = FaultDisk(), MemoryCatalog()
        store = open_store(disk, catalog)
        touched, deleted = store_all(store, [plain(1), plain(2)], epoch=3)
        store.checkpoint()
        assert commit(store, touch(touched, 8), delete(deleted, 3)) == [0, 0]
        catalog.crash()
        again = open_store(disk, catalog if keep_catalog else None, seed=2)
        assert again.locate(deleted).state == State.QUARANTINED, "it lives again"
        assert commit(again, delete(touched, 6)) == [Code.STALE_EPOCH], "a touch was forgotten"

    scene()
    real = Journal.append

    def append(self: Journal, group: Sequence[tuple[Record, Buffer]]) -> None:
        data = [(record, payload) for record, payload in group if record.kind == Kind.DATA]
        if data:
            real(self, data)
        for record, _ in group:
            old = self.catalog.get(record.block)
            if record.kind != Kind.DATA and old is not None:  # only the catalog knows, and is committed some time
                self.at.change(self.catalog, record.block, old, transition(old, record, old.segment, old.offset))

    monkeypatch.setattr(Journal, "append", append)
    assert violated(scene)


def test_rule_16_a_commit_of_before_a_change_of_its_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are put where the group was, it changes, the commit comes: the only copies are outside it."""

    def scene() -> None:
        world = World()
        servers = []
        for n in range(2):
            record = RegisterServer(b"%d" % n * 16, f"{n}", f"{n}", "", "", 1.0, 5)
            servers.append(world.run(CommandKind.REGISTER_SERVER, record).server)
        items = tuple(TableItem(group, (servers[0],)) for group in range(4))
        world.run(CommandKind.SET_TABLE, SetTable(0, items, 4))
        ino = world.make(b"f")
        group = group_of(block(1), 4)
        copies = set(world.machine.table[group])
        pg_epoch = world.machine.pg_epoch
        other = TableItem((group + 1) % 4, (servers[1],))
        world.run(CommandKind.SET_TABLE, SetTable(pg_epoch, (other,)))
        world.write(ino, extent(0, 1, 1), pg_epoch=pg_epoch)  # that another group changed does not matter
        pg_epoch = world.machine.pg_epoch
        world.run(CommandKind.SET_TABLE, SetTable(pg_epoch, (TableItem(group, (servers[1],)),)))
        commit_of_before = api.Commit(ino, (extent(1, 1, 1),), 2, 0, 1, pg_epoch=pg_epoch)
        refused = world.try_(commit_of_before)
        if not isinstance(refused, api.Failed):
            assert copies & set(world.machine.table[group]), "who looks for it in its group finds nothing"
        assert refused.code == Code.STALE_EPOCH
        world.write(ino, extent(1, 1, 1), pg_epoch=world.machine.pg_epoch)

    scene()
    real = Turn.check_blocks

    def check_blocks(self: Turn, extents: Sequence[api.Extent], touch_epoch: int, pg_epoch: int) -> None:
        real(self, extents, touch_epoch, 0)

    monkeypatch.setattr(Turn, "check_blocks", check_blocks)
    assert violated(scene)


@pytest.mark.timeout(600)
def test_rule_17_a_block_that_nobody_will_ever_reference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers die between put and commit: in the end nothing is stored that nothing references."""
    seeds = range(30)
    for number in seeds[:2]:
        simulate(number)
    with weakened("no sweep", monkeypatch):
        assert any(violated(lambda number=number: simulate(number)) for number in seeds)  # type: ignore[misc]


def test_rule_20_a_reference_is_copied_only_where_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody reads where a file's bytes are; the file goes, and its blocks; then the copy of the references comes."""

    def scene() -> None:
        world = World()
        source, copy, clone = world.make(b"s"), world.make(b"c"), world.make(b"k")
        world.write(source, extent(0, 10, 1))
        seen, epoch = tuple(world.extents(source)), world.machine.gc_epoch
        world.do(api.CloneRange(source, 0, clone, 0, 10))
        assert world.extents(clone) == list(seen) and world.machine.references(block(1)) == 2, "in apply it is right"
        world.do(api.SetAttr(clone, size=0))
        world.do(api.SetAttr(source, size=0))
        for _ in range(2):
            world.run(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(world.machine.gc_epoch))
        gone = [name for _, name in world.machine.candidates(world.machine.gc_epoch - 2)]
        assert gone == [block(1)]
        world.run(CommandKind.FORGET_BLOCKS, ForgetBlocks(tuple(gone), world.machine.gc_epoch - 2))
        copied = world.try_(api.Commit(copy, seen, 10, 0, epoch))
        world.do(api.CloneRange(source, 0, clone, 0, 10))
        for ino in (copy, clone):
            assert not {one.block for one in world.extents(ino)} & set(gone), "a reference to what was deleted"
        assert copied.code == Code.STALE_EPOCH
        world.sound()

    scene()
    monkeypatch.setattr(Turn, "check_blocks", lambda self, extents, touch_epoch, pg_epoch: None)
    assert violated(scene)
