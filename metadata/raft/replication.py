"""Replication: what a leader sends and counts, and what a follower accepts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from metadata.raft import membership, reads
from metadata.raft.log import RaftLog
from metadata.raft.messages import ConfChange, Entry, EntryKind, Kind, Message
from metadata.raft.progress import Progress, State
from metadata.raft.quorum import joint_index, majority_index
from metadata.raft.state import NONE, ConfChangeRefused, Core, MalformedMessage, ProposalDropped, Role
from metadata.raft.storage import ENTRY_OVERHEAD_BYTES, Compacted, SnapshotTemporarilyUnavailable

# --- leader: into its own log -------------------------------------------------------------------------------------


def append(core: Core, kind: int, data: bytes) -> Entry:
    """Append one entry of this term to the leader's log. Raises ProposalDropped above the bound of bytes that are
    not applied yet; empty data is never refused, so that a leader can always begin its term and leave a joint
    configuration."""
    size = len(data)
    if size and core.uncommitted_bytes and core.uncommitted_bytes + size > core.config.max_uncommitted_bytes:
        raise ProposalDropped("too many bytes wait to be committed")
    core.uncommitted_bytes += size
    entry = Entry(core.log.last + 1, core.term, kind, data)
    core.log.append((entry,))
    core.self_ack_due = True
    return entry


def propose(core: Core, kind: int, data: bytes) -> Entry:
    """Append a proposal and send it on its way."""
    if core.role != Role.LEADER:
        raise ProposalDropped("not the leader")
    if core.id not in core.progress:
        raise ProposalDropped("no longer a member")
    if core.transferee != NONE:
        raise ProposalDropped("leadership is being transferred")
    entry = append(core, kind, data)
    broadcast(core)
    return entry


def check_conf_change(core: Core, change: ConfChange) -> None:
    """Raise ConfChangeRefused where a change must not enter the log now.

    One change at a time: the next waits until the one before is applied, and after an election until everything
    before the term has been applied. Otherwise two majorities could decide without a common member.
    """
    if not core.config.validate_conf_changes:
        return
    leaving = not change.items
    if core.pending_conf_index > core.log.applied:
        raise ConfChangeRefused(
            f"an earlier change may be at index {core.pending_conf_index}, applied is {core.log.applied}"
        )
    if core.conf.joint and not leaving:
        raise ConfChangeRefused("the joint configuration must be left first")
    if not core.conf.joint and leaving:
        raise ConfChangeRefused("there is no joint configuration to leave")
    try:
        membership.change(core.conf, change)
    except membership.ConfChangeInvalid as error:
        raise ConfChangeRefused(str(error)) from error


def propose_conf(core: Core, change: ConfChange) -> Entry:
    if core.role == Role.LEADER:
        check_conf_change(core, change)
    entry = propose(core, EntryKind.CONF, membership.encode_change(change))
    core.pending_conf_index = entry.index
    return entry


def accept_forwarded(core: Core, message: Message) -> None:
    """A proposal that another member passed on. Nobody here can be told of a refusal, so a change of membership that
    is impossible takes its place in the log as an empty entry."""
    for entry in message.entries:
        try:
            if entry.kind == EntryKind.CONF:
                try:
                    propose_conf(core, _decoded(entry.data))
                except ConfChangeRefused:
                    propose(core, EntryKind.NORMAL, b"")
            else:
                propose(core, EntryKind.NORMAL, entry.data)
        except ProposalDropped:
            return


def _decoded(data: bytes) -> ConfChange:
    try:
        return membership.decode_change(data)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"a change of membership that is none: {error}") from error


def leave_joint_automatically(core: Core) -> None:
    """Propose to leave a joint configuration that leaves by itself, once it is applied and nothing is pending.

    Called by any leader whenever something was applied, so one that takes over in the middle does it too, and with
    each heartbeat, because during a transfer of leadership the proposal is dropped.
    """
    if not core.conf.auto_leave or core.role != Role.LEADER or core.log.applied < core.pending_conf_index:
        return
    try:
        propose_conf(core, ConfChange())
    except ProposalDropped:
        return  # tried again


# --- leader: to the others ----------------------------------------------------------------------------------------


def broadcast(core: Core) -> None:
    """Send everyone what it lacks: now, or once for all that happens until the next Ready."""
    if core.config.coalesce:
        core.broadcast_due = True
        return
    for member, progress in core.progress.items():
        if member != core.id:
            send_append(core, member, progress, True)


def flush_broadcast(core: Core) -> None:
    """The deferred half of ``broadcast``."""
    core.broadcast_due = False
    if core.role != Role.LEADER:
        return
    for member, progress in core.progress.items():
        if member == core.id:
            continue
        send_due(core, member, progress)


def send_due(core: Core, to: int, progress: Progress) -> None:
    """Send all that the member lacks, as far as the window allows; nothing where it lacks nothing."""
    log = core.log
    if progress.can_bump_commit(log.committed):
        send_append(core, to, progress, True)
    while progress.next <= log.last and send_append(core, to, progress, False):
        pass


def send_append(core: Core, to: int, progress: Progress, even_if_empty: bool) -> bool:
    """Send the next entries, or a snapshot where the log no longer has them. False when nothing was sent."""
    if progress.paused or progress.state == State.SNAPSHOT:
        return False
    log: RaftLog = core.log
    following = progress.next
    last = log.last
    entries: list[Entry] = []
    try:
        previous_term = log.term(following - 1)
        # A throttled pipeline still sends empty appends, so that a follower that lost all of them answers.
        if following <= last and (progress.state != State.REPLICATE or not progress.inflights.full()):
            entries = log.entries(following, last + 1, core.config.max_message_bytes)
    except Compacted:
        return send_snapshot(core, to, progress)
    if not entries and not even_if_empty:
        return False
    commit = log.committed
    core.messages.append(
        Message(
            Kind.APPEND, to, core.id, core.term, previous_term, following - 1, commit, tuple(entries),
            session=progress.session,
        )  # fmt: skip
    )
    size = 0
    for entry in entries:
        size += len(entry.data) + ENTRY_OVERHEAD_BYTES
    progress.sent_entries(len(entries), size)
    progress.sent_commit = commit
    return True


def send_snapshot(core: Core, to: int, progress: Progress) -> bool:
    if not progress.recent_active:
        return False  # nobody there to take it
    try:
        snapshot = core.log.snapshot or core.log.storage.snapshot()
    except SnapshotTemporarilyUnavailable:
        return False
    if to not in membership.restore(snapshot.conf).members():
        return False  # taken before the member was added: it would be of no use there; soon there is a newer one
    assert snapshot.index > 0, "an empty snapshot replaces nothing"
    progress.become_snapshot(snapshot.index)
    core.messages.append(
        Message(Kind.SNAPSHOT, to, core.id, core.term, snapshot=snapshot, session=progress.session)
    )
    return True


def maybe_commit(core: Core) -> bool:
    """Commit what a quorum holds. Only an entry of this leader's own term is committed by counting (section 5.4.2);
    those before it follow."""
    conf = core.conf
    matched = {member: progress.match for member, progress in core.progress.items()}
    if conf.outgoing:
        index = joint_index(conf.voters, conf.outgoing, matched)
    else:
        index = majority_index(conf.voters, matched)
    log = core.log
    if index <= log.committed or index > log.last or log.term(index) != core.term:
        return False
    log.commit_to(index)
    return True


def commit_and_spread(core: Core) -> bool:
    """Commit what can be, tell the others, and serve the reads that waited for it."""
    if not maybe_commit(core):
        return False
    reads.release_waiting(core)
    broadcast(core)
    return True


def handle_append_reply(core: Core, message: Message) -> None:
    """Leader: a member tells how far its log matches, or where it may."""
    sender = message.sender
    progress = core.progress.get(sender)
    if progress is None or message.session != progress.session:
        return  # caused by what an earlier incarnation of this member was sent
    progress.recent_active = True
    if message.reject:
        if message.force and progress.match == 0 and progress.state != State.SNAPSHOT:
            send_snapshot(core, sender, progress)
            return
        hint = message.hint_index
        if message.hint_term > 0:
            # Skip our entries of terms that the follower cannot have there.
            hint, _ = core.log.find_by_term(hint, message.hint_term)
        if progress.decrease(message.index, hint):
            if progress.state == State.REPLICATE:
                progress.become_probe()
            send_append(core, sender, progress, True)
        return
    index = message.index
    if index > core.log.last:
        return  # no honest member proves what we do not have
    if not progress.update(index) and not (progress.match == index and progress.state == State.PROBE):
        return
    if progress.state == State.REPLICATE:
        progress.inflights.free_to(index)
    elif progress.state == State.PROBE:
        progress.become_replicate()
    elif progress.match + 1 >= core.log.first_index():
        # Whatever snapshot it got, the log can take over from there.
        progress.become_replicate()
    commit_and_spread(core)
    if sender == core.id:
        return
    if core.config.coalesce:
        if progress.next <= core.log.last or progress.can_bump_commit(core.log.committed):
            core.broadcast_due = True
    else:
        send_due(core, sender, progress)
    if sender == core.transferee and progress.match == core.log.last:
        send_timeout_now(core, sender)


def send_timeout_now(core: Core, to: int) -> None:
    core.transferred = True
    core.messages.append(Message(Kind.TIMEOUT_NOW, to, core.id, core.term))


def handle_heartbeat_reply(core: Core, message: Message) -> None:
    progress = core.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    progress.paused = False
    if progress.state == State.SNAPSHOT and message.index >= progress.pending_snapshot:
        # It has what the snapshot was for, and the reply that said so was lost.
        progress.become_probe()
    if progress.match < core.log.last or progress.state == State.PROBE:
        send_append(core, message.sender, progress, True)
    reads.handle_ack(core, message.sender, message.context)


# --- follower -----------------------------------------------------------------------------------------------------


def handle_append(core: Core, message: Message) -> None:
    log = core.log
    leader, session = message.sender, message.session
    if not core.conf.voters:
        # A newcomer cannot learn from entries who the founding members are. Guessing would make it a group of its own.
        reply = Message(
            Kind.APPEND_REPLY, leader, core.id, core.term, index=message.index, reject=True, force=True, session=session
        )  # fmt: skip
        core.after_append.append(reply)
        return
    if message.index < log.committed:
        # Old news. What is committed here matches the leader's log by itself.
        _reply(core, leader, log.committed, session)
        return
    entries: Sequence[Entry] = message.entries
    proved = log.try_append(message.index, message.log_term, message.commit, entries)
    if proved >= 0:
        _reply(core, leader, proved, session)
        return
    hint, hint_term = log.find_by_term(min(message.index, log.last), message.log_term)
    core.after_append.append(
        Message(
            Kind.APPEND_REPLY, leader, core.id, core.term, index=message.index, reject=True, hint_index=hint,
            hint_term=hint_term, session=session,
        )  # fmt: skip
    )


def _reply(core: Core, leader: int, index: int, session: int) -> None:
    core.after_append.append(
        Message(Kind.APPEND_REPLY, leader, core.id, core.term, index=index, session=session)
    )


def handle_heartbeat(core: Core, message: Message) -> None:
    core.log.commit_to(message.commit)
    core.messages.append(
        Message(
            Kind.HEARTBEAT_REPLY, message.sender, core.id, core.term, index=core.log.committed, context=message.context
        )  # fmt: skip
    )


def handle_snapshot(core: Core, message: Message) -> None:
    """The snapshot's bytes are here (the driver saw to that); take its place in the log if it is news."""
    snapshot = message.snapshot
    assert snapshot is not None  # checked when the message came in
    log = core.log
    index = log.committed
    if snapshot.index > log.committed:
        conf = membership.restore(snapshot.conf)
        if core.id in conf.members():
            if log.matches(snapshot.index, snapshot.term):
                log.commit_to(snapshot.index)  # we have these entries: no need to throw the log away
                index = log.committed
            else:
                log.restore(snapshot)
                core.conf = conf
                core.progress = {member: core.new_progress(log.last + 1) for member in sorted(conf.members())}
                index = log.last
    _reply(core, message.sender, index, message.session)
