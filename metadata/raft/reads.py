"""Linearizable reads, at the leader and at those that ask it."""

from __future__ import annotations

from metadata.raft.messages import Kind, Message
from metadata.raft.readindex import ReadRequest, Round
from metadata.raft.state import NONE, Core, ReadMode, ReadState, Role
from node.wire import limits

LEASE_MARGIN_TICKS = 2


def read_index(core: Core, context: int) -> bool:
    """Begin a read of this member's own. False: no leader is known, or too many wait; it will not be answered."""
    if core.role == Role.LEADER:
        return request(core, core.id, context)
    if core.leader == NONE:
        return False
    if len(core.forwarded) >= limits.RAFT_READS_WAITING_MAX:
        del core.forwarded[next(iter(core.forwarded))]  # the oldest; its answer was lost
    if not core.forward_number:
        core.forward_number = core.random(1 << 53)
    core.forward_number += 1
    core.forwarded[core.forward_number] = context
    core.messages.append(Message(Kind.READ_INDEX, core.leader, core.id, context=core.forward_number))
    return True


def request(core: Core, sender: int, context: int) -> bool:
    """Leader: a read arrived. It is answered at once where that is safe, or waits for a round. False: too many wait."""
    waiting = core.reads.waiting
    if len(waiting) >= limits.RAFT_READS_WAITING_MAX:
        return False
    waiting.append(ReadRequest(sender, context))
    release_waiting(core)
    return True


def release_waiting(core: Core) -> None:
    """Answer what may be answered; otherwise begin a round unless as many are under way as may be.

    Before an entry of its own term is committed a leader does not know what is committed, so reads wait.
    """
    book = core.reads
    if not book.waiting or not core.committed_in_term():
        return
    if core.sole_voter() or lease_valid(core):
        waiting = tuple(book.waiting)
        book.waiting.clear()
        _answer(core, Round(0, core.log.committed, core.ticks, waiting))
    elif len(book.rounds) < core.config.read_rounds:
        broadcast_heartbeat(core, book.begin(core.log.committed, core.ticks))


def lease_valid(core: Core) -> bool:
    """Whether no other member can have been elected yet, by this member's ticks.

    A quorum heard of us no earlier than ``confirmed_tick`` and follows nobody else for election_ticks of its own.
    The margin covers the parts of a tick at both ends and clocks that drift. A transfer of leadership overrides that
    stickiness, even long after it was given up.
    """
    config = core.config
    if config.read_mode != ReadMode.LEASE or not config.check_quorum or core.transferred:
        return False
    return core.ticks - core.reads.confirmed_tick < config.election_ticks - LEASE_MARGIN_TICKS


def broadcast_heartbeat(core: Core, context: int) -> None:
    """Tell everyone that this leader lives, with a commit index that cannot exceed what is known durable there."""
    committed = core.log.committed
    for member, progress in core.progress.items():
        if member == core.id:
            continue
        commit = min(progress.match, committed)
        core.messages.append(
            Message(Kind.HEARTBEAT, member, core.id, core.term, commit=commit, context=context)
        )
        progress.sent_commit = commit


def heartbeat_context(core: Core) -> int:
    """The round that a regular heartbeat speaks for: a new one where reads wait or a lease is kept, but none before an
    entry of this term is committed, because it would answer the reads that wait for that."""
    book = core.reads
    if (book.waiting or core.config.read_mode == ReadMode.LEASE) and core.committed_in_term():
        return book.begin(core.log.committed, core.ticks)
    return book.number if book.rounds else 0


def handle_ack(core: Core, member: int, context: int) -> None:
    """Leader: a heartbeat of round ``context`` was answered."""
    if context:
        _finish(core, core.reads.acknowledge(member, context, core.conf.voters, core.conf.outgoing))


def settle(core: Core) -> None:
    """The configuration changed: what was acknowledged may be a quorum now."""
    _finish(core, core.reads.settle(core.conf.voters, core.conf.outgoing))


def _finish(core: Core, rounds: list[Round]) -> None:
    for done in rounds:
        _answer(core, done)
    if rounds:
        release_waiting(core)


def _answer(core: Core, done: Round) -> None:
    for asked in done.requests:
        if asked.sender == core.id:
            core.read_states.append(ReadState(done.index, asked.context))
        else:
            reply = Kind.READ_INDEX_REPLY
            core.messages.append(
                Message(reply, asked.sender, core.id, core.term, index=done.index, context=asked.context)
            )


def handle_reply(core: Core, message: Message) -> None:
    """Follower: the leader answered. A number that we no longer wait for confirms nothing."""
    context = core.forwarded.pop(message.context, None)
    if context is not None:
        core.read_states.append(ReadState(message.index, context))
