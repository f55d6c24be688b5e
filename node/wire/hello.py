"""How two processes find out whether they may talk: protocol versions, cluster identity, incarnation.

A client's first message on a connection is HELLO, the server answers WELCOME, or ERROR with the reason. Bodies are
msgpack arrays that only ever grow at the end.
"""

from __future__ import annotations

import msgspec

from node.wire.errors import Code, FsError, ProtocolError
from node.wire.frames import VERSION_MAX, VERSION_MIN

_DETAIL_CHARS_MAX = 2048


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """What each end says of itself. ``incarnation`` is new in each process: a peer that restarted is another peer."""

    version_min: int
    version_max: int
    incarnation: bytes
    software: str = ""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """The body of an ERROR: an FsError on the wire."""

    code: int
    detail: str = ""
    hint: int = 0


_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_refusal_decoder = msgspec.msgpack.Decoder(Refusal)


def encode_hello(incarnation: bytes, software: str = "") -> bytes:
    """This process's side of the hello."""
    return _encoder.encode(Hello(VERSION_MIN, VERSION_MAX, incarnation, software))


def decode_hello(body: memoryview | bytes) -> Hello:
    """Read a peer's hello. Raises ProtocolError."""
    try:
        return _hello_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"hello: {error}") from None


def negotiate(theirs: Hello) -> int:
    """Return the newest version that both ends speak, or raise UNSUPPORTED_VERSION naming which end is the older."""
    chosen = min(VERSION_MAX, theirs.version_max)
    if chosen >= max(VERSION_MIN, theirs.version_min):
        return chosen
    spoken = f"{theirs.version_min} to {theirs.version_max}, not {VERSION_MIN} to {VERSION_MAX}"
    if theirs.version_min > VERSION_MAX:
        raise FsError(Code.UNSUPPORTED_VERSION, f"the peer is newer, it speaks protocol {spoken}: upgrade this end")
    raise FsError(Code.UNSUPPORTED_VERSION, f"the peer is older, it speaks protocol {spoken}: upgrade that end")


def check_cluster(mine: bytes, theirs: bytes) -> None:
    """Refuse a peer of another cluster: FOREIGN_CLUSTER, naming both."""
    if mine != theirs:
        raise FsError(Code.FOREIGN_CLUSTER, f"peer belongs to cluster {theirs.hex()}, this is cluster {mine.hex()}")


def encode_refusal(error: FsError) -> bytes:
    """Put an error on the wire; details longer than a person reads are cut."""
    return _encoder.encode(Refusal(int(error.code), error.detail[:_DETAIL_CHARS_MAX], error.hint))


def decode_refusal(body: memoryview | bytes) -> FsError:
    """Read an ERROR body. Raises ProtocolError; a code of a newer peer that is unknown here becomes IO."""
    try:
        refusal = _refusal_decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"error reply: {error}") from None
    try:
        code = Code(refusal.code)
    except ValueError:
        return FsError(Code.IO, f"error {refusal.code} of a newer peer: {refusal.detail}", hint=refusal.hint)
    return FsError(code, refusal.detail, hint=refusal.hint)
