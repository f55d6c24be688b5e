"""What a member wants done: the output of ``RawNode.ready``."""

from __future__ import annotations

from dataclasses import dataclass, field

from metadata.raft.messages import Entry, HardState, Message, SnapshotMeta
from metadata.raft.state import ReadState, SoftState


@dataclass(slots=True)
class StorageAppend:
    """Work for the log's one writer, in order: make it durable as a whole, then deliver ``responses``.

    ``snapshot`` is installed first and replaces the whole log; then ``entries`` are appended, dropping what the log has
    from the first one's index on; then ``hard_state`` is recorded. With ``must_sync`` false nothing new is promised and
    no sync is needed, but the responses still wait for all work before.
    """

    entries: list[Entry]
    hard_state: HardState | None
    snapshot: SnapshotMeta | None
    responses: list[Message]
    must_sync: bool


@dataclass(slots=True)
class StorageApply:
    """Work for the state machine, in order: apply ``entries``, then deliver ``responses``."""

    entries: list[Entry]
    responses: list[Message]


@dataclass(slots=True)
class Ready:
    """What is to be done. With asynchronous storage ``append`` and ``apply`` say it; otherwise they are None."""

    soft_state: SoftState | None = None
    hard_state: HardState | None = None
    entries: list[Entry] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None
    messages: list[Message] = field(default_factory=list)
    messages_after_append: list[Message] = field(default_factory=list)
    committed: list[Entry] = field(default_factory=list)
    read_states: list[ReadState] = field(default_factory=list)
    must_sync: bool = False
    append: StorageAppend | None = None
    apply: StorageApply | None = None
