"""Elections: time-outs, pre-votes, votes, and the change of roles."""

from __future__ import annotations

import enum

from metadata.raft import reads, replication
from metadata.raft.messages import EntryKind, Kind, Message
from metadata.raft.quorum import VoteResult, joint_vote
from metadata.raft.state import NONE, Core, Role


class Campaign(enum.IntEnum):
    PRE = 0
    ELECTION = 1
    TRANSFER = 2  # the leader asked for it: overrides the stickiness of those who hear it


def tick(core: Core) -> None:
    core.ticks += 1
    if core.role == Role.LEADER:
        _tick_leader(core)
        return
    core.election_elapsed += 1
    if core.promotable() and core.election_elapsed >= core.election_timeout:
        core.election_elapsed = 0
        campaign(core)


def _tick_leader(core: Core) -> None:
    config = core.config
    core.heartbeat_elapsed += 1
    core.election_elapsed += 1
    if core.election_elapsed >= config.election_ticks:
        core.election_elapsed = 0
        if config.check_quorum:
            check_quorum(core)
        core.transferee = NONE  # the transfer did not happen in time
    if core.role == Role.LEADER and core.heartbeat_elapsed >= config.heartbeat_ticks:
        core.heartbeat_elapsed = 0
        heartbeat(core)
        replication.leave_joint_automatically(core)


def heartbeat(core: Core) -> None:
    reads.broadcast_heartbeat(core, reads.heartbeat_context(core))


def check_quorum(core: Core) -> None:
    """Step down where no quorum was heard from in a whole election time-out: others may have a leader already."""
    active = {member: progress.recent_active for member, progress in core.progress.items()}
    active[core.id] = True
    if joint_vote(core.conf.voters, core.conf.outgoing, active) != VoteResult.WON:
        core.become_follower(core.term, NONE)
        return
    for member, progress in core.progress.items():
        if member != core.id:
            progress.recent_active = False


def campaign(core: Core) -> None:
    """Time is up, or the driver asks."""
    hup(core, Campaign.PRE if core.config.pre_vote else Campaign.ELECTION)


def hup(core: Core, kind: Campaign) -> None:
    if core.role == Role.LEADER or not core.promotable() or core.log.has_unapplied_conf():
        # With a committed change of membership not applied, this member would count with a configuration that the
        # group may have left two changes ago.
        return
    run(core, kind)


def run(core: Core, kind: Campaign) -> None:
    """Ask every voter of both halves. The own vote counts when it is durable, like everybody's."""
    if kind == Campaign.PRE:
        _become_precandidate(core)
        request, reply, term = Kind.PRE_VOTE, Kind.PRE_VOTE_REPLY, core.term + 1
    else:
        _become_candidate(core)
        request, reply, term = Kind.VOTE, Kind.VOTE_REPLY, core.term
    index, log_term = core.log.last, core.log.last_term()
    core.votes_log = (index, log_term)
    for voter in sorted(core.conf.deciders()):
        if voter == core.id:
            core.after_append.append(Message(reply, core.id, core.id, term, log_term, index))
        else:
            force = kind == Campaign.TRANSFER
            core.messages.append(Message(request, voter, core.id, term, log_term, index, force=force))


def _become_precandidate(core: Core) -> None:
    # Neither term nor vote changes: nothing is promised yet.
    core.votes.clear()
    core.leader = NONE
    core.forwarded.clear()
    core.role = Role.PRECANDIDATE


def _become_candidate(core: Core) -> None:
    core.reset(core.term + 1)
    core.vote = core.id
    core.role = Role.CANDIDATE


def become_leader(core: Core) -> None:
    core.reset(core.term)
    core.leader = core.id
    core.role = Role.LEADER
    own = core.progress.get(core.id)
    if own is not None:
        own.become_replicate()
        own.recent_active = True
    # Changes of membership may hide in entries not applied yet: no new one before all of them are.
    core.pending_conf_index = core.log.last
    replication.append(core, EntryKind.NORMAL, b"")
    replication.broadcast(core)


def sticky(core: Core) -> bool:
    """Whether this member heard from a leader so recently that nobody needs another."""
    if core.ticks < core.sticky_until:
        return True
    return (
        core.config.check_quorum and core.leader != NONE and core.election_elapsed < core.config.election_ticks
    )


def handle_vote_request(core: Core, message: Message) -> None:
    """Grant or refuse, for a pre-vote without any promise. Learners answer too: they may have been promoted without
    having heard of it."""
    pre = message.kind == Kind.PRE_VOTE
    reply = Kind.PRE_VOTE_REPLY if pre else Kind.VOTE_REPLY
    candidate = message.sender
    can_vote = (
        core.vote == candidate
        or (core.vote == NONE and core.leader == NONE)
        or (pre and message.term > core.term)
    )
    if can_vote and core.log.up_to_date(message.index, message.log_term):
        # The reply repeats what the candidate claimed of its log. A grant for a claim that a crash has since undone
        # must not elect it.
        core.after_append.append(
            Message(reply, candidate, core.id, message.term, message.log_term, message.index)
        )
        if not pre:
            core.election_elapsed = 0
            core.vote = candidate
    else:
        core.after_append.append(Message(reply, candidate, core.id, core.term, reject=True))


def handle_vote_reply(core: Core, message: Message) -> None:
    """Candidate: one voter answered. The first answer of each voter counts, and only in this election."""
    if not message.reject:
        expected = core.term + 1 if core.role == Role.PRECANDIDATE else core.term
        if message.term != expected or (message.index, message.log_term) != core.votes_log:
            return
    core.votes.setdefault(message.sender, not message.reject)
    result = joint_vote(core.conf.voters, core.conf.outgoing, core.votes)
    if result == VoteResult.WON:
        if core.role == Role.PRECANDIDATE:
            run(core, Campaign.ELECTION)
        else:
            become_leader(core)
    elif result == VoteResult.LOST:
        core.become_follower(core.term, NONE)


def transfer(core: Core, to: int) -> None:
    """Leader: hand over to ``to`` as soon as it has the whole log. Proposals are dropped meanwhile."""
    progress = core.progress.get(to)
    if progress is None or to not in core.conf.deciders() or to == core.transferee:
        return
    core.transferee = NONE
    if to == core.id:
        return
    core.election_elapsed = 0  # it has one election time-out for it
    core.transferee = to
    if progress.match == core.log.last:
        replication.send_timeout_now(core, to)
    else:
        replication.send_append(core, to, progress, True)
