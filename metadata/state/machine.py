"""The deterministic state machine of the metadata service: entries of the log in, state and replies out.

Members that apply the same entries have the same tables, byte for byte. So nothing here reads a clock, a random
number or anything but the entry and the tables; what is cached can be dropped at any time between entries.

An entry never half-applies in memory: operations check everything before they write. Whoever owns the tables makes
what was put durable, together with the index, whenever it likes; after a crash entries are applied again from there.

An exception out of ``apply`` other than UNSUPPORTED_VERSION is a bug, and going on would make members differ. Both
end the process, and so does STATE_DIFFERS. Whatever a client can send is answered by FsError as the reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import blake3
import msgspec

from metadata.api import Query, Result, ServerRecord, Submit
from metadata.state import keys
from metadata.state.audit import Auditor
from metadata.state.command import ROOT, Audit, Command, FenceSession, Format, FormatReply, Nothing, decode_command
from metadata.state.query import Queries
from metadata.state.records import Applied, Audited, Group, Introduced, Session, decode_applied, encode
from metadata.state.root import UUID_BYTES, Root, server_record
from metadata.state.sessions import Sessions
from metadata.state.shard import Shard
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import NAME_BYTES_MAX, ORPHANS_PAGE_MAX
from node.wire.types import slot_of

ENTRY_TIME_MAX_NS = 1 << 62  # the year 2116: a leader's clock beyond is wrong, and must not use up the time there is
_DIGEST_PAGE = 1024


@dataclass(slots=True)
class Outcome:
    """What an entry led to. ``reply`` answers whoever proposed it; the rest is for the leader's memory."""

    reply: msgspec.Struct | FsError
    encoded: bytes = b""  # the reply as msgpack where the machine had to encode it anyway: send it as it is
    orphaned: dict[int, list[int]] = field(default_factory=dict)  # session -> removed inodes that it may hold
    freed: list[int] = field(default_factory=list)  # inodes that ceased to exist
    ended: list[int] = field(default_factory=list)  # sessions that ceased to exist
    granted: list[tuple[int, int]] = field(default_factory=list)  # (session, ticket): their lock's turn has come
    fenced: list[int] = field(default_factory=list)  # sessions whose leases are broken from here on
    touched: tuple[int, ...] = ()  # inodes whose attributes, data or names changed, the freed ones included
    session: int = 0  # whose Submit it was
    sequence: int = 0
    journal: bool = False
    settled: tuple[int, ...] = ()  # as in the Submit


class Machine:
    """The root machine and shard 0 over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._applied = Applied()
        self._sessions = Sessions(tables)
        self._root = Root(tables, self._sessions)
        self._shard = Shard(tables, self._sessions)
        self._queries = Queries(tables, self._shard)
        self._auditor = Auditor(tables)
        self._read_applied()

    def reload(self) -> None:
        """Forget everything in memory: the tables were replaced, by a snapshot or by dropping what was uncommitted."""
        self._sessions.reload()
        self._root.reload()
        self._shard.reload()
        self._auditor.reload()
        self._read_applied()

    def _read_applied(self) -> None:
        value = self._tables.get(keys.APPLIED_KEY)
        self._applied = Applied() if value is None else decode_applied(value)

    # --- applying ---------------------------------------------------------------------------------------------

    def apply(self, index: int, term: int, data: bytes) -> Outcome:
        """Apply the entry after the last applied one; any other index is an AssertionError.

        ``data`` is an encoded command, or empty for an entry that changes nothing here: a leader's first, or a change
        of membership. Raises FsError, before anything changed, where the member has to stop: UNSUPPORTED_VERSION for a
        command that this build does not know, STATE_DIFFERS where most members hold another state.
        """
        applied = self._applied
        assert index == applied.index + 1, f"entry {index} after {applied.index}"
        if not data:
            self._finish(Applied(index, term, applied.time_ns))
            return Outcome(Nothing())
        command = decode_command(data)
        time_ns = max(min(command.time_ns, ENTRY_TIME_MAX_NS), applied.time_ns + 1)
        turn = Turn(time_ns, 0, self._sessions.live, self._root.record.gc_epoch, self._root.groups)
        encoded, sequence, journal = b"", 0, False
        settled: tuple[int, ...] = ()
        reply: msgspec.Struct | FsError
        try:
            if type(command.body) is Submit:
                turn.session, sequence = command.body.session, command.body.sequence
                journal, settled = command.body.journal, command.body.settled
                reply, encoded = self._shard.submit(command.body, turn)
            elif type(command.body) is Audit:
                reply = self._auditor.apply(command.body, index)
            else:
                reply = self._execute(command, turn)
        except FsError as error:
            if error.code is Code.STATE_DIFFERS:
                raise
            reply = error
        self._drop_locks(command.body, turn)
        touched = (*self._shard.inodes.changed(), *turn.freed)
        self._finish(Applied(index, term, time_ns))
        return Outcome(
            reply,
            encoded,
            turn.orphaned,
            turn.freed,
            turn.ended,
            turn.granted,
            turn.fenced,
            touched,
            turn.session,
            sequence,
            journal,
            settled,
        )

    def _drop_locks(self, body: msgspec.Struct | None, turn: Turn) -> None:
        """Locks end with the session, with its fence, and with the inode."""
        locks = self._shard.locks
        for session in (*turn.ended, *([body.session] if isinstance(body, FenceSession) else ())):
            locks.end(session, turn)
        for ino in turn.freed:
            locks.forget(ino)

    def _execute(self, command: Command, turn: Turn) -> msgspec.Struct:
        body = command.body
        if body is None:
            raise FsError(Code.PROTOCOL, f"the body of a {command.kind.name} is malformed")
        if isinstance(body, Format):
            return self._format(body, turn)
        if not self.formatted:
            raise FsError(Code.INVALID, "the volume is not formatted")
        part = self._root if command.machine == ROOT else self._shard
        return part.handlers[type(body)](body, turn)

    def _format(self, body: Format, turn: Turn) -> FormatReply:
        self._root.check_format(body)
        self._shard.check_format(body)
        self._shard.format(body, turn)
        return self._root.format(body)

    def _finish(self, applied: Applied) -> None:
        self._sessions.flush()
        self._shard.flush()
        self._applied = applied
        self._tables.put(keys.APPLIED_KEY, encode(applied))

    # --- reading ----------------------------------------------------------------------------------------------

    def query(self, queries: Sequence[Query]) -> tuple[Result, ...]:
        """Answer queries from the state as it is; changes nothing. Failed results stand for what a query cannot get.
        Raises FsError(TOO_BIG) for too many. StatVolume's capacities are 0: the leader fills them in."""
        return self._queries.answer(queries)

    @property
    def applied(self) -> int:
        """Index of the last applied entry; 0 in an empty state."""
        return self._applied.index

    @property
    def term(self) -> int:
        """Term of the last applied entry."""
        return self._applied.term

    @property
    def time_ns(self) -> int:
        """Time of the last applied entry."""
        return self._applied.time_ns

    @property
    def audited(self) -> Audited:
        """The last slice of the state that was digested."""
        return self._auditor.last

    @property
    def formatted(self) -> bool:
        """Whether a FORMAT was applied."""
        return self._root.record.format != 0

    @property
    def cluster(self) -> bytes:
        """The cluster id that FORMAT gave."""
        return self._root.record.cluster

    @property
    def replicas(self) -> int:
        """How many copies of a block there shall be."""
        return self._root.record.replicas

    @property
    def gc_epoch(self) -> int:
        """The garbage-collection epoch."""
        return self._root.record.gc_epoch

    @property
    def pg_epoch(self) -> int:
        """The epoch of the placement table; 0 while it is empty."""
        return self._root.record.pg_epoch

    @property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """The placement table: the ordered servers of each placement group."""
        return self._root.table

    @property
    def groups(self) -> Sequence[Group]:
        """The placement groups as they are; not to be changed."""
        return self._root.groups

    @property
    def introduced(self) -> tuple[Introduced, ...]:
        """Chunk servers whose keys came after the configuration. Another object when something changed."""
        return self._root.introduced

    @property
    def strategy(self) -> str:
        """How placement tables are planned; empty: the usual way."""
        return self._root.record.strategy

    @property
    def files(self) -> int:
        """Inodes that exist, removed ones that somebody holds included."""
        return self._shard.inodes.files

    @property
    def file_bytes(self) -> int:
        """Logical bytes that the extents of all inodes cover."""
        return self._shard.inodes.bytes

    def child(self, parent: int, name: bytes) -> int:
        """What a name means; 0: nothing."""
        entry = self._shard.names.entry(parent, name) if 0 < len(name) <= NAME_BYTES_MAX else None
        return 0 if entry is None else entry[0]

    def locked(self, inos: Iterable[int]) -> tuple[int, ...]:
        """Those of these inodes on which anybody holds or wants a lock."""
        return self._shard.locks.among(inos)

    def group_of(self, ino: int) -> int:
        """The group that owns an inode number, by the slot table."""
        return self._root.group_of_slot(slot_of(ino))

    def sessions(self) -> tuple[Session, ...]:
        """All registered sessions."""
        return tuple(self._sessions.by_id.values())

    def session(self, ident: int) -> Session | None:
        """A registered session, or None."""
        return self._sessions.by_id.get(ident)

    def servers(self) -> tuple[ServerRecord, ...]:
        """All chunk servers, without what only the leader knows of them."""
        return tuple([server_record(server) for server in self._root.servers.values()])

    def server_of(self, uuid: bytes) -> ServerRecord | None:
        """The chunk server whose store has this identity, or None."""
        value = self._tables.get(keys.server_uuid(uuid)) if len(uuid) == UUID_BYTES else None
        return None if value is None else server_record(self._root.servers[keys.NUMBER.unpack(value)[0]])

    def orphans_of(self, session: int, after: int = 0, limit: int = ORPHANS_PAGE_MAX) -> tuple[int, ...]:
        """Removed inodes above ``after`` that the session may hold, in order, at most ``limit`` (>= 1)."""
        assert limit >= 1
        if session not in self._sessions.by_id:
            return ()
        rows = self._tables.range(*keys.of_session(keys.ORPHAN, session, after), limit)
        return tuple([keys.second(key) for key, _ in rows])

    def reclaim_pending(self) -> bool:
        """Whether a RECLAIM has something to do."""
        return self._shard.jobs.pending()

    def references(self, block: bytes) -> int:
        """How many extents name a block."""
        return self._shard.blocks.count(block)

    def knows(self, block: bytes) -> bool:
        """Whether a block is referenced or a candidate for collection."""
        return self._shard.blocks.knows(block)

    def blocks(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Every block that is known, with its references, in the order of names; at most ``limit`` above ``after``."""
        return self._shard.blocks.listed(after, limit)

    def blocks_among(self, blocks: Iterable[bytes]) -> list[tuple[bytes, int]]:
        """Those of these blocks that are known, each with its references."""
        return self._shard.blocks.among(blocks)

    def candidates(self, epoch: int, after: tuple[int, bytes] = (0, b""), limit: int = 1024) -> list[tuple[int, bytes]]:
        """Unreferenced blocks since ``epoch`` or before as (epoch, block), in order, greater than ``after``."""
        return self._shard.blocks.candidates(epoch, after, limit)

    @property
    def logged_room_bytes(self) -> int:
        """How much more of what comes with log entries the state may hold."""
        return self._shard.logged.room_bytes

    @property
    def logged_blocks(self) -> int:
        """How many blocks are in the state with their bytes."""
        return self._shard.logged.blocks

    def logged_among(self, blocks: Iterable[bytes]) -> tuple[bytes, ...]:
        """Those of these blocks whose bytes are in the state."""
        return tuple([block for block in blocks if self._shard.logged.get(block) is not None])

    def logged(self, after: bytes, limit: int, bytes_max: int) -> list[tuple[bytes, bytes]]:
        """Blocks named above ``after`` that are in the state, with their bytes (``state.logged``)."""
        return self._shard.logged.page(after, limit, bytes_max)

    def digest(self) -> bytes:
        """Return 32 bytes that are equal exactly where the whole state is. Reads all of it."""
        return digest(self._tables)

    def statistics(self) -> dict[str, int]:
        """Counters for people and metrics."""
        return {
            "applied": self.applied,
            "files": self.files,
            "file_bytes": self.file_bytes,
            "sessions": len(self._sessions.by_id),
            "servers": len(self._root.servers),
            "logged_blocks": self.logged_blocks,
            **self._shard.inodes.statistics(),
        }


def digest(tables: Tables) -> bytes:
    """The digest of all rows of ``tables``, in order."""
    hasher = blake3.blake3()
    low, high = b"\0", b"\xff" * 8
    while True:
        page = tables.range(low, high, _DIGEST_PAGE)
        hasher.update(b"".join([encode(pair) for pair in page]))
        if len(page) < _DIGEST_PAGE:
            return hasher.digest()
        low = page[-1][0] + b"\0"
