"""Mounts that change things by themselves, and what their kernels believe, on a fake clock, against the truth.

Mounts (``fusefs.client``) and the leader's side (service, leases, state) are the whole production code. A kernel here
keeps what its mount has answered for as long as the mount said that it may, and what a program has mapped until it is
told to forget it, as long as its mount runs. A mount may be stopped: it sends nothing and looks at nothing meanwhile,
but its kernel goes on. Leaders come and go. Everything is the seed's, the order of tasks too.

Each name and each file is a register, and a file's value is its atime; what is in it is another one. Whatever is
read, from a kernel, a mount or the leader, must be at least as new as every change and every read of it that had ended
before. A change that a mount makes by itself counts from when it is answered, unless the mount is fenced before it has
brought it.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Optional
from unittest.mock import patch

import trio
import trio.testing

from fusefs.client.files import File
from fusefs.client.handles import Handle
from fusefs.client.options import ClientOptions
from fusefs.client.volume import Volume
from metadata import api
from metadata.state.machine import Outcome
from node.wire.errors import Code, FsError
from node.wire.limits import LEASE_CACHE_BYTES, LEASES_PER_SESSION_MAX, RECLAIM_AFTER_S
from node.wire.types import ROOT_INO
from storage.api import name_block
from tests.sim.checkers import Violation
from tests.sim.mounts_kernel import Kernel, Wire
from tests.sim.registers import History, Key
from tests.unit.client.test_leases import Truth

FILE = 0o100644
NAMES = tuple(b"%d" % number for number in range(4))
LINKS = (b"link",)  # second names of files; nothing is moved from or to them
DATA = b"data"  # instead of a name: what is in a file, a number of BYTES; 0: nothing
BYTES = 8
TASKS = 2  # of each mount
ROUNDS = 12  # of each task
AWAY = 0.3  # how often a program works in a directory of another mount
TICK_S = 0.25
WORK_S, SETTLE_S = 1000.0, 60.0  # nobody waits for ever
DIRECTORIES_MAX = 2  # of one mount, that programs work in
MAY_HAPPEN = frozenset(
    (
        Code.NOT_FOUND, Code.EXISTS, Code.STALE, Code.TIMEOUT, Code.UNKNOWN_SESSION, Code.FENCED,
        Code.IS_DIRECTORY, Code.NOT_DIRECTORY, Code.NOT_EMPTY, Code.INVALID, Code.PERMISSION,
        Code.NO_SPACE, Code.IO,
    )
)  # fmt: skip


class Mount:
    """One machine: a wire, a mount, its kernel and its programs."""

    def __init__(self, sea: Sea, wire: Wire, nursery: trio.Nursery) -> None:
        self.sea = sea
        self.wire = wire
        self.homes: list[int] = []  # directories in which its programs work most of the time: the first, and new ones
        self.away: list[int] = []  # others that they have come upon
        self.volume = wire.volume = Volume(
            nursery,
            {1: wire},
            sea.world.dial,
            mount="/m",
            options=ClientOptions(lease_bytes_max=sea.rng.choice((LEASE_CACHE_BYTES, LEASE_CACHE_BYTES, 5000))),
            now_ns=sea.world.clock,
            random_bytes=sea.world.random_bytes,
        )
        self.kernel = Kernel(wire, self.volume)
        self.volume.caches(self.kernel)
        self.volume._session.journal.delay_s = sea.rng.choice((0.01, 0.1, 1.0, 5.0))
        self.volume._session.exclusive.reclaim_after_s = sea.rng.choice((0.0, 0.0, RECLAIM_AFTER_S))
        nursery.start_soon(wire.deliver)
        local = self.volume._local
        for kind in ("make", "remove", "rename", "link", "set_attr"):
            setattr(local, kind, partial(self._executed, getattr(local, kind)))
        writeback = self.volume._writeback
        writeback.stays = partial(self._stays, writeback.stays)  # type: ignore[method-assign]

    def _executed(self, execute: Callable[[Any], Any], op: Any) -> Any:
        """Have the truth told what the mount changes by itself, when it happens."""
        local = self.volume._local
        done = local.done
        result = execute(op)
        if local.done > done:
            self.sea.changed_here(self.volume._session.id, op, result)
        return result

    def _stays(self, stays: Callable[[File, bool], bool], file: File, paged: bool = False) -> bool:
        """The same for what is written to files."""
        stayed = stays(file, paged)
        value = int.from_bytes(b"".join(bytes(piece.data) for piece in file.dirty.pieces()), "big")
        if stayed:
            self.sea.wrote_here(self.volume._session.id, file.ino, value)
        else:
            self.sea.begun[value] = self.sea.history.of((file.ino, DATA))[-1]
        return stayed

    # --- programs -----------------------------------------------------------------------------------------------

    async def look(self, parent: int, name: bytes) -> int:
        """What a name means; 0: nothing."""
        key = parent, name
        floor = self.sea.history.floor(key)
        ino, where = self.kernel.name(key), "kernel"
        if ino is None:
            await self.wire.running()
            ino, where = 0, "mount"
            try:
                attr = await self.volume.lookup(parent, name)
            except FsError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
            else:
                ino = attr.ino
                self.kernel.told(attr)
                if stat.S_ISDIR(attr.mode) and ino not in self.homes:
                    self.away = [*self.away, ino][-DIRECTORIES_MAX:]
            self.kernel.named(parent, name, ino)
        self.sea.history.saw(key, floor, ino, self._at(where))
        return ino

    async def stat(self, parent: int, name: bytes) -> None:
        ino = await self.look(parent, name)
        if ino:
            await self.stat_file(ino)

    async def stat_file(self, ino: int) -> None:
        floor = self.sea.history.floor(ino)
        value, where = self.kernel.attr(ino), "kernel"
        if value is None:
            await self.wire.running()
            attr = await self.volume.getattr(ino)
            self.kernel.told(attr)
            value, where = attr.atime_ns, "mount"
        self.sea.history.saw(ino, floor, value, self._at(where))

    def look_at_mapped(self) -> None:
        """What a program has mapped it sees without asking anybody."""
        history = self.sea.history
        for ino, value in self.kernel.mapped().items():
            history.saw(ino, history.floor(ino), value, self._at("mapped"))

    async def make(self, parent: int, name: bytes) -> None:
        await self._make(parent, name, partial(self.volume.mknod, parent, name, FILE, 0, 0, 0))

    async def make_directory(self, parent: int, name: bytes) -> None:
        ino = await self._make(parent, name, partial(self.volume.mkdir, parent, name, 0o755, 0, 0))
        if ino:
            self.homes[1:] = [*self.homes[1:], ino][-DIRECTORIES_MAX:]

    async def _make(self, parent: int, name: bytes, make: Callable[[], Awaitable[api.Attr]]) -> int:
        """Return the new inode; 0: the name was there."""
        if await self.look(parent, name):
            return 0
        floor = self.sea.history.floor((parent, name))
        await self.wire.running()
        self.kernel.renames((parent, name))
        attr = await make()
        self.kernel.told(attr)
        self.kernel.named(parent, name, attr.ino)
        self.sea.history.saw((parent, name), floor, attr.ino, self._at("making"))
        return attr.ino

    async def remove(self, parent: int, name: bytes) -> None:
        floor = self.sea.history.floor((parent, name))
        await self.wire.running()
        try:
            await self.volume.unlink(parent, name)
        except FsError as error:
            if error.code is not Code.IS_DIRECTORY:
                raise
            await self.volume.rmdir(parent, name)
        self.kernel.renames((parent, name))
        self.sea.history.saw((parent, name), floor, 0, self._at("removing"))

    async def move(self, parent: int, name: bytes) -> None:
        history = self.sea.history
        parent_2, name_2 = self._place()
        floor = history.floor((parent, name))
        await self.wire.running()
        await self.volume.rename(parent, name, parent_2, name_2)
        self.kernel.renames((parent, name), (parent_2, name_2))
        if (parent, name) != (parent_2, name_2):
            history.saw((parent, name), floor, 0, self._at("moving"))

    async def link(self, parent: int, name: bytes) -> None:
        """Give a file another name."""
        ino = await self.look(parent, name)
        if not ino:
            return
        key = self._place()[0], self.sea.rng.choice(LINKS)
        floor = self.sea.history.floor(key)
        await self.wire.running()
        self.kernel.renames(key)
        attr = await self.volume.link(ino, *key)
        self.kernel.told(attr, new=False)
        self.kernel.named(*key, ino)
        self.sea.history.saw(key, floor, ino, self._at("linking"))

    async def set(self, parent: int, name: bytes) -> None:
        ino = await self.look(parent, name)
        if not ino:
            return
        floor = self.sea.history.floor(ino)
        await self.wire.running()
        self.kernel.changes(ino)
        attr = await self.volume.setattr(ino, atime_ns=self.sea.next_value())
        self.kernel.told(attr, new=False)
        self.sea.history.saw(ino, floor, attr.atime_ns, self._at("setting"))

    async def _open(self, parent: int, name: bytes, flags: int) -> Optional[Handle]:
        """Open a file; None: there is none."""
        ino = await self.look(parent, name)
        if not ino:
            return None
        await self.wire.running()
        attr = await self.volume.getattr(ino)
        self.kernel.told(attr)
        return await self.volume.open(ino, flags) if stat.S_ISREG(attr.mode) else None

    async def write(self, parent: int, name: bytes) -> None:
        """Give a file other contents, and wait until they are durable, or not."""
        sea = self.sea
        handle = await self._open(parent, name, os.O_RDWR)
        if handle is None:
            return
        key, value = (handle.ino, DATA), sea.next_value()
        plain = value.to_bytes(BYTES, "big")
        sea.contents[name_block(plain)] = value
        floor = sea.history.floor(key)
        async with self._released(handle):
            self.kernel.writes(handle.ino)
            try:
                await self.volume.write(handle, 0, plain)
            except FsError:
                sea.failed.add(value)  # and yet its own mount may show it, until it is given up
                raise
            finally:
                self.kernel.writes(handle.ino)
            sea.history.saw(key, floor, value, self._at("writing"))
            if sea.rng.random() < 0.3:
                await self.volume.fsync(handle)
            elif sea.rng.random() < 0.5:
                await self.volume.flush(handle)

    async def read(self, parent: int, name: bytes) -> None:
        handle = await self._open(parent, name, os.O_RDONLY)
        if handle is None:
            return
        async with self._released(handle):
            await self._read(handle)

    @asynccontextmanager
    async def _released(self, handle: Handle) -> AsyncIterator[None]:
        """Release a handle also when what a program does with it fails."""
        try:
            yield
        finally:
            await self.volume.release(handle)  # noqa: ASYNC102  nobody cancels a program here

    async def _read(self, handle: Handle) -> None:
        """As the kernel does: it asks for attributes unless it believes them, and then shows pages of that version."""
        ino, kernel, history = handle.ino, self.kernel, self.sea.history
        for _ in range(2):
            floor = history.floor((ino, DATA))
            if kernel.attr(ino) is None:
                await self.wire.running()
                kernel.told(await self.volume.getattr(ino))
            value, where = kernel.data(ino), "pages"
            if value is None:
                await self.wire.running()
                asked = kernel.asks(ino)
                plain = bytes(await self.volume.read(handle, 0, BYTES))
                value, where = int.from_bytes(plain, "big"), "reading"
                kernel.reads(ino, asked, value)
            if value not in self.sea.failed:
                history.saw((ino, DATA), floor, value, self._at(where))

    def _at(self, where: str) -> str:
        return f"{trio.current_time():.4f} s, mount {self.wire.peer.decode()}, {where}"

    def _place(self) -> tuple[int, bytes]:
        rng = self.sea.rng
        places = self.homes if rng.random() > AWAY else [mount.homes[0] for mount in self.sea.mounts] + self.away
        return rng.choice(places), rng.choice(NAMES)

    async def work(self) -> None:
        """Programs at work: a few things at once, then a pause."""
        rng = self.sea.rng
        at_home = [
            self.look, self.stat, self.stat, self.make, self.make, self.make, self.make_directory, self.set, self.set,
            self.remove, self.remove, self.remove, self.move, self.link,
            self.write, self.write, self.write, self.read, self.read, self.read,
        ]  # fmt: skip
        moving = (self.make, self.make_directory, self.move)
        away = [
            self.stat, self.set, self.set, self.set, self.make, self.remove, self.write, self.write, self.read,
            self.read,
        ]  # fmt: skip
        for _ in range(ROUNDS):
            await trio.sleep(rng.choice((0.01, 0.1, 1.0, 1.0)) * rng.random())
            parent, _ = self._place()
            acts = at_home if parent in self.homes else away
            for _ in range(rng.choice((2, 6, 10))):
                act = rng.choice(acts)
                name = rng.choice(NAMES if act in moving else NAMES + LINKS)
                self.look_at_mapped()
                try:
                    await act(parent, name)
                except FsError as error:
                    if error.code not in MAY_HAPPEN:
                        raise


class Sea(Truth):
    """The leader, its successors, all mounts and the truth."""

    def __init__(self, rng: random.Random, nursery: trio.Nursery, loss: float, mounts: int) -> None:
        super().__init__(rng, nursery, loss)
        self.history = History()
        self.wires = [Wire(self, number) for number in range(mounts)]
        self.mounts = [Mount(self, wire, nursery) for wire in self.wires]
        self.changed: dict[int, dict[Key, None]] = {}  # session -> what it has changed by itself
        self.known: set[Key] = set()  # inodes that the leader ever had
        self.contents: dict[bytes, int] = {}  # names of blocks, and what is in them
        self.begun: dict[int, int] = {}  # what is being written through, and what was there when that began
        self.failed: set[int] = set()  # what programs were told could not be written
        self.written: dict[int, set[int]] = {}  # session -> what it has taken from programs and kept for a while
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
                for key in (ino, (ino, DATA)):
                    value = self._now(key)
                    if value and value not in self.history.of(key):  # done by a file's own task, and not foretold
                        later = self.written.get(outcome.session, ())
                        self.history.note_before(key, value, later, self.begun.get(value))
        else:
            for ino in outcome.touched:
                self._touched(ino, outcome.session)
        for session in outcome.fenced:
            self.counts["fenced"] += 1
            for key in self.changed.pop(session, {}):
                now = self._now(key)
                if now is None and (key if isinstance(key, int) or key[1] != DATA else key[0]) in self.known:
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
        self.history.note(ino, value)
        for name in NAMES + LINKS + (DATA,):  # where it is a file it has none, else nothing is in it
            key, own = (ino, name), self.written.get(session, ()) if name == DATA else ()
            self.history.note(key, self._now(key) or 0, own)

    def _now(self, key: Key) -> Optional[int]:
        """The value of a register in the state."""
        if not isinstance(key, int) and key[1] == DATA:
            return self._data_now(key[0])
        query = api.GetAttr(key) if isinstance(key, int) else api.Lookup(*key)
        (result,) = self.world.machine.query([query])
        if isinstance(result, api.AttrResult):
            return result.attr.atime_ns if isinstance(key, int) else result.attr.ino
        return None if isinstance(key, int) else 0

    def _removed(self, key: Key) -> bool:
        """Whether only those could read this who have the file open: it need not arrive."""
        if isinstance(key, int) or key[1] != DATA:
            return False
        (result,) = self.world.machine.query([api.GetAttr(key[0])])
        return isinstance(result, api.AttrResult) and not result.attr.nlink

    def _data_now(self, ino: int) -> Optional[int]:
        (result,) = self.world.machine.query([api.GetExtents(ino, 0, BYTES)])
        if not isinstance(result, api.Extents):
            return None
        return self.contents[result.extents[0].block] if result.extents else 0

    def wrote_here(self, session: int, ino: int, value: int) -> None:
        """A mount has taken what a program wrote, and keeps it."""
        self.history.note((ino, DATA), value)
        self.changed.setdefault(session, {})[ino, DATA] = None
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
        for key, value in changes:
            self.history.note(key, value)
            self.changed.setdefault(session, {})[key] = None

    async def settle(self) -> None:
        """At last everything has arrived, and all see the same."""
        for mount in self.mounts:
            await mount.wire.running()
            await mount.volume.syncfs()
        for key, values in self.history.values.items():
            now = self._now(key)
            if now is not None and now != values[-1] and not self._removed(key):
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
