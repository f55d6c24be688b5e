"""The values that go in and out of the Raft core. Pure data; encoded with msgspec where they travel or rest."""

from __future__ import annotations

import enum
from typing import Optional

import msgspec


class EntryKind(enum.IntEnum):
    """What an entry's data is: opaque to the core, or a change of membership."""

    NORMAL = 0
    CONF = 1  # data is an encoded ConfChange


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the log. An empty NORMAL entry is a leader's own first entry of its term."""

    index: int
    term: int
    kind: int = 0
    data: bytes = b""


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be durable before any message that depends on it is sent: one atomic record."""

    term: int = 0
    vote: int = 0  # member id, 0: none
    commit: int = 0


class ConfState(msgspec.Struct, frozen=True, array_like=True):
    """A membership. ``outgoing`` is not empty exactly while a joint configuration is in force."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()  # voters of the outgoing half that become learners when it is left
    auto_leave: bool = False


class ConfChangeKind(enum.IntEnum):
    ADD_VOTER = 0
    ADD_LEARNER = 1
    REMOVE = 2


class ConfChangeItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    kind: int
    member: int


class ConfTransition(enum.IntEnum):
    AUTO = 0  # simple when one voter changes, otherwise joint with automatic leave
    JOINT_AUTO_LEAVE = 1
    JOINT_EXPLICIT = 2


class ConfChange(msgspec.Struct, frozen=True, array_like=True):
    """A change of membership. No items means: leave the joint configuration."""

    items: tuple[ConfChangeItem, ...] = ()
    transition: int = 0
    context: bytes = b""  # opaque to the core, e.g. the new member's address


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """Names a snapshot: the state after ``index`` was applied. The bytes travel on their own channel."""

    index: int
    term: int
    conf: ConfState


class Kind(enum.IntEnum):
    """Kinds of messages between members. Numbers are part of the wire protocol."""

    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    SNAPSHOT = 9  # offers a snapshot; the driver streams the bytes, then steps this message at the receiver
    TIMEOUT_NOW = 10
    READ_INDEX = 11  # follower -> leader
    READ_INDEX_REPLY = 12
    FORWARD_PROPOSAL = 13
    TRANSFER_LEADER = 14  # follower -> leader: ``context`` is the member to become leader
    # From this member's own workers, never from the wire:
    APPEND_DONE = 40  # the entry (index, log_term), all before it and ``snapshot`` are durable
    APPLY_DONE = 41  # applied up to ``index``: ``hint_term`` entries with ``hint_index`` bytes of data


class Message(msgspec.Struct, frozen=True, array_like=True, omit_defaults=False):
    """One message between members. Fields that a kind does not use stay at their default."""

    kind: int
    to: int
    sender: int
    term: int = 0
    log_term: int = 0  # APPEND: term of the entry before ``entries``; VOTE: last term of the candidate
    # APPEND: index before ``entries``; APPEND_REPLY: last index proved or rejected; HEARTBEAT_REPLY: commit index
    index: int = 0
    commit: int = 0
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    hint_index: int = 0  # a rejection's hint
    hint_term: int = 0
    session: int = 0  # replication session: replies of an earlier one cannot move progress
    context: int = 0  # position of a read-index round, chosen by the leader, monotone
    force: bool = False  # VOTE: a transfer of leadership, overrides stickiness; APPEND_REPLY: only a snapshot helps
    snapshot: Optional[SnapshotMeta] = None
