"""The healer, a duty of the leader: keeps what ``server.healing`` decides going.

Every HEAL_DUTY_S it puts due changes of servers and rows into the log, one at a time, and has the order book say what
every chunk server is told with its next heartbeat. Every HEAL_ASK_S it asks the chunk servers what they hold. Nothing
here waits for a server: one that does not answer was not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from metadata.api import ChangeServer, HealingReply, ServerRecord, SetStrategy, StartScrub
from metadata.placement import STRATEGIES, WEIGHTED
from metadata.server.collector import CallServer, Group
from metadata.server.duty import repeat
from metadata.server.fleet import Fleet
from metadata.server.healing import Healing, Volume
from metadata.state.command import CommandKind, IntroduceServer, SetServerState, SetTable
from metadata.state.machine import Machine
from node.host.logging import get_logger
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.limits import GROUP_DIGESTS_MAX, HEAL_ASK_S, HEAL_CALL_S, HEAL_DUTY_S
from storage.api import GroupDigest, GroupDigests, Order, Report

log = get_logger(__name__)


class Healer:
    """Heals while its member leads. ``fleet`` is the leader's present view of the chunk servers, ``now_s`` its time."""

    def __init__(
        self,
        group: Group,
        machine: Machine,
        fleet: Callable[[], Fleet],
        call: CallServer,
        *,
        now_s: Callable[[], float],
        noout_s: float,
        unused: Callable[[], bool] = lambda: False,
        ask_s: float = HEAL_ASK_S,
    ) -> None:
        self._group = group
        self._machine = machine
        self._fleet = fleet
        self._call = call
        self._now_s = now_s
        self._noout_s = noout_s
        self._unused = unused  # then the whole table is somebody else's to make
        self._ask_s = ask_s
        self._term = -1
        self._asked_s = 0.0
        self._key: object = None  # what the last decision was made of
        self._rounds = 0
        self._reports = 0
        self._nursery: trio.Nursery | None = None
        self.healing = Healing(0, 0.0, noout_s=noout_s)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after things until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await repeat("healing", HEAL_DUTY_S, self._due, self.turn)

    def _due(self) -> bool:
        return self._group.leads and self._machine.formatted

    async def turn(self) -> None:
        """Ask, decide, and have it done. Raises FsError where this member leads no more."""
        if self._term != self._group.term:
            self._begin()
        if self._now_s() - self._asked_s >= self._ask_s:
            await self._ask()
        await self._states()
        await self._rows()

    def _begin(self) -> None:
        self._term = self._group.term
        self.healing = Healing(self._term, self._now_s(), noout_s=self._noout_s, ask_s=self._ask_s)
        self._asked_s = self._now_s() - self._ask_s
        self._key = None

    @property
    def volume(self) -> Volume:
        machine = self._machine
        strategy = machine.strategy or WEIGHTED
        return Volume(machine.replicas, strategy, machine.pg_epoch, machine.groups, machine.servers())

    # --- asking ----------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        """Ask every living chunk server what it holds of each group."""
        fleet, count = self._fleet(), len(self._machine.groups)
        self._asked_s = self._now_s()
        if not count:
            return
        async with trio.open_nursery() as nursery:
            for record in self._machine.servers():
                if fleet.alive(record.server):
                    nursery.start_soon(self._ask_one, record, count)
        self._rounds += 1
        volume = self.volume
        self.healing.compare(volume, self.healing.view(volume, self._fleet(), self._now_s()), self._now_s())

    async def _ask_one(self, record: ServerRecord, count: int) -> None:
        digests: list[GroupDigest] = []
        try:
            for low in range(0, count, GROUP_DIGESTS_MAX):
                wanted = tuple(range(low, min(low + GROUP_DIGESTS_MAX, count)))
                question = GroupDigests(count, wanted, record.server)
                reply: Any = await self._call(record, question, timeout_s=HEAL_CALL_S)
                digests += reply.digests
        except FsError as error:
            log.info("a chunk server does not say what it holds", server=record.server, reason=str(error))
            return
        self.healing.census.asked(record.server, digests)

    # --- deciding --------------------------------------------------------------------------------------------

    async def _states(self) -> None:
        for change in self.healing.transitions(self.volume, self._fleet(), self._now_s()):
            await self._change(change)

    async def _change(self, change: SetServerState) -> None:
        log.warning("chunk server changes its state", server=change.server, state=change.state, note=change.note)
        await self._group.propose(CommandKind.SET_SERVER_STATE, change)

    async def _rows(self) -> None:
        volume = self.volume
        if not volume.groups or self._unused():
            return
        fleet = self._fleet()
        view = self.healing.view(volume, fleet, self._now_s())
        candidates = self.healing.candidates(volume, fleet)
        key = (volume.pg_epoch, volume.servers, sorted(view.silent), candidates, self._reports, self._rounds)
        if key == self._key:
            return
        change = self.healing.table_change(volume, view, candidates)
        if change is not None:
            await self._propose(change)
            volume = self.volume
        else:
            self._key = key
        self.healing.plan_orders(volume, view)

    async def _propose(self, change: SetTable) -> None:
        log.info("rows change", groups=len(change.items), epoch=change.base_epoch + 1)
        await self._group.propose(CommandKind.SET_TABLE, change)

    # --- heartbeats ------------------------------------------------------------------------------------------

    def reported(self, server: int, reports: Sequence[Report]) -> None:
        """Take the reports of a heartbeat."""
        if reports and self._term == self._group.term:
            self._reports += 1
            self.healing.orders.reported(server, reports)

    def orders_for(self, server: int) -> tuple[Order, ...]:
        """What a server is told with the answer to its heartbeat."""
        if self._term != self._group.term:
            return ()
        return self.healing.orders.orders_for(server, len(self._machine.groups))

    # --- commands --------------------------------------------------------------------------------------------

    def handle(self, call: Call) -> None:
        """Answer GetHealing, StartScrub, ChangeServer and SetStrategy."""
        self._group.check()
        if self._nursery is None or self._term != self._group.term or not self._machine.formatted:
            raise FsError(Code.RETRY, "the leader has only just begun")
        if isinstance(call.request, ChangeServer):
            self._nursery.start_soon(self._change_server, call, call.request)
            return
        if isinstance(call.request, SetStrategy):
            self._nursery.start_soon(self._set_strategy, call, call.request.strategy)
            return
        if isinstance(call.request, StartScrub):
            self.healing.orders.scrub(call.request.bytes_per_s, True)
        call.reply(self.progress())

    async def _change_server(self, call: Call, request: ChangeServer) -> None:
        try:
            if request.action == "introduce":
                call.reply(await self._introduce(request))
                return
            change = self.healing.asked_for(request.action, request.name, self.volume, self._fleet())
            if change is not None:
                await self._change(change)
            record = self.healing.named(request.name, self.volume)
            if request.action in ("remove", "lost") and any(
                known.name == request.name for known in self._machine.introduced
            ):
                taken_back = IntroduceServer(request.name, record.address)
                await self._group.propose(CommandKind.INTRODUCE_SERVER, taken_back)
            call.reply(record)
        except FsError as error:
            call.fail(error)

    async def _set_strategy(self, call: Call, strategy: str) -> None:
        try:
            if strategy not in STRATEGIES:
                raise FsError(Code.INVALID, f"{strategy[:64]!r} is no placement strategy")
            while self._machine.strategy != strategy:
                change = SetTable(self._machine.pg_epoch, (), strategy=strategy)
                try:
                    await self._group.propose(CommandKind.SET_TABLE, change)
                except FsError as error:
                    if error.code is not Code.STALE_EPOCH:  # rows changed meanwhile
                        raise
            log.info("placement strategy", strategy=strategy)
            call.reply(self.progress())
        except FsError as error:
            call.fail(error)

    async def _introduce(self, request: ChangeServer) -> ServerRecord:
        """Have a chunk server let in that is about to come."""
        if not request.public_key or not request.address:
            raise FsError(Code.INVALID, "a chunk server is introduced with its address and its key")
        there = {known.name: known.address for known in self._machine.introduced}
        there |= {known.name: known.address for known in self._machine.servers() if known.state != "out"}
        for name, address in there.items():
            if address == request.address and name != request.name:
                raise FsError(Code.EXISTS, f"{name} answers at {address} already")
        told = IntroduceServer(request.name, request.address, request.public_key)
        await self._group.propose(CommandKind.INTRODUCE_SERVER, told)
        log.info("chunk server introduced", name=request.name, address=request.address)
        return ServerRecord(
            0, b"", request.name, request.address, "", "", 1.0, 0, "joining", public_key=request.public_key
        )

    def progress(self) -> HealingReply:
        """How far everything is."""
        volume, fleet, now_s = self.volume, self._fleet(), self._now_s()
        view = self.healing.view(volume, fleet, now_s)
        records = fleet.records(volume.servers)
        return self.healing.progress(volume, view, self.healing.candidates(volume, fleet), records)

    # --- for people ------------------------------------------------------------------------------------------

    def under_replicated(self) -> int:
        """Copies of blocks that are missing, as far as is known."""
        volume = self.volume
        return self.healing.under_replicated(volume, self.healing.view(volume, self._fleet(), self._now_s()))

    def statistics(self) -> dict[str, float]:
        """Totals of this leadership."""
        book = self.healing.orders
        counts: dict[str, float] = {f"heal_{name}": value for name, value in self.healing.counts.items()}
        return {**counts, "heal_under_way": book.under_way(), "heal_pulled": book.pulled}
