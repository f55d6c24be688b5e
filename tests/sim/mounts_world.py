"""Mounts that change things by themselves, and what their kernels believe, on a fake clock, against the truth.

Mounts (``fusefs.client``) and the leader's side (service, leases, state) are the whole production code. A kernel here
keeps what its mount has answered for as long as the mount said that it may, and what a program has mapped until it is
told to forget it, as long as its mount runs. A mount may be stopped: it sends nothing and looks at nothing meanwhile,
but its kernel goes on. Leaders come and go. Everything is the seed's, the order of tasks too.

Each name and each file is a register, and a file's value is its atime; what is in it is another one, and its size a
third. Whatever is read, from a kernel, a mount or the leader, must be at least as new as every change and every read of
it that had ended before. A change that a mount makes by itself counts from when it is answered, unless the mount is
fenced before it has brought it.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Collection
from typing import Any, Optional
from unittest.mock import patch

import trio
import trio.testing

from metadata import api
from metadata.state.machine import Outcome
from node.wire.errors import Code, FsError
from node.wire.limits import LEASES_PER_SESSION_MAX
from node.wire.types import ROOT_INO
from tests.sim.checkers import Violation
from tests.sim.mounts_kernel import Wire
from tests.sim.mounts_programs import BYTES, DATA, LINKS, NAMES, SIZE, Mount
from tests.sim.registers import History, Key
from tests.unit.client.test_leases import Truth

TASKS = 2  # of each mount
TICK_S = 0.25
WORK_S, SETTLE_S = 1000.0, 60.0  # nobody waits for ever


class Sea(Truth):
    """The leader, its successors, all mounts and the truth."""

    def __init__(self, rng: random.Random, nursery: trio.Nursery, loss: float, mounts: int) -> None:
        super().__init__(rng, nursery, loss)
        self.history = History()
        self.wires = [Wire(self, number) for number in range(mounts)]
        self.mounts = [Mount(self, wire, nursery) for wire in self.wires]
        self.changed: dict[int, dict[Key, None]] = {}  # session -> what it has changed by itself
        self.newest: dict[Key, int] = {}  # which session the newest value is of, where that changed it by itself
        self.known: set[Key] = set()  # inodes that the leader ever had
        self.contents: dict[bytes, int] = {}  # names of blocks, and what is in them
        self.begun: dict[int, int] = {}  # what is being written through, and what was there when that began
        self.synced: dict[int, int] = {}  # file -> what was in it when a program heard that this is durable
        self.unsynced: set[int] = set()  # what programs have stored in mapped pages, and not heard of
        self.failed: set[int] = set()  # what could not be written, as programs were told, or will be
        self.unwritten: set[int] = set()  # and the files
        self.written: dict[int, set[int]] = {}  # session -> what it has taken from programs and not brought
        self.sized: dict[int, set[int]] = {}  # and what sizes it has given files that way
        self.leasing.table._max = rng.choice((LEASES_PER_SESSION_MAX, LEASES_PER_SESSION_MAX, 10))
        self.counts = {"local": 0, "written": 0, "batches": 0, "crossed": 0, "fenced": 0, "stopped": 0}
        grant = self.leasing.grant

        def granted(session: int, inos: Collection[int], *, journal: bool = False) -> Any:
            made = grant(session, tuple(inos), journal=journal)
            self.counts["crossed"] += journal and not made.term and not self.leasing.table.in_grace
            return made

        self.leasing.grant = granted  # type: ignore[assignment, method-assign]

    def next_value(self) -> int:
        self.next += 1
        return self.next

    def _notify(self, peer: bytes, message: Any) -> bool:
        self.wires[int(peer)].sent(message)
        return True

    # --- what happens -------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Begin all mounts, and give each its directory."""
        for mount in self.mounts:
            await mount.volume.start()
            mount.homes = [(await mount.volume.mkdir(ROOT_INO, b"of" + mount.wire.peer, 0o755, 0, 0)).ino]

    async def tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self.leasing.look_after()

    async def stop_some(self) -> None:
        """Mounts are stopped now and then, mostly for less than a lease."""
        while True:
            await trio.sleep(self.rng.expovariate(0.3))
            wire = self.rng.choice(self.wires)
            for_s = self.rng.choice((0.1, 0.5, 2.0, 8.0, 20.0)) * self.rng.random()
            wire.stopped_until_s = max(wire.stopped_until_s, trio.current_time() + for_s)
            self.counts["stopped"] += 1

    async def fill_some(self) -> None:
        """The leader's disk is full now and then: then it takes what a journal brings, and promises nothing more."""
        while True:
            await trio.sleep(self.rng.expovariate(0.3))
            self.node.full = True
            try:
                await trio.sleep(self.rng.choice((0.1, 2.0)) * self.rng.random())
            finally:
                self.node.full = False

    async def take_servers_away(self) -> None:
        """What mounts have changed by themselves cannot be brought for a while, also for more than a lease."""
        while True:
            await trio.sleep(self.rng.expovariate(0.2))
            wire = self.rng.choice(self.wires)
            for_s = self.rng.choice((1.0, 5.0, 20.0)) * self.rng.random()
            wire.away_until_s = max(wire.away_until_s, trio.current_time() + for_s)

    async def fail_over(self, elections: int) -> None:
        for _ in range(elections):
            await trio.sleep(self.rng.uniform(0.2, 6.0))
            self.elect()

    def apply(self, data: bytes) -> Outcome:
        machine = self.world.machine
        outcome = machine.apply(machine.applied + 1, 1, data)
        self.leasing.applied(outcome)
        self.known.update(outcome.touched)
        if outcome.journal:
            self.counts["batches"] += 1
            self._brought(outcome)
            for ino in outcome.touched:
                for key in (ino, (ino, DATA), (ino, SIZE)):
                    value = self._now(key)
                    if value and value not in self.history.of(key):  # done by a file's own task, and not foretold
                        later = self._later(outcome.session, key)
                        self.history.note_before(key, value, later, self.begun.get(value))
                    elif value and not isinstance(key, int):
                        values = self.history.of(key)
                        self._later(outcome.session, key).difference_update(values[: values.index(value) + 1])
        else:
            for ino in outcome.touched:
                self._touched(ino, outcome.session)
        for session in outcome.fenced:
            self.counts["fenced"] += 1
            for key in self.changed.pop(session, {}):
                if self.newest.get(key) != session:
                    continue  # somebody has changed it since, so all that it had changed was there
                now = self._now(key)
                ino = key if isinstance(key, int) or key[1] not in (DATA, SIZE) else key[0]
                if now is None and ino in self.known:
                    self.history.free(key)
                else:
                    self.history.cut(key, now)
        return outcome

    def _brought(self, outcome: Outcome) -> None:
        """What was foretold happened."""
        if isinstance(outcome.reply, FsError):
            if outcome.reply.code not in (Code.FENCED, Code.UNKNOWN_SESSION):
                raise Violation("a journal fits", str(outcome.reply))
            return
        failed = [one for one in outcome.reply.results if isinstance(one, api.Failed)]  # type: ignore[union-attr]
        if failed:
            raise Violation("a journal fits", str(failed))

    def _touched(self, ino: int, session: int) -> None:
        """A session had the leader change this. What it has written there and not brought yet is newer all the same."""
        value = self._now(ino)
        if value is None or ino == ROOT_INO:
            return
        self._note(ino, value)
        for name in NAMES + LINKS + (DATA, SIZE):  # where it is a file it has none, else nothing is in it
            key = ino, name
            value = self._now(key) or 0
            if name != SIZE or value or not self.history.newest(key):  # nothing is cut to nothing, it is not there yet
                self._note(key, value, self._kept(key))

    def _note(self, key: Key, value: int, later: Collection[int] = ()) -> None:
        """The leader has this value."""
        newest = self.history.of(key)[-1:]
        self.history.note(key, value, later)
        if self.history.of(key)[-1:] != newest:
            self.newest.pop(key, None)

    def _later(self, session: int, key: Key) -> set[int]:
        """What a session may have made of a register that the leader does not know of."""
        if isinstance(key, int) or key[1] not in (DATA, SIZE):
            return set()
        return (self.written if key[1] == DATA else self.sized).setdefault(session, set())

    def _kept(self, key: Key) -> set[int]:
        """The same of all sessions: one that keeps bytes while it is asked back brings them before others change them,
        but not before they change a name of the file."""
        return set().union(*[self._later(session, key) for session in (self.written if key[1] == DATA else self.sized)])

    def _now(self, key: Key) -> Optional[int]:
        """The value of a register in the state."""
        if not isinstance(key, int) and key[1] == DATA:
            return self._data_now(key[0])
        if not isinstance(key, int) and key[1] == SIZE:
            return self._size_now(key[0])
        query = api.GetAttr(key) if isinstance(key, int) else api.Lookup(*key)
        (result,) = self.world.machine.query([query])
        if isinstance(result, api.AttrResult):
            return result.attr.atime_ns if isinstance(key, int) else result.attr.ino
        return None if isinstance(key, int) else 0

    def _removed(self, key: Key) -> bool:
        """Whether only those could read this who have the file open: it need not arrive."""
        if isinstance(key, int) or key[1] not in (DATA, SIZE):
            return False
        (result,) = self.world.machine.query([api.GetAttr(key[0])])
        return isinstance(result, api.AttrResult) and not result.attr.nlink

    def _data_now(self, ino: int) -> Optional[int]:
        (result,) = self.world.machine.query([api.GetExtents(ino, 0, BYTES)])
        if not isinstance(result, api.Extents):
            return None
        return self.contents[result.extents[0].block] if result.extents else 0

    def _size_now(self, ino: int) -> Optional[int]:
        (result,) = self.world.machine.query([api.GetAttr(ino)])
        if not isinstance(result, api.AttrResult):
            return None
        return result.attr.size if stat.S_ISREG(result.attr.mode) else 0

    def fence_of(self, session: int) -> int:
        """How often a session was fenced, which its mount may not know yet."""
        known = self.world.machine.session(session)
        return 0 if known is None else known.fence

    def doomed(self, ino: int, value: int) -> None:
        """What a program has written is lost: it was refused, or its mount is fenced and will hear of it."""
        self.failed.add(value)
        self.unwritten.add(ino)

    def sync(self, ino: int, value: int) -> None:
        """A program has heard that others see this, or what came later."""
        values = self.history.of((ino, DATA))
        known = self.synced.get(ino, 0)
        if value in values and (known not in values or values.index(value) >= values.index(known)):
            self.synced[ino] = value

    def wrote_here(self, session: int, ino: int, value: int) -> None:
        """A mount has taken what a program wrote, and keeps it."""
        self._note_here(session, (ino, DATA), value)
        self._note_here(session, (ino, SIZE), max(self.history.newest((ino, SIZE)), BYTES))
        self.written.setdefault(session, set()).add(value)
        self.counts["written"] += 1

    def changed_here(self, session: int, op: Any, result: Any) -> None:  # type: ignore[override]
        """A mount has answered a change by itself: from now on everybody must see it."""
        self.counts["local"] += 1
        changes: list[tuple[Key, int]] = []
        if isinstance(op, api.Make):
            changes = [(result.attr.ino, result.attr.atime_ns), ((op.parent, op.name), result.attr.ino)]
        elif isinstance(op, api.Remove):
            changes = [((op.parent, op.name), 0)]
        elif isinstance(op, api.Rename):
            changes = [((op.parent, op.name), 0), ((op.new_parent, op.new_name), result.ino)]
        elif isinstance(op, api.Link):
            changes = [((op.parent, op.name), op.ino)]
        elif isinstance(op, api.SetAttr):
            changes = [(op.ino, result.attr.atime_ns)]
            if op.size is not None:
                changes.append(((op.ino, SIZE), op.size))
                self.sized.setdefault(session, set()).add(op.size)
        for key, value in changes:
            self._note_here(session, key, value)

    def sized_here(self, session: int, ino: int, size: int) -> None:
        """A mount shows a file as so long, of which nobody else is shown anything sooner."""
        if size != self.history.newest((ino, SIZE)):
            self._note_here(session, (ino, SIZE), size)
            self.sized.setdefault(session, set()).add(size)

    def _note_here(self, session: int, key: Key, value: int) -> None:
        self.history.note(key, value)
        self.changed.setdefault(session, {})[key] = None
        self.newest[key] = session

    async def settle(self) -> None:
        """At last everything has arrived, and all see the same."""
        for mount in self.mounts:
            await mount.wire.running()
            await mount.volume.syncfs()
        for key, values in self.history.values.items():
            now = self._now(key)
            if values and now is not None and now != values[-1] and not self._removed(key):
                raise Violation("everything arrives", f"{key} is {now}, not {values[-1]}")
        for mount in self.mounts:
            for other in self.mounts:
                for name in NAMES + LINKS:
                    await mount.stat(other.homes[0], name)


async def _play(number: int) -> dict[str, int]:
    rng = random.Random(number)
    async with trio.open_nursery() as nursery:
        sea = Sea(rng, nursery, rng.choice((0.0, 0.0, 0.05)), rng.choice((2, 2, 3)))
        await sea.prepare()
        nursery.start_soon(sea.tick)
        async with trio.open_nursery() as disturbing:
            if rng.random() < 0.7:
                disturbing.start_soon(sea.stop_some)
            if rng.random() < 0.2:
                disturbing.start_soon(sea.fill_some)
            if rng.random() < 0.5:
                disturbing.start_soon(sea.take_servers_away)
            disturbing.start_soon(sea.fail_over, rng.choice((0, 0, 1, 3)))
            with trio.fail_after(WORK_S):
                async with trio.open_nursery() as programs:
                    for mount in sea.mounts * TASKS:
                        programs.start_soon(mount.work)
            disturbing.cancel_scope.cancel()
        with trio.fail_after(SETTLE_S):
            await sea.settle()
        nursery.cancel_scope.cancel()
    return sea.counts


def play(number: int) -> dict[str, int]:
    """Play one schedule; return how often things happened. Raises Violation."""
    run = trio._core._run  # type: ignore[attr-defined]
    with patch.object(run, "_ALLOW_DETERMINISTIC_SCHEDULING", True):
        run._r.seed(number)
        violations: list[Violation] = []
        try:
            return trio.run(_play, number, clock=trio.testing.MockClock(autojump_threshold=0))
        except* Violation as group:
            found: BaseException = group
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            assert isinstance(found, Violation)
            violations.append(found)
        raise violations[0]
