"""One machine of the simulated mounts: a mount of production, its kernel, and what programs do there all day."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

import trio

from fusefs.client.files import File
from fusefs.client.handles import Handle
from fusefs.client.options import ClientOptions
from fusefs.client.volume import Volume
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import LEASE_CACHE_BYTES, RECLAIM_AFTER_S
from storage.api import name_block
from tests.sim.checkers import Violation
from tests.sim.mounts_kernel import Kernel, Wire

if TYPE_CHECKING:
    from tests.sim.mounts_world import Sea

FILE = 0o100644
NAMES = tuple(b"%d" % number for number in range(4))
LINKS = (b"link",)  # second names of files; nothing is moved from or to them
DATA = b"data"  # instead of a name: what is in a file, a number of BYTES; 0: nothing
SIZE = b"size"  # the same for its size: 0, BYTES once something was written, and then one that no other file had
BYTES = 8
ROUNDS = 12  # of each task
AWAY = 0.3  # how often a program works in a directory of another mount
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
        self._locks: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)  # the kernel's, of inodes that are changed
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
        session = self.volume._session
        if local.done > done:
            self.sea.changed_here(session.id, op, result)
            ino = op.ino if isinstance(op, api.Link) else result.ino if isinstance(op, api.Rename) else 0
            attr = session.leases.attr(ino, session.now_s())
            if attr is not None and stat.S_ISREG(attr.mode):  # what is still being written goes before the new name
                self.sea.sized_here(session.id, ino, attr.size)
        return result

    def _stays(self, stays: Callable[[File, bool], bool], file: File, paged: bool = False) -> bool:
        """The same for what is written to files."""
        stayed = stays(file, paged)
        value = int.from_bytes(b"".join(bytes(piece.data) for piece in file.dirty.pieces()), "big")
        session = self.volume._session
        if stayed and self.sea.fence_of(session.id) > session._fence:
            self.sea.doomed(file.ino, value)
        elif stayed:
            self.sea.wrote_here(session.id, file.ino, value)
        else:
            self.sea.begun[value] = self.sea.history.newest((file.ino, DATA))
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
        value, size, where = self.kernel.attr(ino), self.kernel.size(ino), "kernel"
        size_floor = self.sea.history.floor((ino, SIZE))
        if value is None:
            await self.wire.running()
            attr = await self.volume.getattr(ino)
            self.kernel.told(attr)
            value, size, where = attr.atime_ns, attr.size, "mount"
            if not stat.S_ISREG(attr.mode):
                size = 0  # of a directory that is the number of names
        self.sea.history.saw(ino, floor, value, self._at(where))
        if size != BYTES or ino not in self.sea.unwritten:
            self.sea.history.saw((ino, SIZE), size_floor, size, self._at(where))

    def look_at_mapped(self) -> None:
        """What a program has mapped it sees without asking anybody."""
        history = self.sea.history
        for ino, value in self.kernel.mapped().items():
            history.saw(ino, history.floor(ino), value, self._at("mapped"))
        for ino, value in self.kernel.filled().items():
            self._saw_page(ino, value)

    def _saw_page(self, ino: int, value: int) -> None:
        """What is in a mapped page is not older than what was synced; its own mount shows it sooner than others."""
        sea = self.sea
        values, synced = sea.history.of((ino, DATA)), sea.synced.get(ino, 0)
        if value in sea.failed or value in sea.unsynced or synced not in values:
            return
        if value not in values[values.index(synced) :]:
            story = f"{self._at('page')}: {ino} is {value}, but {synced} of {values} is synced"
            raise Violation("nothing stale is mapped", story)

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
        async with self._locks[ino]:
            self.kernel.changes(ino)
            attr = await self.volume.setattr(ino, atime_ns=self.sea.next_value())
            self.kernel.told(attr, new=False)
            self.sea.history.saw(ino, floor, attr.atime_ns, self._at("setting"))

    async def resize(self, parent: int, name: bytes) -> None:
        """Make a file longer or shorter, but not so short that what is in it is cut."""
        sea = self.sea
        ino = await self.look(parent, name)
        if not ino:
            return
        key, size = (ino, SIZE), sea.rng.choice((10_000, 20_000)) + sea.next_value()
        floor = sea.history.floor(key)
        await self.wire.running()
        async with self._locks[ino]:
            sea.begun[size] = sea.history.newest(key)
            self.kernel.changes(ino)
            self.kernel.writes(ino)
            attr = await self.volume.setattr(ino, size=size)
            self.kernel.writes(ino)
            self.kernel.told(attr, new=False)
            sea.history.saw(key, floor, attr.size, self._at("resizing"))

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
        handle = await self._open(parent, name, os.O_RDWR)
        if handle is None:
            return
        async with self._released(handle):
            await self._write(handle)
            if self.sea.rng.random() < 0.3:
                async with self._locks[handle.ino]:
                    await self.volume.fsync(handle)
            elif self.sea.rng.random() < 0.5:
                await self.volume.flush(handle)

    async def copy(self, parent: int, name: bytes) -> None:
        """Make a file, write it and close it, as ``cp`` does. Where others look, the kernel is told nothing of it."""
        key = parent, name
        if await self.look(parent, name):
            return
        floor = self.sea.history.floor(key)
        await self.wire.running()
        self.kernel.renames(key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        handle, attr = await self.volume.create(parent, name, 0o600, flags, 0, 0)
        if self.volume.alone(parent):
            self.kernel.told(attr)
            self.kernel.named(*key, attr.ino)
        self.sea.history.saw(key, floor, attr.ino, self._at("copying"))
        async with self._released(handle):
            await self._write(handle)
            await self.volume.flush(handle)

    async def look_at_page(self, parent: int, name: bytes) -> None:
        """Map a file and look at it."""
        handle = await self._open(parent, name, os.O_RDWR)
        if handle is None:
            return

        async def read() -> int:
            return int.from_bytes(bytes(await self.volume.read(handle, 0, BYTES, held=True)), "big")

        async with self._released(handle):
            await self.wire.running()
            await self.kernel.fill(handle.ino, read)

    async def store(self, parent: int, name: bytes) -> None:
        """Map a file, change it, and wait until that is durable."""
        handle = await self._open(parent, name, os.O_RDWR)
        if handle is None:
            return
        sea, key, value = self.sea, (handle.ino, DATA), self.sea.next_value()
        plain = value.to_bytes(BYTES, "big")
        async with self._released(handle), self._locks[handle.ino]:
            if self.kernel.size(handle.ino) < BYTES:
                return  # there is no page
            sea.contents[name_block(plain)] = value
            floor = sea.history.floor(key)
            sea.unsynced.add(value)
            self.kernel.stores(handle.ino, value)
            try:
                await self.volume.write(handle, 0, plain, paged=True)
                await self.volume.fsync(handle)
            except FsError:
                sea.doomed(handle.ino, value)
                self.kernel.writes(handle.ino)
                raise
            finally:
                sea.unsynced.discard(value)
            if value not in sea.failed:
                sea.history.saw(key, floor, value, self._at("storing"))
                sea.sync(handle.ino, value)

    async def _write(self, handle: Handle) -> None:
        async with self._locks[handle.ino]:
            await self._write_locked(handle)

    async def _write_locked(self, handle: Handle) -> None:
        sea = self.sea
        key, value = (handle.ino, DATA), sea.next_value()
        plain = value.to_bytes(BYTES, "big")
        sea.contents[name_block(plain)] = value
        floor = sea.history.floor(key)
        self.kernel.writes(handle.ino)
        try:
            await self.volume.write(handle, 0, plain)
        except FsError:
            sea.doomed(handle.ino, value)  # and yet its own mount may show it, until it is given up
            raise
        finally:
            self.kernel.writes(handle.ino)
        if value not in sea.failed:
            sea.history.saw(key, floor, value, self._at("writing"))

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
            if value not in self.sea.failed and value not in self.sea.unsynced:
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
            self.look, self.stat, self.stat, self.make, self.make, self.copy, self.make_directory, self.set, self.set,
            self.remove, self.remove, self.remove, self.move, self.link,
            self.write, self.write, self.write, self.read, self.read, self.read, self.resize, self.store,
            self.look_at_page,
        ]  # fmt: skip
        moving = (self.make, self.copy, self.make_directory, self.move)
        away = [
            self.stat, self.set, self.set, self.set, self.make, self.copy, self.remove, self.write, self.write,
            self.read, self.read, self.resize, self.store, self.look_at_page, self.look_at_page,
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
