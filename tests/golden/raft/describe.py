"""How members, messages and work look in a script's output."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from metadata.raft.core import RawNode, Ready, StorageAppend, StorageApply
from metadata.raft.membership import decode_change
from metadata.raft.messages import ConfChangeKind, ConfState, ConfTransition, Entry, EntryKind, HardState, Kind, Message

KINDS = {
    "MsgPreVote": Kind.PRE_VOTE,
    "MsgPreVoteResp": Kind.PRE_VOTE_REPLY,
    "MsgVote": Kind.VOTE,
    "MsgVoteResp": Kind.VOTE_REPLY,
    "MsgApp": Kind.APPEND,
    "MsgAppResp": Kind.APPEND_REPLY,
    "MsgHeartbeat": Kind.HEARTBEAT,
    "MsgHeartbeatResp": Kind.HEARTBEAT_REPLY,
    "MsgSnap": Kind.SNAPSHOT,
    "MsgTimeoutNow": Kind.TIMEOUT_NOW,
    "MsgReadIndex": Kind.READ_INDEX,
    "MsgReadIndexResp": Kind.READ_INDEX_REPLY,
    "MsgProp": Kind.FORWARD_PROPOSAL,
    "MsgTransferLeader": Kind.TRANSFER_LEADER,
    "MsgStorageAppendResp": Kind.APPEND_DONE,
    "MsgStorageApplyResp": Kind.APPLY_DONE,
}
_LETTER = {ConfChangeKind.ADD_VOTER: "v", ConfChangeKind.ADD_LEARNER: "l", ConfChangeKind.REMOVE: "r"}


def kind_named(name: str) -> Kind | None:
    """A kind by its name in scripts: MsgApp, or APPEND."""
    return KINDS.get(name) or Kind.__members__.get(name.upper().replace("-", "_"))


def conf(state: ConfState) -> str:
    text = "voters=" + "".join(f"({','.join(map(str, half))})" for half in (state.voters, state.outgoing) if half)
    if state.learners:
        text += f" learners=({','.join(map(str, state.learners))})"
    if state.learners_next:
        text += f" learners-next=({','.join(map(str, state.learners_next))})"
    return text + (" auto-leave" if state.auto_leave else "")


def entry(value: Entry) -> str:
    where = f"{value.term}/{value.index}"
    if value.kind == EntryKind.NORMAL:
        return f'{where} "{value.data.decode(errors="backslashreplace")}"'
    try:
        change = decode_change(value.data)
    except msgspec.DecodeError:
        return f"{where} conf ?"
    items = " ".join(f"{_LETTER.get(ConfChangeKind(i.kind), '?')}{i.member}" for i in change.items) or "leave"
    mode = "" if change.transition == ConfTransition.AUTO else f" {ConfTransition(change.transition).name.lower()}"
    return f"{where} conf{mode} {items}"


def entries(values: Iterable[Entry]) -> str:
    return "[" + ", ".join(map(entry, values)) + "]"


def message(value: Message) -> str:
    """One line; fields at their default are left out, and so are contexts and sessions, which only compare."""
    text = f"{value.sender}->{value.to} {Kind(value.kind).name} term:{value.term}"
    if value.kind == Kind.HEARTBEAT_REPLY:
        text += f" commit:{value.index}"
    elif value.log_term or value.index:
        text += f" log:{value.log_term}/{value.index}"
    if value.reject:
        text += " needs a snapshot" if value.force else f" rejected hint:{value.hint_term}/{value.hint_index}"
    if value.commit:
        text += f" commit:{value.commit}"
    if value.entries:
        text += f" {entries(value.entries)}"
    if value.force and not value.reject:
        text += " force"
    if value.kind in (Kind.READ_INDEX, Kind.READ_INDEX_REPLY, Kind.TRANSFER_LEADER) and value.context:
        text += f" for:{value.context}"
    if value.kind in (Kind.HEARTBEAT, Kind.HEARTBEAT_REPLY) and value.context:
        text += f" round:{value.context}"
    if value.snapshot is not None:
        text += f" snapshot:{value.snapshot.term}/{value.snapshot.index} {conf(value.snapshot.conf)}"
    return text


def hard_state(value: HardState) -> str:
    return f"term:{value.term} vote:{value.vote} commit:{value.commit}"


def append_work(work: StorageAppend | Ready) -> list[str]:
    lines = []
    if work.snapshot is not None:
        lines.append(f"install {work.snapshot.term}/{work.snapshot.index} {conf(work.snapshot.conf)}")
    if work.entries:
        lines.append(f"append {entries(work.entries)}")
    if work.hard_state is not None:
        lines.append(f"hard state {hard_state(work.hard_state)}" + (" sync" if work.must_sync else ""))
    return lines


def ready(value: Ready) -> list[str]:
    lines = []
    if value.soft_state is not None:
        lines.append(f"role {value.soft_state.role.name.lower()} lead:{value.soft_state.leader}")
    for state in value.read_states:
        lines.append(f"read {state.context} at {state.index}")
    for sent in value.messages:
        lines.append(f"send {message(sent)}")
    if value.append is not None or value.apply is not None:
        if value.append is not None:
            lines += [f"to disk: {line}" for line in append_work(value.append) or ["nothing"]]
            lines += [f"  then {message(response)}" for response in value.append.responses]
        if value.apply is not None:
            lines.append(f"to apply: {entries(value.apply.entries)}")
        return lines
    lines += append_work(value)
    lines += [f"then send {message(sent)}" for sent in value.messages_after_append]
    if value.committed:
        lines.append(f"apply {entries(value.committed)}")
    return lines or ["nothing"]


def apply_work(work: StorageApply) -> list[str]:
    return [f"apply {entries(work.entries)}"]


def member(node: RawNode) -> dict[str, object]:
    """What ``--json`` prints of a member."""
    status = node.status()
    return {
        "id": status.id,
        "role": status.role.name.lower(),
        "term": status.term,
        "vote": status.vote,
        "lead": status.leader,
        "commit": status.commit,
        "applied": status.applied,
        "last": status.last,
    }


def progress(node: RawNode) -> list[str]:
    """A leader's view of the others."""
    lines = []
    for member_id, item in sorted(node.progress.items()):
        text = f"{member_id}: {item.state.name.lower()} match={item.match} next={item.next}"
        if member_id in node.conf.learners:
            text += " learner"
        if item.paused:
            text += " paused"
        if item.pending_snapshot:
            text += f" snapshot={item.pending_snapshot}"
        if not item.recent_active:
            text += " inactive"
        if len(item.inflights):
            text += f" inflight={len(item.inflights)}" + (" full" if item.inflights.full() else "")
        lines.append(text)
    return lines
