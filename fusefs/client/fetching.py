"""Plaintext from whichever replica has it: asked of one, of another when the first is slow, down or wrong.

Everything is verified here: pieces by their checksums, whole blocks by their hash. A copy that is damaged or missing
while another server has the block is told to the server that should have it (``Suspect``), which looks itself and
reports to the metadata service, so that it is repaired; the log names it once.

A block that no server has may be one whose bytes the metadata service still keeps (Commit.data); then they come from
there.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Optional

import trio

from fusefs.client.codec import Codec, Coded
from fusefs.client.hedging import Hedging
from fusefs.client.placement import Placement
from fusefs.client.shortcircuit import ShortCircuit
from node.host.sparing import Sparing, and_more
from node.wire.errors import Code, FsError
from node.wire.limits import SUSPECTS_MAX
from node.wire.types import Buffer
from storage.api import BlockRange, Get, Suspect, name_block

log = logging.getLogger(__name__)

TRY_TIMEOUT_S = 5.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 0.5
SUSPECT_PAUSE_S = 0.2  # more may be found meanwhile
NAMED_MAX = 4096  # bad copies that were logged and are not logged again

PASSING = frozenset(
    {Code.UNREACHABLE, Code.TIMEOUT, Code.OVERLOADED, Code.SHUTTING_DOWN, Code.RETRY, Code.STALE_EPOCH}
)


class Wanted(NamedTuple):
    """Part of a block, or all of it."""

    block: bytes
    offset: int
    length: int
    block_length: int

    @property
    def range(self) -> BlockRange:
        whole = self.length == self.block_length
        return BlockRange(self.block) if whole else BlockRange(self.block, self.offset, self.length)


class _Race:
    """Servers that were asked for the same bytes; the first intact answer wins."""

    def __init__(self) -> None:
        self.plain: Optional[Buffer] = None
        self.failures: list[tuple[int, FsError]] = []
        self.running = 0
        self.changed = trio.Event()

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


Logged = Callable[[bytes, float], Awaitable[Optional[bytes]]]


class Fetcher:
    """Asks chunk servers, and ``logged``, with a deadline, for what they do not have. Any number of tasks."""

    def __init__(
        self, placement: Placement, codec: Codec, nursery: trio.Nursery, logged: Logged, *, short_circuit: bool = False
    ) -> None:
        self._logged = logged
        self._placement = placement
        self._codec = codec
        self._nursery = nursery
        self._turn = 0
        self._named: OrderedDict[tuple[int, bytes], None] = OrderedDict()
        self._sparing = Sparing()
        self._suspects: dict[int, dict[bytes, None]] = {}  # server -> bad copies it has not been told of
        self.hedging = Hedging()
        self.short = ShortCircuit(placement, nursery, self._suspect, on=short_circuit)
        self.requests = 0
        self.bad = 0
        self.from_log = 0

    def order(self, block: bytes) -> list[int]:
        """The servers of a block in the order to ask them, each read beginning with the next one. Those that may lack
        it come last, however fast they answer."""
        servers = list(self._placement.servers_of(block))
        if len(servers) > 1:
            self._turn += 1
            whole = servers[: self._placement.complete_of(block)]
            first = self._turn % max(len(whole), 1)
            whole = self.hedging.order(whole[first:] + whole[:first], trio.current_time())
            servers = [*whole, *servers[len(whole) :]]
        return servers

    async def fetch(self, wanted: Wanted, deadline: float) -> Buffer:
        """Return verified plaintext. IO, with a log line that names the block, when no server has it intact; TIMEOUT
        when those that might did not answer in time."""
        plain = await self.short.read(wanted.block, wanted.offset, wanted.length)
        if plain is not None:
            return plain
        pause_s = PAUSE_S_MIN
        refreshed = False
        while True:
            await self._placement.ready(deadline)
            race = await self._race(wanted, deadline)
            if race.plain is not None:
                return race.plain
            if any(error.code is Code.MISSING_BLOCK for _, error in race.failures):
                plain = await self._from_log(wanted, deadline)
                if plain is not None:
                    return plain
            passing = not race.failures or any(error.code in PASSING for _, error in race.failures)
            late = trio.current_time() + pause_s >= deadline
            if late or (refreshed and not passing):
                raise self._hopeless(wanted.block, race.failures, passing)
            if passing:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
            await self._placement.refresh(deadline)
            refreshed = True

    async def _from_log(self, wanted: Wanted, deadline: float) -> Optional[Buffer]:
        try:
            plain = await self._logged(wanted.block, deadline)
        except FsError as error:
            log.info("whether block %s is in the log is not known: %s", wanted.block.hex(), error)
            return None
        if plain is None or len(plain) != wanted.block_length or name_block(plain) != wanted.block:
            return None
        self.from_log += 1
        return memoryview(plain)[wanted.offset : wanted.offset + wanted.length]

    def _hopeless(self, block: bytes, failures: Sequence[tuple[int, FsError]], passing: bool) -> FsError:
        story = "; ".join(f"{self._placement.name_of(server)}: {error}" for server, error in failures)
        log.error("block %s cannot be read: %s", block.hex(), story or "no chunk server is known")
        return FsError(Code.TIMEOUT if passing else Code.IO, f"block {block.hex()} cannot be read: {story}")

    async def _race(self, wanted: Wanted, deadline: float) -> _Race:
        """Ask one server after the other, and the next one too when it takes long."""
        race = _Race()
        servers = self.order(wanted.block)
        if len(servers) == 1:
            await self._enter(race, servers[0], wanted, deadline)
        elif servers:
            async with trio.open_nursery() as nursery:
                await self._run(race, servers, wanted, deadline, nursery)
                nursery.cancel_scope.cancel()
        if race.plain is not None:
            for server, error in race.failures:
                if error.code not in PASSING:
                    self._suspect(server, wanted.block)
        return race

    async def _run(
        self, race: _Race, servers: list[int], wanted: Wanted, deadline: float, nursery: trio.Nursery
    ) -> None:
        patience_s = self.hedging.patience_s(wanted.length)
        while race.plain is None and (servers or race.running):
            if servers and not race.running:
                nursery.start_soon(self._enter, race, servers.pop(0), wanted, deadline)
                race.running += 1
            with trio.move_on_after(patience_s if servers else deadline - trio.current_time()) as scope:
                await race.changed.wait()
            if not scope.cancelled_caught:
                continue
            if not servers:
                return
            if self.hedging.spend():
                nursery.start_soon(self._enter, race, servers.pop(0), wanted, deadline)
                race.running += 1
            else:
                patience_s = deadline - trio.current_time()

    async def _enter(self, race: _Race, server: int, wanted: Wanted, deadline: float) -> None:
        """Ask one server, as one of a race."""
        try:
            timeout_s = max(0.001, min(TRY_TIMEOUT_S, deadline - trio.current_time()))
            frame = (await self._get(server, (wanted,), timeout_s))[0]
            if isinstance(frame, FsError):
                raise frame
            race.plain = await self._codec.decode(
                frame, wanted.block, wanted.offset, wanted.length, wanted.block_length
            )
        except FsError as error:
            race.failures.append((server, error))
            self._note(server, wanted.block, error)
        finally:
            race.running -= 1
            race.tell()

    async def batch(self, server: int, blocks: Sequence[tuple[bytes, int]]) -> dict[bytes, Buffer]:
        """Ask one server for whole blocks (name, length) in one request; return those that came intact in time."""
        wanted = [Wanted(block, 0, length, length) for block, length in blocks]
        frames = await self._frames(server, wanted)
        coded = [
            Coded(one.block, one.block_length, frame)
            for one, frame in zip(wanted, frames)
            if not isinstance(frame, FsError)
        ]
        plain: dict[bytes, Buffer] = {}
        for one, result in zip(coded, await self._codec.decode_all(coded)):
            if not isinstance(result, FsError):  # what failed is asked for again, one by one, and told there
                plain[one.block] = result
        return plain

    async def _frames(self, server: int, wanted: Sequence[Wanted]) -> Sequence[Buffer | FsError]:
        """Ask for a batch. Where another server could be asked it is given up when it takes long, within the budget."""
        frames: Sequence[Buffer | FsError] = ()

        async def ask() -> None:
            nonlocal frames
            try:
                frames = await self._get(server, wanted, TRY_TIMEOUT_S)
            except FsError as error:
                log.info("%d blocks from %s: %s", len(wanted), self._placement.name_of(server), error)

        if len(self._placement.servers_of(wanted[0].block)) == 1:
            await ask()
            return frames
        async with trio.open_nursery() as nursery:

            async def impatient() -> None:
                await trio.sleep(self.hedging.patience_s(sum(one.length for one in wanted)))
                if self.hedging.spend(len(wanted)):
                    nursery.cancel_scope.cancel()

            nursery.start_soon(impatient)
            await ask()
            nursery.cancel_scope.cancel()
        return frames

    async def _get(self, server: int, wanted: Sequence[Wanted], timeout_s: float) -> list[Buffer | FsError]:
        """One request; a frame or an error for each block."""
        size_bytes = sum(one.length for one in wanted)
        self.hedging.ask()
        self.requests += 1
        begun = trio.current_time()
        answered = False
        try:
            request = Get(tuple(one.range for one in wanted), self._placement.pg_epoch)
            answer = await self._placement.call(server, request, (), timeout_s)
            answered = True
            self._placement.learn(answer.body.table)
        finally:
            elapsed_s = trio.current_time() - begun
            if answered:
                self.hedging.answered(server, size_bytes, elapsed_s)
            else:
                self.hedging.silent(server, size_bytes, elapsed_s, trio.current_time())
        if len(answer.body.codes) != len(wanted) or len(answer.data) != len(wanted):
            raise FsError(Code.PROTOCOL, "not one frame for one block")
        return [_failure(code) if code else frame for code, frame in zip(answer.body.codes, answer.data)]

    def _note(self, server: int, block: bytes, error: FsError) -> None:
        """Log a failure; that a copy is bad only once."""
        if error.code in PASSING:
            log.info("block %s from %s: %s", block.hex(), self._placement.name_of(server), error)
            return
        self.bad += 1
        if (server, block) not in self._named:
            self._named[server, block] = None
            if len(self._named) > NAMED_MAX:
                self._named.popitem(last=False)
            # A server that was away, or lost its disk, lacks blocks by the thousand.
            silent = self._sparing.ask(server) if error.code == Code.MISSING_BLOCK else 0
            if silent is not None:
                name, more = self._placement.name_of(server), and_more(silent)
                log.warning("block %s from %s: %s%s", block.hex(), name, error, more)

    # --- bad copies -------------------------------------------------------------------------------------------------

    def _suspect(self, server: int, block: bytes) -> None:
        """Another server has this block: have this one look at its copy."""
        waiting = self._suspects.get(server)
        if waiting is None:
            waiting = self._suspects[server] = {}
            self._nursery.start_soon(self._tell, server)
        if len(waiting) < SUSPECTS_MAX:  # the others are found by the scrub
            waiting[block] = None

    async def _tell(self, server: int) -> None:
        try:
            await trio.sleep(SUSPECT_PAUSE_S)
        finally:
            blocks = tuple(self._suspects.pop(server))
        try:
            await self._placement.call(server, Suspect(blocks), (), TRY_TIMEOUT_S)
        except FsError as error:
            log.info("%s does not hear of %d bad blocks: %s", self._placement.name_of(server), len(blocks), error)

    def statistics(self) -> dict[str, Any]:
        return {"requests": self.requests, "bad": self.bad, "from_log": self.from_log, **self.hedging.statistics(),
                **self.short.statistics()}


def _failure(code: int) -> FsError:
    if code == Code.STALE_EPOCH:
        return FsError(Code.STALE_EPOCH, "it is in the block's group no more")
    return FsError(Code.CORRUPT_BLOCK if code == Code.CORRUPT_BLOCK else Code.MISSING_BLOCK, "")
