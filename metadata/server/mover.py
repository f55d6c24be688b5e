"""The mover, a duty of the leader: blocks that came with log entries go on to chunk servers.

It is a writer like any mount: it puts a block on the members of its placement group, and when so many have it durably
as a commit would ask for, an entry lets the state forget the bytes. That entry is held to what a commit is held to:
the touch must be young enough, the group the same (rules 10, 15, 16). So it does not matter who leads meanwhile, which
message is late, or how often a block is put. It also does not matter whose block it is, or whether he lives.

It goes through the blocks by their names, once each LOG_MOVE_S. What is overwritten sooner never moves. What cannot be
put now, because its servers are away or full, is left where it is until the next time round, and holds up nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from metadata.api import ServerRecord
from metadata.placement import group_of
from metadata.server.collector import Group
from metadata.server.duty import repeat
from metadata.server.fleet import GONE, Fleet
from metadata.state.command import CommandKind, MoveOut
from metadata.state.machine import Machine
from node.host.logging import get_logger
from node.wire.errors import FsError
from node.wire.limits import KIB, LOG_MOVE_BLOCKS, LOG_MOVE_BYTES, LOG_MOVE_CALL_S, LOG_MOVE_S
from node.wire.types import Buffer
from storage.api import BlockInfo, Put, PutReply, encode_block

log = get_logger(__name__)

ENCODE_BYTES = 64 * KIB  # encoded without letting others run

Plain = Sequence[tuple[bytes, bytes]]


class CallServer(Protocol):
    """Ask a chunk server; raises FsError."""

    async def __call__(
        self, record: ServerRecord, request: Any, data: Sequence[Buffer] = (), *, timeout_s: float
    ) -> Any: ...


class Mover:
    """Moves while its member leads. ``fleet`` gives the leader's present view of the chunk servers."""

    def __init__(self, group: Group, machine: Machine, fleet: Callable[[], Fleet], call: CallServer) -> None:
        self._group = group
        self._machine = machine
        self._fleet = fleet
        self._call = call
        self._stuck = 0
        self._totals = {"blocks": 0, "bytes": 0, "requests": 0}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go round once each LOG_MOVE_S while this member leads, until cancelled."""
        task_status.started()
        await repeat("moving data out of the log", LOG_MOVE_S, self._due, self.round)

    def _due(self) -> bool:
        return self._group.leads and self._machine.logged_blocks > 0

    async def round(self) -> int:
        """Move every block that is there and can be moved; return how many. Raises FsError where this member leads no
        more."""
        after, moved, stuck = b"", 0, 0
        while page := self._machine.logged(after, LOG_MOVE_BLOCKS, LOG_MOVE_BYTES):
            after = page[-1][0]
            done = await self._move(page)
            moved, stuck = moved + done, stuck + len(page) - done
        if stuck and not self._stuck:
            log.warning("data in the log cannot be moved to chunk servers now", blocks=stuck)
        self._stuck = stuck
        return moved

    async def _move(self, page: Plain) -> int:
        """Put blocks, then have those forgotten that are durable; return how many these were."""
        machine = self._machine
        gc_epoch, pg_epoch = machine.gc_epoch, machine.pg_epoch
        wanted: dict[int, list[int]] = {}
        for index, (block, _) in enumerate(page):
            for server in self._writers(block):
                wanted.setdefault(server, []).append(index)
        frames = await _encode(page)
        copies = [0] * len(page)
        records = {record.server: record for record in machine.servers()}

        async def put(server: int, indices: Sequence[int]) -> None:
            blocks = tuple([BlockInfo(page[index][0], len(page[index][1])) for index in indices])
            codes = await self._put(records[server], Put(blocks, gc_epoch, pg_epoch), [frames[i] for i in indices])
            for index, code in zip(indices, codes):
                copies[index] += not code

        async with trio.open_nursery() as nursery:
            for server, indices in wanted.items():
                nursery.start_soon(put, server, indices)
        enough = machine.replicas // 2 + 1
        durable = tuple([block for (block, _), count in zip(page, copies) if count >= enough])
        if durable:
            before = machine.logged_blocks
            await self._group.propose(CommandKind.MOVE_OUT, MoveOut(durable, gc_epoch, pg_epoch))
            self._totals["blocks"] += len(durable)
            self._totals["bytes"] += sum([len(plain) for (_, plain), n in zip(page, copies) if n >= enough])
            log.debug("data moved", blocks=len(durable), before=before, left=machine.logged_blocks)
        return len(durable)

    def _writers(self, block: bytes) -> Sequence[int]:
        """The servers whose durable copies of a block count, as far as they can be asked; none where these are too
        few."""
        groups = self._machine.groups
        if not groups:
            return ()
        row = groups[group_of(block, len(groups))]
        fleet = self._fleet()
        alive = [server for server in row.servers if server not in row.leaving and fleet.alive(server)]
        return alive if len(alive) > self._machine.replicas // 2 else ()

    async def _put(self, record: ServerRecord, request: Put, frames: Sequence[Buffer]) -> Sequence[int]:
        """Put on one server; return the code of each block, none where it did not answer."""
        if record.state in GONE:
            return ()
        self._totals["requests"] += 1
        try:
            reply: PutReply = await self._call(record, request, frames, timeout_s=LOG_MOVE_CALL_S)
        except FsError as error:
            log.info("a chunk server does not take data from the log", server=record.server, reason=str(error))
            return ()
        return reply.codes if len(reply.codes) == len(request.blocks) else ()

    def statistics(self) -> dict[str, float]:
        """Totals of this member's rounds."""
        return {**{f"moved_{name}": value for name, value in self._totals.items()}, "moving_stuck": self._stuck}


async def _encode(page: Plain) -> list[Buffer]:
    """Encode blocks; others run in between."""
    frames: list[Buffer] = []
    size = 0
    for _, plain in page:
        frames.append(encode_block(plain)[1])
        size += len(plain)
        if size >= ENCODE_BYTES:
            await trio.lowlevel.checkpoint()
            size = 0
    return frames
