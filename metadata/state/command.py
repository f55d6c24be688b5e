"""What the data of a log entry is: a fixed header and a msgpack body.

Header, 16 bytes, big-endian: format version (1), machine (1), kind (1), zero (1), shard (4), time in ns (8). The
body is the request as it came, so a Submit goes into the log without being encoded again. The time is what the
leader's clock said; apply makes it rise strictly, so it is the only clock of the state.

Two machines live in one group: the root, which registers sessions, chunk servers, placement and epochs, and a shard,
which holds inodes. The tag says whose command it is; the shard's number is 0 until slots move to other groups.

Version 2 is of commands that earlier releases would execute wrongly, because they do not know a part of them: commits
that bring their bytes along, and what moves these. All others are still of version 1.
"""

from __future__ import annotations

import enum
from struct import Struct as Layout
from typing import Optional

import msgspec

from metadata.api import CloseSession, Commit, OpenSession, ServerRecord, Submit
from node.wire.errors import Code, FsError

COMMAND_VERSION = 2
HEADER_BYTES = 16

ROOT = 0
SHARD = 1

_HEADER = Layout(">BBBBIQ")


class CommandKind(enum.IntEnum):
    """Kinds of commands. Numbers are in the log: append, never renumber."""

    FORMAT = 0
    SUBMIT = 1
    OPEN_SESSION = 2
    CLOSE_SESSION = 3
    EXPIRE_SESSION = 4
    REGISTER_SERVER = 5
    SET_SERVER_STATE = 6
    SET_TABLE = 7
    ADVANCE_EPOCH = 8
    RECLAIM = 9
    FENCE_SESSION = 10
    FORGET_BLOCKS = 11
    ADOPT_BLOCKS = 12
    AUDIT = 13
    INTRODUCE_SERVER = 14
    MOVE_OUT = 15


class Format(msgspec.Struct, frozen=True, array_like=True):
    """The first entry of a volume. EXISTS where it is formatted already. Reply: FormatReply."""

    cluster: bytes
    replicas: int
    uid: int = 0  # of the root directory
    gid: int = 0
    mode: int = 0o755


class ExpireSession(msgspec.Struct, frozen=True, array_like=True):
    """End a session that does not answer: from here on it is unknown and its write-backs are refused, and its
    orphans are freed. Idempotent. Reply: CloseSessionReply."""

    session: int


class FenceSession(msgspec.Struct, frozen=True, array_like=True):
    """Break a session's leases without its acknowledgement: raise its fence, so that whatever it still sends under
    the old one is FENCED (rule 1). Reply: FenceReply."""

    session: int


class RegisterServer(msgspec.Struct, frozen=True, array_like=True):
    """Bring a chunk server into the cluster map, or change what it says of itself; the store's ``uuid`` is its
    identity, so a wiped one gets a new id. ``state`` counts for a new server only. Reply: ServerRecord."""

    uuid: bytes
    name: str
    address: str
    host: str
    rack: str
    weight: float
    capacity_bytes: int
    state: str = "serving"
    public_key: str = ""  # empty: as introduced, or none


class IntroduceServer(msgspec.Struct, frozen=True, array_like=True):
    """Have everybody let in a chunk server that will come, by its key (z85 text); an empty key takes that back. What
    was said before of the same name does not count any more. Reply: ServerRecord, with number 0."""

    name: str
    address: str
    public_key: str = ""


class SetServerState(msgspec.Struct, frozen=True, array_like=True):
    """Change a chunk server's state or weight; NOT_FOUND where there is none. ``note`` says why one is out: "lost" or
    "drained"; it goes with any other state. Reply: ServerRecord."""

    server: int
    state: str
    weight: Optional[float] = None
    note: str = ""


class TableItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The ordered servers of one placement group from now on, and which of them are filling or leaving."""

    group: int
    servers: tuple[int, ...]
    filling: tuple[int, ...] = ()
    leaving: tuple[int, ...] = ()


class SetTable(msgspec.Struct, frozen=True, array_like=True):
    """Change the placement table: STALE_EPOCH unless ``base_epoch`` is the table's. ``groups`` sets its length once,
    while it is empty; 0 keeps it. A large table takes several of these. Reply: EpochReply.

    With ``keep`` a row changes only in ways that lose no data: a member goes only where it was leaving, and who was
    filling or leaving and stays may become complete, or leave, but not come back; else INVALID. ``strategy`` not empty:
    how tables are planned from now on."""

    base_epoch: int
    items: tuple[TableItem, ...]
    groups: int = 0
    keep: bool = False
    strategy: str = ""


class AdvanceEpoch(msgspec.Struct, frozen=True, array_like=True):
    """Raise the garbage-collection epoch to ``current`` + 1 where it is ``current``, else leave it.
    Reply: EpochReply."""

    current: int


class Reclaim(msgspec.Struct, frozen=True, array_like=True):
    """Work off at most ``rows`` rows of what nothing reaches any more. Reply: ReclaimReply."""

    rows: int


class ForgetBlocks(msgspec.Struct, frozen=True, array_like=True):
    """These candidates of ``epoch`` or before are deleted on their chunk servers; those referenced again or made
    candidates since are left alone. Reply: BlocksReply."""

    blocks: tuple[bytes, ...]
    epoch: int


class AdoptBlocks(msgspec.Struct, frozen=True, array_like=True):
    """Chunk servers report blocks that were put long ago and never confirmed: those that nothing references become
    candidates now (rule 17). Reply: BlocksReply."""

    blocks: tuple[bytes, ...]


class MoveOut(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of these blocks, which came with commits, are durable on the chunk servers of their placement groups,
    put with ``touch_epoch`` by the table of ``pg_epoch``: the state need not keep them. STALE_EPOCH as for a commit;
    blocks whose group has changed since stay. Reply: BlocksReply."""

    blocks: tuple[bytes, ...]
    touch_epoch: int
    pg_epoch: int


class Audit(msgspec.Struct, frozen=True, array_like=True):
    """Digest the next ``rows`` rows of the state (``state.audit``). ``digest`` is what most members got for the entry
    at index ``about``, empty where that is not known. Reply: AuditReply; a member that got something else stops."""

    rows: int
    about: int = 0
    digest: bytes = b""


class FormatReply(msgspec.Struct, frozen=True, array_like=True):
    cluster: bytes
    replicas: int


class FenceReply(msgspec.Struct, frozen=True, array_like=True):
    fence: int


class EpochReply(msgspec.Struct, frozen=True, array_like=True):
    gc_epoch: int
    pg_epoch: int


class ReclaimReply(msgspec.Struct, frozen=True, array_like=True):
    """``rows`` that were worked off, and whether some are left."""

    rows: int
    more: bool


class BlocksReply(msgspec.Struct, frozen=True, array_like=True):
    """How many of the blocks the command changed."""

    changed: int


class AuditReply(msgspec.Struct, frozen=True, array_like=True):
    """``digest`` of ``rows`` rows as of before the entry at ``index``; ``rounds`` through the whole state so far."""

    index: int
    digest: bytes
    rows: int
    rounds: int


class Nothing(msgspec.Struct, frozen=True, array_like=True):
    """A leader's empty entry was applied."""


BODIES: dict[int, tuple[int, type[msgspec.Struct]]] = {
    CommandKind.FORMAT: (ROOT, Format),
    CommandKind.SUBMIT: (SHARD, Submit),
    CommandKind.OPEN_SESSION: (ROOT, OpenSession),
    CommandKind.CLOSE_SESSION: (ROOT, CloseSession),
    CommandKind.EXPIRE_SESSION: (ROOT, ExpireSession),
    CommandKind.REGISTER_SERVER: (ROOT, RegisterServer),
    CommandKind.SET_SERVER_STATE: (ROOT, SetServerState),
    CommandKind.SET_TABLE: (ROOT, SetTable),
    CommandKind.ADVANCE_EPOCH: (ROOT, AdvanceEpoch),
    CommandKind.RECLAIM: (SHARD, Reclaim),
    CommandKind.FENCE_SESSION: (ROOT, FenceSession),
    CommandKind.FORGET_BLOCKS: (SHARD, ForgetBlocks),
    CommandKind.ADOPT_BLOCKS: (SHARD, AdoptBlocks),
    CommandKind.AUDIT: (ROOT, Audit),
    CommandKind.INTRODUCE_SERVER: (ROOT, IntroduceServer),
    CommandKind.MOVE_OUT: (SHARD, MoveOut),
}
"""Whose command a kind is, and its body."""

_DECODE = {kind: msgspec.msgpack.Decoder(body).decode for kind, (_, body) in BODIES.items()}
_ENCODE = msgspec.msgpack.Encoder().encode


class Command(msgspec.Struct, frozen=True):
    """A decoded command; ``body`` is None where the bytes are not what the kind asks for."""

    kind: CommandKind
    machine: int
    shard: int
    time_ns: int
    body: Optional[msgspec.Struct]


def encode_command(kind: int, time_ns: int, body: bytes | msgspec.Struct, machine: int | None = None) -> bytes:
    """Return an entry's data. ``body`` as bytes must be an encoded struct of this kind (see BODIES), as version 1 had
    it."""
    owner, kind_of_body = BODIES[kind]
    assert machine is None or machine == owner, (kind, machine)
    version = 2 if kind == CommandKind.MOVE_OUT else 1
    if isinstance(body, msgspec.Struct):
        assert type(body) is kind_of_body, (kind, type(body))
        if type(body) is Submit and any([type(op) is Commit and op.data for op in body.ops]):
            version = 2
        body = _ENCODE(body)
    return _HEADER.pack(version, owner, kind, 0, 0, max(time_ns, 0)) + body


def decode_command(data: bytes) -> Command:
    """Decode an entry's data.

    Raises FsError(UNSUPPORTED_VERSION) for a version, kind or machine that this build does not know: members that
    skipped such an entry would differ from those that applied it, so the member has to stop.
    """
    if len(data) < HEADER_BYTES:
        raise FsError(Code.UNSUPPORTED_VERSION, f"an entry of {len(data)} bytes is no command")
    version, machine, kind, _, shard, time_ns = _HEADER.unpack_from(data)
    if not 1 <= version <= COMMAND_VERSION or kind not in BODIES or BODIES[kind][0] != machine or shard != 0:
        raise FsError(
            Code.UNSUPPORTED_VERSION,
            f"the log has a command of version {version}, machine {machine}.{shard}, kind {kind};"
            f" this build knows versions up to {COMMAND_VERSION}",
        )
    try:
        body: Optional[msgspec.Struct] = _DECODE[kind](memoryview(data)[HEADER_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    return Command(CommandKind(kind), machine, shard, time_ns, body)


__all__ = [
    "AdoptBlocks",
    "AdvanceEpoch",
    "Audit",
    "AuditReply",
    "BODIES",
    "BlocksReply",
    "Command",
    "CommandKind",
    "EpochReply",
    "ExpireSession",
    "FenceReply",
    "FenceSession",
    "ForgetBlocks",
    "Format",
    "FormatReply",
    "IntroduceServer",
    "MoveOut",
    "Nothing",
    "ROOT",
    "Reclaim",
    "ReclaimReply",
    "RegisterServer",
    "SHARD",
    "ServerRecord",
    "SetServerState",
    "SetTable",
    "TableItem",
    "decode_command",
    "encode_command",
]
