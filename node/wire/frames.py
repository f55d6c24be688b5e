"""The envelope of every message: one fixed header, the encoded body behind it, payload frames of their own.

A message is a list of frames. The first is header and body together (a small request is one frame); each further
frame is payload, passed on without a copy. Everything here is checked before anything is decoded: whatever bytes come
in, the outcome is a ``Header`` or a ``ProtocolError``.

The layout of the header is the same in all protocol versions, so that a refusal can be understood by any peer.
Little-endian::

    magic 4s | version u16 | kind u8 | flags u8 | method u16 | parts u16 | group u32 | remaining_ms u32 | request u64 |
    cluster 16s
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from node.wire.errors import Code, FsError, ProtocolError
from node.wire.limits import BODY_BYTES_MAX, DEADLINE_S_MAX, FRAME_PARTS_MAX, HEADER_BYTES_MAX, MESSAGE_BYTES_MAX
from node.wire.types import Buffer

MAGIC = b"fsrp"
VERSION_MIN = 1  # the oldest protocol that this code speaks
VERSION_MAX = 1  # the newest
CLUSTER_ID_BYTES = 16
MESSAGE_WEIGHT_MIN = 512  # what a message counts for at least in a credit window

_HEADER = struct.Struct("<4sHBBHHIIQ16s")
HEADER_BYTES = _HEADER.size
assert HEADER_BYTES <= HEADER_BYTES_MAX

_U32 = (1 << 32) - 1


class Kind(enum.IntEnum):
    """What a message is. Numbers are part of the wire protocol."""

    REQUEST = 1  # answered by one REPLY or ERROR with the same request id
    REPLY = 2
    ERROR = 3  # body: hello.Refusal; request id 0: about the connection as a whole
    ONEWAY = 4  # never answered
    NOTIFY = 5  # server to client, never answered
    HELLO = 6  # client to server, first on each connection; body: hello.Hello
    WELCOME = 7  # the server's answer to HELLO; body: hello.Hello
    CREDIT = 8  # request: how much one-way weight was consumed since the hello, in total
    PING = 9  # asks nothing; tells the sender whether the peer is still there


class Header(NamedTuple):
    """What stands in front of each body. ``remaining_ms`` is what was left of the deadline at sending."""

    magic: bytes
    version: int
    kind: int
    flags: int
    method: int
    parts: int  # payload frames that follow
    group: int
    remaining_ms: int
    request: int
    cluster: bytes


_KINDS = frozenset(int(kind) for kind in Kind)


def pack(
    kind: int,
    cluster: bytes,
    body: bytes = b"",
    *,
    method: int = 0,
    request: int = 0,
    group: int = 0,
    remaining_ms: int = 0,
    parts: int = 0,
    flags: int = 0,
    version: int = VERSION_MAX,
) -> bytes:
    """Return the first frame of a message."""
    return _HEADER.pack(MAGIC, version, kind, flags, method, parts, group, remaining_ms, request, cluster) + body


def unpack(head: bytes) -> Header:
    """Read the header of a first frame. Raises ProtocolError; the version is the caller's to judge."""
    size = len(head)
    if not HEADER_BYTES <= size <= HEADER_BYTES + BODY_BYTES_MAX:
        raise ProtocolError(f"first frame of {size} bytes")
    header = Header._make(_HEADER.unpack_from(head))
    if header.magic != MAGIC:
        raise ProtocolError("not a frame of this protocol")
    if header.kind not in _KINDS:
        raise ProtocolError(f"unknown kind {header.kind}")
    return header


def body(head: bytes) -> memoryview:
    """Return the encoded body behind the header, without a copy."""
    return memoryview(head)[HEADER_BYTES:]


def check_parts(header: Header, data: Sequence[Buffer], head_bytes: int) -> None:
    """Refuse a message that has not the frames it announced, or that is larger than a message may be."""
    if len(data) != header.parts or header.parts > FRAME_PARTS_MAX:
        raise ProtocolError(f"{len(data)} payload frames, {header.parts} announced")
    if data and head_bytes + sum(map(_size, data)) > MESSAGE_BYTES_MAX:
        raise ProtocolError("message too large")


def weigh(head_bytes: int, data: Sequence[Buffer]) -> int:
    """How much a message counts for in a credit window; both ends compute the same."""
    total = head_bytes + sum(map(_size, data)) if data else head_bytes
    return total if total > MESSAGE_WEIGHT_MIN else MESSAGE_WEIGHT_MIN


def bound(body_bytes: int, data: Sequence[Buffer]) -> None:
    """Refuse to send what the peer would have to refuse: FsError TOO_BIG."""
    if body_bytes > BODY_BYTES_MAX or len(data) > FRAME_PARTS_MAX:
        raise FsError(Code.TOO_BIG, f"message with a body of {body_bytes} bytes and {len(data)} payload frames")
    if data and HEADER_BYTES + body_bytes + sum(map(_size, data)) > MESSAGE_BYTES_MAX:
        raise FsError(Code.TOO_BIG, f"message above {MESSAGE_BYTES_MAX} bytes")


def to_ms(remaining_s: float) -> int:
    """A remaining time for the header: rounded up, so that what is not over is never 0."""
    bounded_s = min(max(remaining_s, 0.0), DEADLINE_S_MAX)
    return min(int(bounded_s * 1000) + 1, _U32)


def _size(buffer: Buffer) -> int:
    """Bytes of a payload frame. A TypeError here, before anything is sent, since a message cannot stop half-way."""
    if isinstance(buffer, (bytes, bytearray)):
        return len(buffer)
    if isinstance(buffer, memoryview) and buffer.c_contiguous:
        return buffer.nbytes
    raise TypeError(f"a payload frame is contiguous bytes, not {type(buffer).__name__}")
