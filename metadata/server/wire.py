"""What members say to each other: Raft messages one way, greetings and snapshot pieces as requests.

A member is an (id, incarnation): the incarnation is made with its data directory. A member whose directory was wiped
has forgotten its votes and its acknowledgements; were it taken for the old one, a majority could elect a leader
without an acknowledged entry. So every message names both ends' incarnations, and a mismatch is dropped.
"""

from __future__ import annotations

from typing import Optional

import msgspec

from metadata.raft.messages import ConfState, Message
from metadata.store.snapshot import SnapshotName
from node.wire.catalogue import Catalogue, Method


class Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Raft messages from ``sender`` to ``target``; they are the one payload frame, an encoded list. One way: may be
    lost, doubled and overtaken."""

    sender: int
    incarnation: bytes
    target: int
    target_incarnation: bytes


class Greet(msgspec.Struct, frozen=True, array_like=True):
    """Introduce ``sender``. Who was never introduced under this id is remembered durably before the answer.

    ``lost``: its disk lost entries that it had acknowledged, so that the leader must find out anew what it holds."""

    sender: int
    incarnation: bytes
    target: int
    lost: bool = False
    name: str = ""  # where the sender answers, for a member that has not heard of it yet
    address: str = ""
    peer_address: str = ""
    public_key: str = ""


class GreetReply(msgspec.Struct, frozen=True, array_like=True):
    """``known`` is the incarnation that the answering member remembers of the sender: where it differs, the sender
    was wiped and may not take part under this id. ``first`` is the membership that the group began with, None where
    the answering member has no log yet: a log must begin with the same one everywhere."""

    member: int
    incarnation: bytes
    known: bytes
    first: Optional[ConfState] = None


class OfferSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """Begin to bring a snapshot, or continue."""

    sender: int
    incarnation: bytes
    target_incarnation: bytes
    name: SnapshotName


class SnapshotPosition(msgspec.Struct, frozen=True, array_like=True):
    """The chunk that the receiver wants next, the number of chunks when it has all. Not ``wanted``: it needs none.
    ``loaded``: it has all, and has built its new state of it; installing is a matter of a moment now."""

    following: int
    wanted: bool = True
    loaded: bool = False


class SnapshotPiece(msgspec.Struct, frozen=True, array_like=True):
    """A chunk of the offered snapshot with this nonce; the payload frame is the encoded chunk."""

    nonce: bytes


class StateDigest(msgspec.Struct, frozen=True, array_like=True):
    """What ``sender`` got for the slice of the state that the AUDIT entry at ``index`` asked for. One way."""

    sender: int
    incarnation: bytes
    target: int
    target_incarnation: bytes
    index: int
    digest: bytes


CATALOGUE = Catalogue(
    "members",
    [
        Method(0x280, Envelope, None),
        Method(0x281, Greet, GreetReply),
        Method(0x282, OfferSnapshot, SnapshotPosition),
        Method(0x283, SnapshotPiece, SnapshotPosition),
        Method(0x284, StateDigest, None),
    ],
)

encode_messages = msgspec.msgpack.Encoder().encode
decode_messages = msgspec.msgpack.Decoder(list[Message]).decode
