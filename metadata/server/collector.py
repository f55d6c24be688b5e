"""The garbage collector, a duty of the leader: what nothing references is deleted on the chunk servers.

A round has three steps, one after the other:

1. *Sweep* (rule 17). Each chunk server lists what was put, touched or brought back two epochs ago or earlier and not
   listed before. Blocks that the volume does not know become candidates. The answer is acted on only after a read
   barrier, so that no deposed leader confirms anything.
2. *Delete*. Candidates two epochs old go to every server of their placement group that is not out, with the condition
   that nobody touched them since. Those that all of these servers have deleted are forgotten, by an entry that looks
   again whether they are still candidates. A block that one of them kept stays a candidate and is tried again.
3. *Advance* the epoch, only where something waits for it.

**Why a delete is safe, however late it arrives.** It is built from a state with epoch g in which the block has no
reference, and carries g - 2. Whoever references the block in a later state has to have touched it in epoch g - 1 or
later on a write quorum, else the commit is refused; then the condition does not hold there. This does not ask who leads
now, nor which candidate's epoch it was (that is at most g - 2), so leaders may change in the middle, two may believe
that they lead, and any message may come twice. Clones need a living reference (rule 20), so a commit came first. A
commit that brings the bytes along touches nothing; these are nobody's to delete, and go by an entry that is refused
like a commit (``mover``).

**Why nothing stays.** A touch that brings a block back after its deletion, by somebody who then does not commit, is a
new record on that server, so the next sweep lists it. Sweep and deletion never overlap: a block that the sweep found to
be a candidate is deleted, or kept as a candidate, after that. Copies that repair makes are listed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Optional, Protocol

import msgspec
import trio

from metadata.api import GarbageReply, ServerRecord
from metadata.placement import group_of
from metadata.server.duty import repeat
from metadata.server.fleet import GONE, Fleet
from metadata.server.node import Node
from metadata.state.command import AdoptBlocks, AdvanceEpoch, CommandKind, ForgetBlocks
from metadata.state.machine import Machine
from node.host.logging import get_logger
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.limits import GC_CALL_S, GC_COUNT_MAX, GC_PAGE_BLOCKS, GC_PAGES_PER_ROUND_MAX, PUT_BLOCKS_MAX
from storage.api import Delete, ListUnconfirmed, Unconfirmed

log = get_logger(__name__)

DISTANCE = 2  # epochs between the loss of the last reference and the deletion


class Group(Protocol):
    """What the collector needs of the group that it is a leader of."""

    @property
    def leads(self) -> bool:
        """Whether this member leads, and holds what earlier leaders acknowledged."""

    @property
    def term(self) -> int:
        """Of the present leadership."""

    def check(self) -> None:
        """Raise NOT_LEADER, with a hint, unless it ``leads``."""

    async def propose(self, kind: CommandKind, body: msgspec.Struct) -> None:
        """Return when an entry is applied. Raises FsError: then it may or may not come to be."""

    async def barrier(self) -> None:
        """Return when applied state is as new as anything acknowledged before. Raises FsError: another one leads."""


CallServer = Callable[..., Any]  # (record, request, timeout_s=) -> reply body


class Round(NamedTuple):
    """What one round did."""

    listed: int = 0
    adopted: int = 0
    deleted: int = 0  # blocks that were forgotten because every server had deleted them
    kept: int = 0  # touched again in time, or not decided because a server did not answer
    advanced: bool = False


class Collector:
    """Collects while its member leads. ``fleet`` gives the leader's present view of the chunk servers."""

    def __init__(
        self, group: Group, machine: Machine, fleet: Callable[[], Fleet], call: CallServer, *, interval_s: float
    ) -> None:
        self._group = group
        self._machine = machine
        self._fleet = fleet
        self._call = call
        self._interval_s = interval_s
        self._after: tuple[int, bytes] = (0, b"")  # candidates up to here were sent to whoever could be asked
        self._able: object = None  # under which circumstances they were
        self._again = False  # some are to be tried again in a later epoch
        self._left_bytes: dict[int, int] = {}  # unconfirmed on each server after the last sweep
        self._turn = trio.Lock()
        self._nursery: Optional[trio.Nursery] = None
        self._last = Round()
        self._totals = {"rounds": 0, "listed": 0, "adopted": 0, "deleted": 0, "kept": 0, "advanced": 0}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take a round every interval while this member leads, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await repeat("garbage collection", self._interval_s, self._due, self.round)

    def _due(self) -> bool:
        return self._group.leads and self._machine.formatted

    def handle(self, call: Call) -> None:
        """Answer CollectGarbage, when the round that it asks for is done."""
        self._group.check()
        if self._nursery is None or not self._machine.formatted:
            raise FsError(Code.RETRY, "the volume is not formatted yet")
        self._nursery.start_soon(self._answer, call)

    async def _answer(self, call: Call) -> None:
        try:
            call.reply(await self.collect(call.request.advance))
        except FsError as error:
            call.fail(error)
        except Exception:
            log.exception("garbage collection failed")
            call.fail(FsError(Code.IO, "the garbage collection failed unexpectedly"))

    async def round(self) -> Round:
        """Sweep, delete, advance. Raises FsError where this member leads no more."""
        async with self._turn:
            listed, adopted = await self._sweep()
            deleted, kept = await self._delete()
            advanced = await self._advance()
            self._last = done = Round(listed, adopted, deleted, kept, advanced)
        self._totals["rounds"] += 1
        for name in ("listed", "adopted", "deleted", "kept", "advanced"):
            self._totals[name] += int(getattr(done, name))
        if deleted:
            log.info("garbage collected", blocks=deleted, epoch=self._machine.gc_epoch, kept=kept)
        return done

    # --- sweep -----------------------------------------------------------------------------------------------

    async def _sweep(self) -> tuple[int, int]:
        fleet = self._fleet()
        self._left_bytes = {}
        listed = adopted = 0
        for record in self._machine.servers():
            beat = fleet.beats.get(record.server)
            if record.state in GONE or beat is None or not beat.alive or not beat.status.unconfirmed_bytes:
                continue
            try:
                more_listed, more_adopted = await self._sweep_server(record)
            except FsError as error:
                if not self._group.leads:
                    raise
                log.info("a chunk server does not list its blocks", server=record.server, reason=str(error))
                self._left_bytes[record.server] = beat.status.unconfirmed_bytes
                continue
            listed, adopted = listed + more_listed, adopted + more_adopted
        return listed, adopted

    async def _sweep_server(self, record: ServerRecord) -> tuple[int, int]:
        epoch = max(0, self._machine.gc_epoch - DISTANCE)
        listed = adopted = 0
        place = (0, 0)
        for _ in range(GC_PAGES_PER_ROUND_MAX):
            request = ListUnconfirmed(record.uuid, epoch, GC_PAGE_BLOCKS, place)
            reply: Unconfirmed = await self._call(record, request, timeout_s=GC_CALL_S)
            self._left_bytes[record.server] = reply.left_bytes
            if not reply.blocks and not reply.more and reply.place == place:
                break  # all that was listed is confirmed
            await self._group.barrier()
            unknown = tuple([block for block in reply.blocks if not self._machine.knows(block)])
            if unknown:
                await self._group.propose(CommandKind.ADOPT_BLOCKS, AdoptBlocks(unknown))
            listed, adopted = listed + len(reply.blocks), adopted + len(unknown)
            place = reply.place
        return listed, adopted

    # --- delete ----------------------------------------------------------------------------------------------

    async def _delete(self) -> tuple[int, int]:
        deleted = kept = 0
        able = self._circumstances()
        if self._again or able != self._able:
            self._after, self._again, self._able = (0, b""), False, able
        for _ in range(GC_PAGES_PER_ROUND_MAX):
            due = self._machine.gc_epoch - DISTANCE
            page = self._machine.candidates(due, self._after, GC_PAGE_BLOCKS) if due > 0 else []
            if not page:
                break
            done, stays = await self._delete_page([block for _, block in page], due)
            deleted, kept = deleted + done, kept + stays
            self._after = page[-1]
        return deleted, kept

    def _circumstances(self) -> object:
        """What must change before servers that could not be asked are worth another attempt."""
        fleet, machine = self._fleet(), self._machine
        alive = tuple([(s.server, s.state, fleet.alive(s.server)) for s in machine.servers()])
        return self._group.term, machine.pg_epoch, alive

    async def _delete_page(self, blocks: Sequence[bytes], epoch: int) -> tuple[int, int]:
        """Have candidates deleted everywhere, then forget them; return how many were, and how many stay."""
        machine, pg_epoch = self._machine, self._machine.pg_epoch
        records = {record.server: record for record in machine.servers() if record.state not in GONE}
        wanted: dict[int, list[bytes]] = {}
        missing: dict[bytes, int] = {}  # how many servers have not deleted it yet
        for block in blocks:
            members = [server for server in self._row(block) if server in records]
            missing[block] = len(members)
            for server in members:
                wanted.setdefault(server, []).append(block)
        async with trio.open_nursery() as nursery:
            for server, theirs in wanted.items():
                nursery.start_soon(self._delete_on, records[server], theirs, epoch, pg_epoch, missing)
        gone = tuple([block for block in blocks if missing[block] == 0 and self._row(block)])
        if machine.pg_epoch != pg_epoch:
            gone = ()  # there may be servers by now that were not asked
            self._again = True
        if gone:
            await self._group.propose(CommandKind.FORGET_BLOCKS, ForgetBlocks(gone, epoch))
        return len(gone), len(blocks) - len(gone)

    def _row(self, block: bytes) -> Iterable[int]:
        table = self._machine.table
        return table[group_of(block, len(table))] if table else ()

    async def _delete_on(
        self, record: ServerRecord, blocks: Sequence[bytes], epoch: int, pg_epoch: int, missing: dict[bytes, int]
    ) -> None:
        if not self._fleet().alive(record.server):
            return  # asked again when it is back
        try:
            for at in range(0, len(blocks), PUT_BLOCKS_MAX):
                part = tuple(blocks[at : at + PUT_BLOCKS_MAX])
                reply = await self._call(record, Delete(part, epoch, pg_epoch), timeout_s=GC_CALL_S)
                kept = set(reply.kept)
                self._again = self._again or bool(kept)
                for index, block in enumerate(part):
                    if index not in kept:
                        missing[block] -= 1
        except FsError as error:
            self._again = True
            log.info("a chunk server does not delete", server=record.server, reason=str(error))

    # --- advance ---------------------------------------------------------------------------------------------

    async def _advance(self) -> bool:
        """Advance the epoch where a younger candidate, a kept one, or an unconfirmed block waits for it."""
        machine = self._machine
        epoch = machine.gc_epoch
        if not (self._again or any(self._left_bytes.values()) or self._young(epoch)):
            return False
        await self._group.propose(CommandKind.ADVANCE_EPOCH, AdvanceEpoch(epoch))
        return True

    def _young(self, epoch: int) -> bool:
        first_young = max(0, epoch - DISTANCE + 1)
        return bool(self._machine.candidates(epoch, (first_young, b""), 1))

    # --- for people ------------------------------------------------------------------------------------------

    async def collect(self, advance: bool) -> GarbageReply:
        """Take a round now where asked to; return how things are."""
        self._group.check()
        done = await self.round() if advance else Round()
        fleet, epoch = self._fleet(), self._machine.gc_epoch
        candidates = len(self._machine.candidates(epoch, (0, b""), GC_COUNT_MAX + 1))
        due = len(self._machine.candidates(epoch - DISTANCE, (0, b""), GC_COUNT_MAX + 1)) if epoch > DISTANCE else 0
        statuses = [beat.status for beat in fleet.beats.values()]
        return GarbageReply(
            gc_epoch=epoch,
            candidates=min(candidates, GC_COUNT_MAX),
            due=min(due, GC_COUNT_MAX),
            more_candidates=candidates > GC_COUNT_MAX,
            quarantined_bytes=sum(status.quarantined_bytes for status in statuses),
            unconfirmed_bytes=sum(status.unconfirmed_bytes for status in statuses),
            deleted=done.deleted,
            kept=done.kept,
            adopted=done.adopted,
            waiting=self._again or bool(candidates) or any(self._left_bytes.values()),
        )

    def statistics(self) -> dict[str, float]:
        """Totals of this member's rounds."""
        return {f"gc_{name}": value for name, value in self._totals.items()}


class NodeGroup:
    """The group as a node shows it."""

    def __init__(self, node: Node, encode: Callable[[CommandKind, msgspec.Struct], bytes]) -> None:
        self._node = node
        self._encode = encode

    @property
    def leads(self) -> bool:
        return self._node.settled

    @property
    def term(self) -> int:
        return self._node.core.term

    def check(self) -> None:
        if not self._node.settled:
            raise self._node.not_leader()

    async def propose(self, kind: CommandKind, body: msgspec.Struct) -> None:
        done = trio.Event()
        found: list[Optional[FsError]] = []

        def told(outcome: Any, error: Optional[FsError]) -> None:
            reply = outcome.reply if outcome is not None else error
            found.append(reply if isinstance(reply, FsError) else None)
            done.set()

        self._node.propose(self._encode(kind, body), told)
        await done.wait()
        if found[0] is not None:
            raise found[0]

    async def barrier(self) -> None:
        if self._node.readable_now:
            return
        done = trio.Event()
        found: list[Optional[FsError]] = []

        def told(error: Optional[FsError]) -> None:
            found.append(error)
            done.set()

        self._node.read(told)
        await done.wait()
        if found[0] is not None:
            raise found[0]
