"""The state of one member, and the few steps that every part of the core shares."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from metadata.raft.log import RaftLog
from metadata.raft.membership import Configuration, restore
from metadata.raft.messages import HardState, Message
from metadata.raft.progress import Inflights, Progress
from metadata.raft.readindex import ReadIndex
from metadata.raft.storage import Compacted, Storage
from node.wire import limits

NONE = 0  # no member


class Role(enum.IntEnum):
    FOLLOWER = 0
    PRECANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class ReadMode(enum.IntEnum):
    """How reads are made linearizable. LEASE needs ``check_quorum``, and ticks that follow a monotonic clock."""

    READ_INDEX = 0
    LEASE = 1


class ProposalDropped(Exception):
    """The proposal did not enter the log and never will. The reason is for people."""


class ConfChangeRefused(ProposalDropped):
    """The change of membership is not possible now."""


class MalformedMessage(ValueError):
    """No correct peer can have sent this message."""


class SoftState(NamedTuple):
    """What is worth knowing but need not be durable."""

    leader: int
    role: Role


class ReadState(msgspec.Struct, frozen=True, gc=False):
    """The read numbered ``context`` may be answered once ``index`` is applied."""

    index: int
    context: int


@dataclass(slots=True)
class Config:
    """How one member behaves. Ticks are whatever period the driver calls ``tick`` at."""

    id: int
    election_ticks: int = limits.RAFT_ELECTION_TICKS
    heartbeat_ticks: int = limits.RAFT_HEARTBEAT_TICKS
    max_message_bytes: int = limits.RAFT_MESSAGE_BYTES_MAX
    max_inflight_messages: int = limits.RAFT_INFLIGHT_MESSAGES_MAX
    max_inflight_bytes: int = limits.RAFT_INFLIGHT_BYTES_MAX  # 0: no bound
    max_uncommitted_bytes: int = limits.RAFT_UNCOMMITTED_BYTES_MAX
    max_apply_bytes: int = limits.RAFT_INFLIGHT_BYTES_MAX  # handed out to be applied, at least one entry
    pre_vote: bool = True
    check_quorum: bool = True
    read_mode: ReadMode = ReadMode.READ_INDEX
    read_rounds: int = 1  # that may be under way at once; what arrives beyond waits for the next
    applied: int = 0  # what the state machine holds; must fit the membership that storage returns
    async_storage: bool = False
    coalesce: bool = True  # one append a peer and Ready instead of one a proposal
    step_down_on_removal: bool = True
    validate_conf_changes: bool = True  # off only to test what then happens
    forward_proposals: bool = True

    def __post_init__(self) -> None:
        if self.id <= 0:
            raise ValueError("a member id is positive")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError("heartbeat_ticks must be positive and less than election_ticks")
        if self.max_inflight_messages <= 0 or self.max_message_bytes <= 0 or self.max_apply_bytes <= 0:
            raise ValueError("bounds must be positive")
        if self.read_rounds <= 0:
            raise ValueError("reads need a round")
        if 0 < self.max_inflight_bytes < self.max_message_bytes:
            raise ValueError("max_inflight_bytes must hold one message")
        if self.read_mode == ReadMode.LEASE and not self.check_quorum:
            raise ValueError("lease reads need check_quorum")


@dataclass(slots=True)
class Status:
    """A member's own view of itself; ``progress`` only at a leader."""

    id: int
    role: Role
    term: int
    vote: int
    leader: int
    commit: int
    applied: int
    last: int
    configuration: Configuration
    transferee: int
    uncommitted_bytes: int
    progress: dict[int, Progress] = field(default_factory=dict)


class Core:
    """One member's Raft state. Invariants: term never falls; vote changes at most once in a term; a leader's
    ``progress`` has exactly the members of ``conf``."""

    __slots__ = (
        "config", "id", "random", "log", "term", "vote", "leader", "role", "conf", "progress", "votes", "votes_log",
        "election_elapsed", "heartbeat_elapsed", "election_timeout", "ticks", "sticky_until", "transferee",
        "transferred", "pending_conf_index", "uncommitted_bytes", "reads", "read_states", "forwarded", "forward_number",
        "messages", "after_append", "broadcast_due", "self_ack_due", "sessions",
    )  # fmt: skip

    def __init__(self, config: Config, storage: Storage, random: Callable[[int], int]) -> None:
        hard, conf_state = storage.initial_state()
        self.config = config
        self.id = config.id
        self.random = random
        self.log = RaftLog(storage, config.applied, hard.commit, config.max_apply_bytes)
        self.term = hard.term
        self.vote = hard.vote
        last_term = self.log.last_term()
        if last_term > hard.term and self.log.last >= storage.first_index():
            # The entries of a new term were written and the record of that term was not. We promised nothing in it.
            self.term, self.vote = last_term, NONE
        self.leader = NONE
        self.role = Role.FOLLOWER
        self.conf = restore(conf_state)
        self.votes: dict[int, bool] = {}
        self.votes_log = (0, 0)  # the (index, term) that this candidacy's requests claimed
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.ticks = 0
        # Before the restart this member may have supported a lease that another member still relies on.
        self.sticky_until = config.election_ticks if config.read_mode == ReadMode.LEASE and hard.term > 0 else 0
        self.transferee = NONE
        self.transferred = False  # a transfer was begun in this leadership: no lease any more
        self.pending_conf_index = 0  # no other change of membership before this one is applied
        self.uncommitted_bytes = 0
        self.reads = ReadIndex(self.id)
        self.read_states: list[ReadState] = []
        self.forwarded: dict[int, int] = {}  # our number -> the caller's context, of reads sent to the leader
        self.forward_number = 0  # begins at random, so that replies to an earlier run of this process match nothing
        self.messages: list[Message] = []
        self.after_append: list[Message] = []
        self.broadcast_due = False
        self.self_ack_due = False
        self.sessions = 0
        self.progress: dict[int, Progress] = {}
        for member in self.conf.members():
            self.progress[member] = self.new_progress(self.log.last + 1)
        self.election_timeout = config.election_ticks + random(config.election_ticks)

    def new_progress(self, next_index: int) -> Progress:
        self.sessions += 1
        config = self.config
        return Progress(next_index, self.sessions, Inflights(config.max_inflight_messages, config.max_inflight_bytes))

    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    def promotable(self) -> bool:
        """Whether this member may campaign: a voter, of either half, with no snapshot half installed."""
        return (self.id in self.conf.voters or self.id in self.conf.outgoing) and self.log.snapshot is None

    def committed_in_term(self) -> bool:
        """Whether an entry of the current term is committed: from then on a leader knows all that is committed."""
        log = self.log
        try:
            return log.term(log.committed) == self.term
        except Compacted:
            return False

    def sole_voter(self) -> bool:
        return len(self.conf.voters) == 1 and not self.conf.outgoing and self.id in self.conf.voters

    def reset(self, term: int) -> None:
        """Forget all that belonged to an earlier term or role."""
        if term != self.term:
            assert term > self.term
            self.term = term
            self.vote = NONE
        self.leader = NONE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.election_timeout = self.config.election_ticks + self.random(self.config.election_ticks)
        self.transferee = NONE
        self.transferred = False
        self.votes.clear()
        self.sessions = 0
        following = self.log.last + 1
        for member in self.progress:
            self.progress[member] = self.new_progress(following)
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadIndex(self.id)
        self.forwarded.clear()
        self.broadcast_due = False
        self.self_ack_due = False

    def become_follower(self, term: int, leader: int) -> None:
        self.reset(term)
        self.leader = leader
        self.role = Role.FOLLOWER

    def copy_state(self, storage: Storage) -> dict[str, object]:
        """Every field, copied so that neither side sees the other's changes. Immutable values are shared."""
        values: dict[str, object] = {name: getattr(self, name) for name in Core.__slots__}
        values["log"] = self.log.copy(storage)
        values["progress"] = {member: progress.copy() for member, progress in self.progress.items()}
        values["votes"] = self.votes.copy()
        values["reads"] = self.reads.copy()
        values["read_states"] = self.read_states.copy()
        values["forwarded"] = self.forwarded.copy()
        values["messages"] = self.messages.copy()
        values["after_append"] = self.after_append.copy()
        return values
