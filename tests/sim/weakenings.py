"""Ways to break the members, on purpose: each is what a plausible bug would do, and the simulator has to notice.

A weakening patches production code while it lasts, and may ask for the kind of run in which it matters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Optional
from unittest.mock import patch


from metadata.api import Submit
from metadata.raft import core as raft_core
from metadata.raft import election, reads, replication
from metadata.raft.log import RaftLog
from metadata.raft.messages import Entry, HardState, Kind, Message, SnapshotMeta
from metadata.raft.membership import restore as restore_conf
from metadata.raft.quorum import VoteResult, joint_index, joint_vote, majority_index, majority_vote
from metadata.raft.readindex import Round
from metadata.raft.ready import StorageAppend
from metadata.raft.state import Core, ReadMode, Role
from metadata.server.node import Node
from metadata.server.snapshots import Receiver
from metadata.server.stable import Stable
from metadata.state.keys import APPLIED_KEY
from metadata.state.sessions import Sessions
from metadata.store.engine_memory import MemoryEngine
from metadata.store.log import LogStore
from metadata.store.snapshot import Chunk, SnapshotSpool
from tests.sim.network import Weather
from tests.sim.profile import Profile

_Patch = AbstractContextManager[Any]
_replace = dataclasses.replace


@dataclass(frozen=True)
class Weakening:
    name: str
    patches: Callable[[], Sequence[_Patch]]
    tune: Callable[[Profile], Profile]

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self.patches():
                stack.enter_context(one)
            yield


WEAKENINGS: list[Weakening] = []


def _as_it_is(profile: Profile) -> Profile:
    return profile


def weakening(tune: Callable[[Profile], Profile] = _as_it_is) -> Callable[[Callable[[], Sequence[_Patch]]], None]:
    def register(patches: Callable[[], Sequence[_Patch]]) -> None:
        WEAKENINGS.append(Weakening(patches.__name__, patches, tune))

    return register


# --- in which runs ------------------------------------------------------------------------------------------------


def _settings(**values: Any) -> Callable[[Profile], Profile]:
    return lambda profile: _replace(profile, settings=_replace(profile.settings, **values))


def _trouble(**weights: float) -> Callable[[Profile], Profile]:
    """More of these faults, and the others as they are."""
    return lambda profile: _replace(profile, faults={**profile.faults, **weights}, fault_s=min(profile.fault_s, 0.2))


def _leases(profile: Profile) -> Profile:
    """Leaders serve by leases, and leaders change although nothing but the network is in trouble."""
    faults = {"partition": 3.0, "heal": 2.0, "campaign": 4.0}
    settings = _replace(
        profile.settings, lease=True, pre_vote=True, check_quorum=True, election_ticks=10, worker=False
    )
    return _replace(
        profile, members=3, clients=4, depth=1, settings=settings, weather=Weather(), faults=faults, drift=0.0,
        turn_s=0.002, fault_s=0.15,
    )


def _all(*tunes: Callable[[Profile], Profile]) -> Callable[[Profile], Profile]:
    def tune(profile: Profile) -> Profile:
        for one in tunes:
            profile = one(profile)
        return profile

    return tune


def _members(count: int) -> Callable[[Profile], Profile]:
    return lambda profile: _replace(profile, members=count)


def _changing(profile: Profile) -> Profile:
    """The membership changes all the time, and the group is torn apart while it does."""
    faults = {"member": 6.0, "partition": 0.5, "heal": 3.0, "campaign": 1.0, "kill": 0.3}
    weather = Weather(delay_s=0.01)
    settings = _replace(profile.settings, pre_vote=True, check_quorum=True, lease=False, election_ticks=4, worker=False)
    return _replace(
        profile, members=3, faults=faults, weather=weather, settings=settings, fault_s=0.1, change_cut=0.6, drift=0.0
    )


def _repeating(profile: Profile) -> Profile:
    return _replace(profile, weather=_replace(profile.weather, repeat=0.4, slow=0.2, slow_s=0.5))


# --- elections ----------------------------------------------------------------------------------------------------


@weakening(_trouble(kill=3.0, power=3.0))
def the_vote_is_not_durable() -> Sequence[_Patch]:
    append = LogStore.append

    def forgetful(self: LogStore, hard: Optional[HardState], entries: Sequence[Entry]) -> None:
        append(self, HardState(hard.term, 0, hard.commit) if hard is not None else None, entries)

    return [patch.object(LogStore, "append", forgetful)]


@weakening(_all(_repeating, _members(5), _settings(pre_vote=False), _trouble(kill=2.0, partition=4.0, heal=2.0)))
def votes_are_counted_by_message() -> Sequence[_Patch]:
    def count(core: Core, message: Message) -> None:
        expected = core.term + 1 if core.role == Role.PRECANDIDATE else core.term
        if not message.reject and message.term != expected:
            return
        voter = message.sender
        if voter in core.votes:
            missing = [other for other in sorted(core.conf.deciders()) if other not in core.votes]
            voter = missing[0] if missing else voter
        core.votes[voter] = not message.reject
        result = joint_vote(core.conf.voters, core.conf.outgoing, core.votes)
        if result == VoteResult.WON:
            if core.role == Role.PRECANDIDATE:
                election.run(core, election.Campaign.ELECTION)
            else:
                election.become_leader(core)
        elif result == VoteResult.LOST:
            core.become_follower(core.term, 0)

    return [patch.object(election, "handle_vote_reply", count)]


@weakening(_trouble(kill=2.0, partition=3.0))
def anybody_gets_a_vote() -> Sequence[_Patch]:
    return [patch.object(RaftLog, "up_to_date", lambda self, index, term: True)]


@weakening(_changing)
def a_joint_configuration_asks_one_half() -> Sequence[_Patch]:
    def index(incoming: Any, outgoing: Any, matched: Any) -> int:
        return majority_index(incoming, matched)

    def vote(incoming: Any, outgoing: Any, votes: Any) -> VoteResult:
        return majority_vote(incoming, votes)

    return [patch.object(replication, "joint_index", index), patch.object(election, "joint_vote", vote)]


# --- the log ------------------------------------------------------------------------------------------------------


@weakening(_all(_settings(max_message_bytes=1, pre_vote=False), _trouble(kill=3.0, partition=3.0, transfer=0.0)))
def entries_of_old_terms_are_committed_by_counting() -> Sequence[_Patch]:
    def maybe_commit(core: Core) -> bool:
        matched = {member: progress.match for member, progress in core.progress.items()}
        index = joint_index(core.conf.voters, core.conf.outgoing, matched)
        if index <= core.log.committed or index > core.log.last:
            return False
        core.log.commit_to(index)
        return True

    return [patch.object(replication, "maybe_commit", maybe_commit)]


@weakening(_repeating)
def a_late_append_deletes_what_follows() -> Sequence[_Patch]:
    def try_append(self: RaftLog, index: int, term: int, commit: int, entries: Sequence[Entry]) -> int:
        if not self.matches(index, term):
            return -1
        fresh = [entry for entry in entries if entry.index > self.committed]
        if fresh:
            self.append(fresh)
        proved = index + len(entries)
        self.commit_to(min(commit, proved, self.last))
        return proved

    return [patch.object(RaftLog, "try_append", try_append)]


@weakening(_trouble(kill=3.0, partition=4.0, heal=2.0))
def a_conflict_keeps_the_stale_tail() -> Sequence[_Patch]:
    append = RaftLog.append

    def in_place(self: RaftLog, entries: Sequence[Entry]) -> None:
        end = entries[-1].index
        tail = self.entries(end + 1, self.last + 1, 1 << 30) if end < self.last else []
        append(self, [*entries, *tail])

    return [patch.object(RaftLog, "append", in_place)]


@weakening(_trouble(kill=2.0, partition=4.0, heal=2.0))
def a_follower_commits_what_was_not_proved() -> Sequence[_Patch]:
    try_append = RaftLog.try_append

    def generous(self: RaftLog, index: int, term: int, commit: int, entries: Sequence[Entry]) -> int:
        proved = try_append(self, index, term, commit, entries)
        self.commit_to(min(commit, self.last))
        return proved

    return [patch.object(RaftLog, "try_append", generous)]


@weakening(_trouble(kill=2.0, partition=4.0, heal=2.0))
def a_heartbeat_carries_the_leaders_own_commit() -> Sequence[_Patch]:
    def broadcast(core: Core, context: int) -> None:
        for member in core.progress:
            if member != core.id:
                commit = min(core.log.committed, core.log.last)
                core.messages.append(
                    Message(Kind.HEARTBEAT, member, core.id, core.term, commit=commit, context=context)
                )

    return [patch.object(reads, "broadcast_heartbeat", broadcast)]


# --- the disk -----------------------------------------------------------------------------------------------------


@weakening(_trouble(cut=6.0))
def promises_are_sent_before_the_sync() -> Sequence[_Patch]:
    append = Node._append

    def hasty(self: Node, work: StorageAppend) -> None:
        if work.snapshot is None:
            self._deliver(work.responses)
            work = _replace(work, responses=[])
        append(self, work)

    return [patch.object(Node, "_append", hasty)]


@weakening()
def nothing_is_synced() -> Sequence[_Patch]:
    def append(self: Stable, hard: Optional[HardState], entries: Sequence[Entry], must_sync: bool) -> None:
        self.store.append(hard, entries)

    return [patch.object(Stable, "append", append)]


@weakening(_all(_settings(worker=True), lambda profile: _replace(profile, disk_s=0.2), _trouble(cut=3.0, kill=3.0)))
def a_leader_counts_itself_at_once() -> Sequence[_Patch]:
    append = replication.append

    def early(core: Core, kind: int, data: bytes) -> Entry:
        entry = append(core, kind, data)
        own = core.progress.get(core.id)
        if own is not None:
            own.update(entry.index)
        return entry

    return [patch.object(replication, "append", early)]


@weakening(_trouble(kill=3.0, power=3.0))
def the_log_is_cut_behind_a_state_that_is_not_durable() -> Sequence[_Patch]:
    def commit(self: Stable) -> None:
        self._uncommitted = 0
        self._committed = SnapshotMeta(self.applied, self._term, self.conf)

    return [patch.object(Stable, "commit", commit)]


# --- the state ----------------------------------------------------------------------------------------------------


@weakening()
def entries_are_applied_before_they_are_committed() -> Sequence[_Patch]:
    def accept(self: RaftLog, index: int, size: int) -> None:
        self.applying = index
        self.applying_bytes += size

    def applied_to(self: RaftLog, index: int, size: int) -> None:
        self.applied = max(self.applied, index)
        self.applying_bytes = max(self.applying_bytes - size, 0)

    return [
        patch.object(RaftLog, "appliable", lambda self, allow_unstable: self.offset - 1),
        patch.object(RaftLog, "accept_applying", accept),
        patch.object(RaftLog, "applied_to", applied_to),
    ]


@weakening(_trouble(kill=3.0, power=3.0))
def the_applied_index_is_kept_apart_from_the_state() -> Sequence[_Patch]:
    def crash(self: MemoryEngine) -> None:
        if APPLIED_KEY in self._committed:
            before = self._committed[APPLIED_KEY]
            if before is None:
                self.delete(APPLIED_KEY)
            else:
                self.put(APPLIED_KEY, before)
        self._committed.clear()

    return [patch.object(MemoryEngine, "crash", crash)]


@weakening()
def results_are_not_kept() -> Sequence[_Patch]:
    def record(self: Sessions, submit: Submit, answer: bytes) -> None:
        return None

    return [patch.object(Sessions, "record", record)]


@weakening(_trouble(kill=2.0, partition=2.0))
def results_are_kept_in_memory_only() -> Sequence[_Patch]:
    kept: dict[tuple[int, int, int], bytes] = {}

    def remember(self: Sessions, submit: Submit) -> Optional[bytes]:
        self.get(submit.session)
        return kept.get((id(self), submit.session, submit.sequence))

    def record(self: Sessions, submit: Submit, answer: bytes) -> None:
        kept[id(self), submit.session, submit.sequence] = answer

    return [patch.object(Sessions, "admit", remember), patch.object(Sessions, "record", record)]


@weakening(_all(_settings(trailing=0, commit_entries=1), _trouble(kill=2.0, partition=3.0, heal=2.0, member=3.0)))
def a_part_of_a_snapshot_is_installed() -> Sequence[_Patch]:
    take = SnapshotSpool._take

    def hasty(self: SnapshotSpool, chunk: Chunk, end: int) -> None:
        take(self, chunk, end)
        self.complete = True

    return [patch.object(SnapshotSpool, "_take", hasty)]


@weakening(_all(_repeating, _settings(trailing=0, commit_entries=1), _trouble(kill=2.0, partition=3.0, heal=2.0)))
def a_snapshot_replaces_newer_state() -> Sequence[_Patch]:
    def handle(core: Core, message: Message) -> None:
        snapshot = message.snapshot
        assert snapshot is not None
        core.log.restore(snapshot)
        core.conf = restore_conf(snapshot.conf)
        core.progress = {member: core.new_progress(core.log.last + 1) for member in sorted(core.conf.members())}
        replication._reply(core, message.sender, core.log.last, message.session)

    def restore(self: RaftLog, snapshot: SnapshotMeta) -> None:
        self.unstable = []
        self.offset = self.writing = snapshot.index + 1
        self.last = self.committed = snapshot.index
        self.snapshot = snapshot
        self.snapshot_writing = False

    return [
        patch.dict(raft_core._FOLLOWER, {Kind.SNAPSHOT: handle}),
        patch.object(RaftLog, "restore", restore),
        patch.object(Receiver, "discard", lambda self: None),
    ]


# --- reads --------------------------------------------------------------------------------------------------------


@weakening(_leases)
def a_lease_without_a_quorum() -> Sequence[_Patch]:
    def valid(core: Core) -> bool:
        return core.config.read_mode == ReadMode.LEASE

    return [patch.object(reads, "lease_valid", valid), patch.object(election, "check_quorum", lambda core: None)]


@weakening(_leases)
def a_lease_that_voters_do_not_honour() -> Sequence[_Patch]:
    return [patch.object(election, "sticky", lambda core: False)]


@weakening(_trouble(partition=4.0, heal=1.0))
def reads_without_a_round() -> Sequence[_Patch]:
    def release(core: Core) -> None:
        waiting = tuple(core.reads.waiting)
        core.reads.waiting.clear()
        reads._answer(core, Round(0, core.log.committed, core.ticks, waiting))

    return [patch.object(reads, "release_waiting", release)]


@weakening(_trouble(kill=4.0, transfer=4.0))
def reads_before_a_commit_of_the_term() -> Sequence[_Patch]:
    return [patch.object(Core, "committed_in_term", lambda self: True)]
