"""One machine of the simulated mounts below its mount: the connection to the leader, and what the kernel believes."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Optional

import trio

from fusefs.client.volume import Volume
from fusefs.mount.pages import LOOK_S, READ_S
from metadata import api
from node.wire.errors import Code, FsError
from tests.unit.client.test_leases import META, Call, Link
from tests.unit.client.world import Reply, _roundtrip

if TYPE_CHECKING:
    from tests.sim.mounts_world import Sea

FORGET_S = (0.0, 0.001, 0.01, 0.2)  # how long a kernel may take to forget something


class Wire(Link):
    """One mount's connection. What the leader sends is delivered in the order in which it was sent. Recalls are looked
    at on arrival and answers some time later; by a mount that is stopped, when it goes on."""

    def __init__(self, truth: Sea, number: int) -> None:
        super().__init__(truth, number)
        self.stopped_until_s = 0.0
        self.away_until_s = 0.0  # chunk servers are, for this mount: its journal has to wait
        self._send, self._coming = trio.open_memory_channel[tuple[float, trio.Event | api.Recall]](1_000_000)

    async def deliver(self) -> None:
        async for at_s, what in self._coming:
            await trio.sleep_until(at_s)
            await self.running()
            if isinstance(what, trio.Event):
                what.set()
            else:
                assert self.volume is not None
                self.volume.pushed(1, what)

    def sent(self, what: trio.Event | api.Recall) -> None:
        """The leader sends something."""
        self._send.send_nowait((self.arrival_s(), what))

    async def running(self) -> None:
        """Return when the mount is not stopped."""
        if not self.runs:
            await trio.sleep_until(self.stopped_until_s)
            await self.running()  # it may have been stopped for longer

    @property
    def runs(self) -> bool:
        return trio.current_time() >= self.stopped_until_s

    async def call(self, request: Any, data: Any = (), *, timeout_s: float) -> Reply:
        request = _roundtrip(META, request)
        with trio.move_on_after(timeout_s):
            await trio.sleep(self.lag_s())
            if isinstance(request, api.Submit) and request.journal:
                await trio.sleep_until(self.away_until_s)
            await self.running()
            call = Request(request, self.peer, self)
            self.truth.serve(call)
            await call.arrived.wait()
            await trio.sleep(self.lag_s())
            await self.running()
            return self.answer_to(call)
        raise FsError(Code.TIMEOUT, "no answer")


class Request(Call):
    """One request at the leader; its answer has its place among all that is sent to the mount."""

    def __init__(self, request: Any, peer: bytes, wire: Wire) -> None:
        super().__init__(request, peer)
        self.arrived = trio.Event()
        self._wire = wire

    def reply(self, body: Any) -> None:
        super().reply(body)
        self._wire.sent(self.arrived)

    def fail(self, error: FsError) -> None:
        super().fail(error)
        self._wire.sent(self.arrived)


class Kernel:
    """What the kernel of one machine believes because its mount has said so."""

    def __init__(self, wire: Wire, volume: Volume) -> None:
        self._wire = wire
        self._volume = volume
        self._attrs: dict[int, tuple[int, float]] = {}  # file -> atime, until when it is believed
        self._sizes: dict[int, int] = {}  # and its size with it
        self._names: dict[tuple[int, bytes], tuple[int, float]] = {}
        self._mapped: dict[int, int] = {}  # file -> atime, believed until it is forgotten
        self._versions: dict[int, int] = {}  # file -> data version, told last
        self._pages: dict[int, tuple[int, int]] = {}  # file -> data version told when they were read, what is in it
        self._writes = 0
        self._filled: dict[int, int] = {}  # file -> what programs see in a page of it that they have mapped
        self._held: dict[int, int] = {}  # file -> reads under way for such a page

    def attr(self, ino: int) -> Optional[int]:
        value, until_s = self._attrs.get(ino, (0, 0.0))
        return value if trio.current_time() < until_s else None

    def size(self, ino: int) -> int:
        """What is believed along with ``attr``."""
        return self._sizes.get(ino, 0)

    def name(self, key: tuple[int, bytes]) -> Optional[int]:
        ino, until_s = self._names.get(key, (0, 0.0))
        return ino if trio.current_time() < until_s else None

    def mapped(self) -> dict[int, int]:
        """What programs see in their memory. Where the mount was stopped for too long that may be old (rule 6)."""
        leased = trio.current_time() < self._volume._session.leases.until_s
        return self._mapped if leased and self._wire.runs else {}

    def filled(self) -> dict[int, int]:
        """The same of the contents of files."""
        leased = trio.current_time() < self._volume._session.leases.until_s
        return self._filled if leased and self._wire.runs else {}

    async def fill(self, ino: int, read: Callable[[], Awaitable[int]]) -> int:
        """A program looks at a page that it has mapped. Until the mount has answered it is locked."""
        writes = self._writes
        self._held[ino] = self._held.get(ino, 0) + 1
        try:
            value = await read()
            if writes == self._writes:
                self._filled[ino] = value
            return value
        finally:
            self._held[ino] -= 1

    def stores(self, ino: int, value: int) -> None:
        """A program changes such a page."""
        self.writes(ino)
        self._filled[ino] = value

    def told(self, attr: api.Attr, *, new: bool = True) -> None:
        """The mount answers with attributes now; in answers about what the kernel knew they are given no time."""
        left_s = self._volume.attr_left_s(attr)
        self._attrs[attr.ino] = attr.atime_ns, trio.current_time() + (left_s if new else 0.0)
        self._sizes[attr.ino] = attr.size if stat.S_ISREG(attr.mode) else 0
        self._versions[attr.ino] = attr.data_version
        if left_s > 0:
            self._mapped[attr.ino] = attr.atime_ns

    def named(self, parent: int, name: bytes, ino: int) -> None:
        """It answers what a name means."""
        self._names[parent, name] = ino, trio.current_time() + self._volume.name_left_s(parent, name, ino)

    def changes(self, ino: int) -> None:
        """A program changes a file: what it had mapped is changed with it."""
        self._mapped.pop(ino, None)

    def data(self, ino: int) -> Optional[int]:
        """What is in a file, where its attributes are believed or were told just now."""
        version, value = self._pages.get(ino, (0, 0))
        return value if version and version == self._versions.get(ino) else None

    def asks(self, ino: int) -> tuple[int, int]:
        """A program asks for what is in a file: the version that was told last, and how often programs have written."""
        return self._versions.get(ino, 0), self._writes

    def reads(self, ino: int, asked: tuple[int, int], value: int) -> None:
        """It was answered; a write meanwhile waited for that, and came after it."""
        if asked[1] == self._writes:
            self._pages[ino] = asked[0], value

    def writes(self, ino: int) -> None:
        self._writes += 1
        self._pages.pop(ino, None)
        self._filled.pop(ino, None)

    def renames(self, *keys: tuple[int, bytes]) -> None:
        for key in keys:
            self._names.pop(key, None)

    async def _pass(self) -> None:
        await trio.sleep(self._wire.truth.rng.choice(FORGET_S))
        await self._wire.running()

    async def forget(self, inos: Collection[int]) -> None:
        await self._pass()
        for ino in inos:
            end_s = trio.current_time() + READ_S
            while self._held.get(ino) and trio.current_time() < end_s:  # noqa: ASYNC110
                await trio.sleep(LOOK_S)
            if self._held.get(ino):
                self._writes += 1  # it goes on without that page, which is dropped when it comes
            self._filled.pop(ino, None)
            self._attrs.pop(ino, None)
            self._mapped.pop(ino, None)
            self._pages.pop(ino, None)
        self.renames(*[key for key in self._names if key[0] in inos])

    async def forget_all(self) -> None:
        await self._pass()
        self._attrs.clear()
        self._names.clear()
        self._mapped.clear()
        self._pages.clear()
        self._filled.clear()
        self._writes += 1

    def yields(self, ino: int) -> bool:
        return self.expire((ino,)) and ino not in self._filled and not any(key[0] == ino for key in self._names)

    def expire(self, inos: Collection[int], names: Collection[tuple[int, bytes]] = ()) -> bool:
        for ino in inos:
            self._attrs.pop(ino, None)
        return not any(map(self.name, names)) and not any(ino in self._mapped for ino in inos)
