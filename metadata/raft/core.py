"""The interface of the core: messages and ticks in, ``Ready`` out. The package's docstring tells how to drive it."""

from __future__ import annotations

from collections.abc import Callable

from metadata.raft import election, membership, reads, replication
from metadata.raft.messages import ConfChange, ConfState, Entry, EntryKind, Kind, Message, SnapshotMeta
from metadata.raft.progress import State
from metadata.raft.ready import Ready, StorageAppend, StorageApply
from metadata.raft.state import (
    NONE,
    Config,
    ConfChangeRefused,
    Core,
    MalformedMessage,
    ProposalDropped,
    ReadMode,
    ReadState,
    Role,
    SoftState,
    Status,
)
from metadata.raft.storage import ENTRY_OVERHEAD_BYTES, Storage

__all__ = [
    "Config", "ConfChangeRefused", "MalformedMessage", "ProposalDropped", "RawNode", "ReadMode", "ReadState", "Ready",
    "Role", "SoftState", "Status", "StorageAppend", "StorageApply",
]  # fmt: skip

_LOCAL_TERM = frozenset((Kind.READ_INDEX, Kind.FORWARD_PROPOSAL, Kind.TRANSFER_LEADER, Kind.APPLY_DONE))
_FROM_LEADER = frozenset((Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT))
_VOTE_REQUESTS = frozenset((Kind.VOTE, Kind.PRE_VOTE))
_FROM_WORKERS = frozenset((Kind.APPEND_DONE, Kind.APPLY_DONE))


class RawNode(Core):
    """One member of a Raft group. Not for concurrent use; no call blocks."""

    __slots__ = ("_soft", "_hard", "_async", "_own_steps", "_advance_due")

    def __init__(self, config: Config, storage: Storage, random: Callable[[int], int]) -> None:
        """``random(n)`` returns one of 0..n-1. Raises LogDamaged where storage contradicts itself."""
        super().__init__(config, storage, random)
        self._soft = SoftState(self.leader, self.role)
        self._hard = storage.initial_state()[0]
        self._async = config.async_storage
        self._own_steps: list[Message] = []  # synchronous storage: what ``advance`` delivers to this member
        self._advance_due = False

    # --- in -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One period of time has passed."""
        election.tick(self)

    def campaign(self) -> None:
        """Try to become leader now. Does nothing where this member may not, nor while a leader may be answering reads
        by a lease that this member supports."""
        if self.config.read_mode != ReadMode.LEASE or not election.sticky(self):
            election.campaign(self)

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append ``data`` as an entry; returns its (index, term). Leader only: raises ProposalDropped otherwise.

        The entry is committed when an entry with this index *and* term is handed out to be applied.
        """
        entry = replication.propose(self, EntryKind.NORMAL, data)
        return entry.index, entry.term

    def propose_conf(self, change: ConfChange) -> tuple[int, int]:
        """As ``propose``, for a change of membership. Raises ConfChangeRefused where it is not possible now."""
        entry = replication.propose_conf(self, change)
        return entry.index, entry.term

    def forward(self, kind: EntryKind, data: bytes) -> None:
        """Send a proposal to the leader, this member or another, without hearing what became of it. Raises
        ProposalDropped where it surely goes nowhere."""
        entry = Entry(0, 0, kind, data)
        message = Message(Kind.FORWARD_PROPOSAL, self.id, self.id, entries=(entry,))
        if self.role == Role.LEADER:
            before = self.log.last
            replication.accept_forwarded(self, message)
            if self.log.last == before:
                raise ProposalDropped("the leader cannot take proposals now")
        elif not self._forward(message):
            raise ProposalDropped("no leader is known")

    def read_index(self, context: int) -> bool:
        """Ask up to where state must be applied to answer a read that begins now; a ReadState with this ``context``
        tells. False where no leader is known or too many reads wait. An answer may fail to come (messages lost, leader
        changed): the caller asks again, and fails its reads when the leader of ``soft_state`` changes."""
        return reads.read_index(self, context)

    def transfer_leader(self, to: int) -> None:
        """Hand leadership over to voter ``to``; a follower passes the wish on. Given up after an election time-out."""
        if self.role == Role.LEADER:
            election.transfer(self, to)
        elif self.role == Role.FOLLOWER and self.leader != NONE:
            self.messages.append(Message(Kind.TRANSFER_LEADER, self.leader, self.id, context=to))

    def forget_leader(self) -> None:
        """Follower: no longer hold on to the leader, so that another may be elected before its time is over. With
        lease reads this does nothing, because the lease relies on it."""
        if self.role == Role.FOLLOWER and self.config.read_mode != ReadMode.LEASE:
            self.leader = NONE

    def report_unreachable(self, peer: int) -> None:
        """What was last sent to ``peer`` was lost: stop pipelining and find out."""
        progress = self.progress.get(peer)
        if self.role == Role.LEADER and progress is not None and progress.state == State.REPLICATE:
            progress.become_probe()

    def report_snapshot(self, peer: int, ok: bool) -> None:
        """The snapshot offered to ``peer`` was delivered, or not. Either way its next answer tells where it is."""
        progress = self.progress.get(peer)
        if self.role != Role.LEADER or progress is None or progress.state != State.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.become_probe()
        progress.paused = True  # wait for its answer, or the next heartbeat, before another append

    def apply_conf(self, change: ConfChange) -> ConfState:
        """The driver applies a committed CONF entry. Returns the membership to record with the applied index.
        Raises ConfChangeInvalid, without effect and on every member alike."""
        self._switch(membership.change(self.conf, change))
        return self.conf.state()

    # --- messages -----------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message from a peer, or a response that a worker of this member delivers.

        Messages for others, and workers' responses that come from others, are ignored. Raises MalformedMessage,
        without effect, where no correct peer can have sent this.
        """
        kind = message.kind
        term = message.term
        if message.to != self.id or (kind in _FROM_WORKERS and message.sender != self.id):
            return
        if kind == Kind.APPEND:
            entries = message.entries
            if entries and not message.index + 1 == entries[0].index == entries[-1].index - len(entries) + 1:
                raise MalformedMessage("an append whose entries do not follow on")
        elif kind == Kind.SNAPSHOT and message.snapshot is None:
            raise MalformedMessage("a snapshot message without a snapshot")
        if term != self.term and kind not in _LOCAL_TERM:
            if term < self.term:
                self._step_lower_term(message)
                return
            if not self._step_higher_term(message):
                return
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, message)

    def _step_higher_term(self, message: Message) -> bool:
        """Learn of a higher term. False where the message is to be ignored."""
        kind = message.kind
        if kind in _VOTE_REQUESTS:
            if not message.force and election.sticky(self):
                return False
            if kind == Kind.PRE_VOTE:
                return True  # asks what would be; nothing changes
        elif kind == Kind.PRE_VOTE_REPLY and not message.reject:
            return True  # the term that we asked about
        elif kind in _FROM_WORKERS:
            raise AssertionError("a worker's response from the future")
        self.become_follower(message.term, message.sender if kind in _FROM_LEADER else NONE)
        return True

    def _step_lower_term(self, message: Message) -> None:
        kind = message.kind
        if kind in (Kind.APPEND, Kind.HEARTBEAT):
            # A leader that we left behind, maybe in a campaign that nobody else heard, must learn the term: ignored,
            # it and we would go on like this for ever.
            if self.config.check_quorum or self.config.pre_vote:
                self.after_append.append(Message(Kind.APPEND_REPLY, message.sender, self.id, self.term))
        elif kind == Kind.PRE_VOTE:
            self.after_append.append(
                Message(Kind.PRE_VOTE_REPLY, message.sender, self.id, self.term, reject=True)
            )
        elif kind == Kind.APPEND_DONE and message.snapshot is not None:
            # Entries may have been replaced since; a snapshot is committed state whatever the term.
            self._snapshot_durable(message.snapshot)

    def _forward(self, message: Message) -> bool:
        if self.role != Role.FOLLOWER or self.leader == NONE or not self.config.forward_proposals:
            return False
        self.messages.append(Message(message.kind, self.leader, self.id, entries=message.entries))
        return True

    def _on_proposal(self, message: Message) -> None:
        if self.role == Role.LEADER:
            replication.accept_forwarded(self, message)
        else:
            self._forward(message)

    def _on_from_leader(self, message: Message) -> None:
        if self.role == Role.LEADER:
            assert message.sender == self.id, f"two leaders in term {self.term}: {self.id} and {message.sender}"
            return
        if self.role != Role.FOLLOWER:
            self.become_follower(self.term, message.sender)
        self.election_elapsed = 0
        self.leader = message.sender
        _FOLLOWER[message.kind](self, message)

    def _on_vote_reply(self, message: Message) -> None:
        wanted = Kind.PRE_VOTE_REPLY if self.role == Role.PRECANDIDATE else Kind.VOTE_REPLY
        if self.role in (Role.CANDIDATE, Role.PRECANDIDATE) and message.kind == wanted:
            election.handle_vote_reply(self, message)

    def _on_append_reply(self, message: Message) -> None:
        if self.role == Role.LEADER:
            replication.handle_append_reply(self, message)

    def _on_heartbeat_reply(self, message: Message) -> None:
        if self.role == Role.LEADER:
            replication.handle_heartbeat_reply(self, message)

    def _on_timeout_now(self, message: Message) -> None:
        if self.role == Role.FOLLOWER:
            election.hup(self, election.Campaign.TRANSFER)

    def _on_transfer(self, message: Message) -> None:
        self.transfer_leader(message.context)

    def _on_read_index(self, message: Message) -> None:
        if self.role == Role.LEADER:
            reads.request(self, message.sender, message.context)

    def _on_append_done(self, message: Message) -> None:
        if message.index:
            self.log.stable_to(message.index, message.log_term)
        if message.snapshot is not None:
            self._snapshot_durable(message.snapshot)

    def _on_apply_done(self, message: Message) -> None:
        self.uncommitted_bytes = max(self.uncommitted_bytes - message.hint_index, 0)
        self._applied(message.index, message.hint_index + message.hint_term * ENTRY_OVERHEAD_BYTES)

    def _snapshot_durable(self, snapshot: SnapshotMeta) -> None:
        self.log.stable_snapshot(snapshot.index)
        self._applied(snapshot.index, 0)

    def _applied(self, index: int, size: int) -> None:
        self.log.applied_to(max(index, self.log.applied), size)
        replication.leave_joint_automatically(self)

    def _switch(self, conf: membership.Configuration) -> None:
        """Let a new configuration take effect."""
        self.conf = conf
        self.reads.forget_lease()  # promised by a quorum of another configuration
        members = conf.members()
        for member in [known for known in self.progress if known not in members]:
            del self.progress[member]
        for member in sorted(members - self.progress.keys()):
            progress = self.new_progress(max(self.log.last, 1))
            # Give it one election time-out before it counts as silent.
            progress.recent_active = True
            self.progress[member] = progress
        if self.role != Role.LEADER:
            return
        if self.id not in conf.deciders():
            if self.config.step_down_on_removal:
                self.become_follower(self.term, NONE)
            return
        if not replication.commit_and_spread(self):
            for member, progress in self.progress.items():
                if member != self.id:
                    replication.send_append(self, member, progress, False)
        reads.settle(self)
        if self.transferee != NONE and self.transferee not in conf.deciders():
            self.transferee = NONE

    # --- out ----------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether ``ready`` would have anything to say."""
        log = self.log
        if self.messages or self.after_append or self.read_states or self.broadcast_due:
            return True
        if log.writing <= log.last or log.next_snapshot() is not None or log.has_next_committed(not self._async):
            return True
        hard = self._hard
        if self.term != hard.term or self.vote != hard.vote or log.committed != hard.commit:
            return True
        return self._soft != (self.leader, self.role)

    def ready(self) -> Ready:
        """Take all that is to be done. With synchronous storage ``advance`` must follow before the next."""
        assert not self._advance_due, "ready() before advance()"
        if self.broadcast_due:
            replication.flush_broadcast(self)
        if self.self_ack_due:
            self._acknowledge_own()
        log = self.log
        ready = Ready(messages=self.messages, read_states=self.read_states)
        self.messages = []
        self.read_states = []
        if self._soft != (self.leader, self.role):
            ready.soft_state = self._soft = SoftState(self.leader, self.role)
        hard = self._hard
        if self.term != hard.term or self.vote != hard.vote or log.committed != hard.commit:
            ready.hard_state = self._hard = self.hard_state()
        ready.entries = log.next_unstable()
        ready.snapshot = log.next_snapshot()
        ready.committed = log.next_committed(not self._async)
        promised = self.term != hard.term or self.vote != hard.vote
        ready.must_sync = promised or bool(ready.entries) or ready.snapshot is not None
        log.accept_unstable()
        responses = self.after_append
        self.after_append = []
        if self._async:
            self._ready_async(ready, responses)
        else:
            self._ready_sync(ready, responses)
        return ready

    def _acknowledge_own(self) -> None:
        """A leader counts its own log like everybody's: when it is durable."""
        self.self_ack_due = False
        own = self.progress.get(self.id)
        if self.role == Role.LEADER and own is not None:
            self.after_append.append(
                Message(Kind.APPEND_REPLY, self.id, self.id, self.term, index=self.log.last, session=own.session)
            )

    def _append_done(self, snapshot: SnapshotMeta | None) -> Message | None:
        """The response that tells how far the log is durable. It names the last entry with its term, and the term
        it was written in: where either changed meanwhile, it says nothing about what the log holds now."""
        log = self.log
        if not log.unstable and snapshot is None:
            return None
        index, log_term = (log.last, log.unstable[-1].term) if log.unstable else (0, 0)
        return Message(Kind.APPEND_DONE, self.id, self.id, self.term, log_term, index, snapshot=snapshot)

    def _apply_done(self, committed: list[Entry]) -> Message:
        size = 0
        for entry in committed:
            size += len(entry.data)
        last, count = committed[-1].index, len(committed)
        self.log.accept_applying(last, size + count * ENTRY_OVERHEAD_BYTES)
        return Message(Kind.APPLY_DONE, self.id, self.id, index=last, hint_index=size, hint_term=count)

    def _ready_async(self, ready: Ready, responses: list[Message]) -> None:
        if responses or ready.entries or ready.hard_state is not None or ready.snapshot is not None:
            done = self._append_done(ready.snapshot)
            if done is not None:
                responses.append(done)  # last: a leader's own acknowledgement finds its entries still in memory
            ready.append = StorageAppend(ready.entries, ready.hard_state, ready.snapshot, responses, ready.must_sync)
        if ready.committed:
            ready.apply = StorageApply(ready.committed, [self._apply_done(ready.committed)])

    def _ready_sync(self, ready: Ready, responses: list[Message]) -> None:
        own = self._own_steps
        for message in responses:
            (own if message.to == self.id else ready.messages_after_append).append(message)
        done = self._append_done(ready.snapshot)
        if done is not None:
            own.append(done)
        if ready.committed:
            own.append(self._apply_done(ready.committed))
        self._advance_due = True

    def advance(self) -> None:
        """Synchronous storage only: all of the last Ready is durable, sent and applied."""
        assert self._advance_due and not self._async
        self._advance_due = False
        steps = self._own_steps
        self._own_steps = []
        for message in steps:
            self.step(message)

    def status(self) -> Status:
        log = self.log
        status = Status(
            self.id, self.role, self.term, self.vote, self.leader, log.committed, log.applied, log.last, self.conf,
            self.transferee, self.uncommitted_bytes,
        )  # fmt: skip
        if self.role == Role.LEADER:
            status.progress = dict(self.progress)
        return status

    # --- for simulation -----------------------------------------------------------------------------------------

    def clone(self, storage: Storage) -> RawNode:
        """An independent copy that reads ``storage``."""
        other = RawNode.__new__(RawNode)
        for name, value in self.copy_state(storage).items():
            setattr(other, name, value)
        other._soft = self._soft
        other._hard = self._hard
        other._async = self._async
        other._own_steps = self._own_steps.copy()
        other._advance_due = self._advance_due
        return other

    def snapshot_key(self) -> tuple[object, ...]:
        """Equal for members that will behave alike (given equal storage and random numbers)."""
        return (
            self.term, self.vote, self.leader, self.role, self.conf, self.log.key(),
            tuple((member, progress.key()) for member, progress in sorted(self.progress.items()))
            if self.role == Role.LEADER else (),
            tuple(sorted(self.votes.items())), self.votes_log, self.election_elapsed, self.heartbeat_elapsed,
            self.election_timeout, self.transferee, self.transferred, self.pending_conf_index, self.uncommitted_bytes,
            self.reads.key(), tuple(self.read_states), tuple(self.forwarded.items()), self.forward_number,
            tuple(self.messages), tuple(self.after_append), self.broadcast_due, self.self_ack_due,
            self._soft, self._hard, tuple(self._own_steps), self._advance_due,
        )  # fmt: skip


def _on_vote_request(node: RawNode, message: Message) -> None:
    election.handle_vote_request(node, message)


def _on_read_reply(node: RawNode, message: Message) -> None:
    reads.handle_reply(node, message)


_FOLLOWER: dict[int, Callable[[Core, Message], None]] = {
    Kind.APPEND: replication.handle_append,
    Kind.HEARTBEAT: replication.handle_heartbeat,
    Kind.SNAPSHOT: replication.handle_snapshot,
}
_HANDLERS: dict[int, Callable[[RawNode, Message], None]] = {
    Kind.PRE_VOTE: _on_vote_request,
    Kind.VOTE: _on_vote_request,
    Kind.PRE_VOTE_REPLY: RawNode._on_vote_reply,
    Kind.VOTE_REPLY: RawNode._on_vote_reply,
    Kind.APPEND: RawNode._on_from_leader,
    Kind.APPEND_REPLY: RawNode._on_append_reply,
    Kind.HEARTBEAT: RawNode._on_from_leader,
    Kind.HEARTBEAT_REPLY: RawNode._on_heartbeat_reply,
    Kind.SNAPSHOT: RawNode._on_from_leader,
    Kind.TIMEOUT_NOW: RawNode._on_timeout_now,
    Kind.READ_INDEX: RawNode._on_read_index,
    Kind.READ_INDEX_REPLY: _on_read_reply,
    Kind.FORWARD_PROPOSAL: RawNode._on_proposal,
    Kind.TRANSFER_LEADER: RawNode._on_transfer,
    Kind.APPEND_DONE: RawNode._on_append_done,
    Kind.APPLY_DONE: RawNode._on_apply_done,
}
