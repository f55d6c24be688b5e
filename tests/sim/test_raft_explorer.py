"""The exploration finds nothing in the core, and finds what is wrong with weakened ones."""

from __future__ import annotations

import os

import pytest

from metadata.raft import election, replication
from metadata.raft.core import RawNode, Ready
from metadata.raft.log import RaftLog
from metadata.raft.messages import Entry, Kind, Message
from metadata.raft.state import Core
from tests.sim.raft_explorer import Budget, Explorer, Report, Scope, Violation

LONG = os.environ.get("LONG") == "1"
ELECTED = (("tick", 3), ("rest", 0))
# 3 leads, an entry is durable at 1 and 3 and committed; at 2 it is not durable yet.
LAGGING = (
    *ELECTED, ("propose", 3), ("hand", 2), ("hand", 1), ("disk", 1), ("disk", 3), ("hand", 3), ("forget", 1),
    ("forget", 2),
)  # fmt: skip
SCOPES = {
    "first-elections": Scope(Budget(ticks=4, proposals=1, crashes=0, duplicates=0, losses=0)),
    "first-elections-prevote": Scope(
        Budget(ticks=4, proposals=1, crashes=0, duplicates=0, losses=0), pre_vote=True, check_quorum=True, stride=1
    ),
    "crash": Scope(Budget(ticks=2, proposals=1, crashes=1, duplicates=0, losses=0), prelude=ELECTED),
    "duplicate": Scope(Budget(ticks=2, proposals=2, crashes=0, duplicates=1, losses=0), prelude=ELECTED),
    "loss": Scope(Budget(ticks=2, proposals=2, crashes=0, duplicates=0, losses=2), prelude=ELECTED, coalesce=False),
    "lagging-crash": Scope(Budget(ticks=2, proposals=1, crashes=2, duplicates=1, losses=1), prelude=LAGGING),
    "reads": Scope(Budget(ticks=1, proposals=1, crashes=0, duplicates=1, losses=0, reads=2), prelude=ELECTED),
    "everything": Scope(Budget(ticks=3, proposals=1, crashes=1, duplicates=1, losses=1), prelude=ELECTED),
}
STATES = 2_000_000 if LONG else 100_000


REPORTS: dict[str, Report] = {}


def explore(name: str) -> Report:
    if name not in REPORTS:
        REPORTS[name] = Explorer(SCOPES[name]).run(STATES)
    return REPORTS[name]


@pytest.mark.timeout(1200 if LONG else 300)
@pytest.mark.parametrize("name", SCOPES)
def test_core_is_safe_in_every_state(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = explore(name)
    with capsys.disabled():
        print(
            f"\nraft explorer: {name}: {report.states:,} states, depth {report.depth}, "
            f"{report.transitions:,} events, {report.seconds:.1f} s" + (", exhausted" if report.exhausted else ""),
            end="",
        )
    assert report.exhausted or report.states >= STATES
    assert report.deepest_commit or not SCOPES[name].prelude


@pytest.mark.timeout(1200 if LONG else 300)
def test_enough_was_explored(capsys: pytest.CaptureFixture[str]) -> None:
    total = sum(explore(name).states for name in SCOPES)
    depth = max(explore(name).depth for name in SCOPES)
    with capsys.disabled():
        print(f"\nraft explorer: {total:,} distinct states, depth {depth}")
    assert total >= 200_000


def test_small_scope_is_exhausted() -> None:
    """One election and nothing else going on: every order of events, to the end."""
    report = Explorer(Scope(Budget(ticks=1, proposals=0, crashes=0, duplicates=0, losses=0))).run(1_000_000)
    assert report.exhausted
    assert report.deepest_commit == 1 and report.leaders == 1


def _finds(scope: Scope, what: str, states: int = 400_000) -> None:
    with pytest.raises(Violation, match=what):
        Explorer(scope).run(states)


def test_finds_votes_that_are_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vote is answered before it is written: after a crash the member votes again in the same term."""

    def ready(node: RawNode) -> Ready:
        taken = original(node)
        if taken.append is not None:
            early = [m for m in taken.append.responses if m.kind == Kind.VOTE_REPLY and m.to != node.id]
            taken.messages += early
            taken.append.responses = [m for m in taken.append.responses if m not in early]
        return taken

    original = RawNode.ready
    monkeypatch.setattr(RawNode, "ready", ready)
    prelude = (("tick", 1), ("forget", 2), ("disk", 1), ("tick", 2), ("forget", 1), ("disk", 2))  # 3 is asked by both
    _finds(Scope(Budget(ticks=0, proposals=0, crashes=1, duplicates=0, losses=0), prelude=prelude), "election safety")


def test_finds_acknowledgements_that_are_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower acknowledges entries that its disk does not have."""

    def ready(node: RawNode) -> Ready:
        taken = original(node)
        if taken.append is not None:
            early = [m for m in taken.append.responses if m.kind == Kind.APPEND_REPLY and m.to != node.id]
            taken.messages += early
            taken.append.responses = [m for m in taken.append.responses if m not in early]
        return taken

    original = RawNode.ready
    monkeypatch.setattr(RawNode, "ready", ready)
    _finds(Scope(Budget(ticks=0, proposals=1, crashes=0, duplicates=0, losses=0), prelude=ELECTED), "durability")


def test_finds_a_grant_that_outlives_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate asks for votes before its term is durable, crashes, loses entries that it claimed to have, and is
    elected in the same term by the grant that the lost claim had earned."""

    def handle(core: Core, message: Message) -> None:
        core.votes_log = (message.index, message.log_term) if not message.reject else core.votes_log
        original(core, message)

    original = election.handle_vote_reply
    monkeypatch.setattr(election, "handle_vote_reply", handle)
    scope = Scope(Budget(ticks=2, proposals=0, crashes=1, duplicates=0, losses=0), max_term=2, prelude=LAGGING)
    _finds(scope, "leader completeness")


def test_finds_deletion_by_a_late_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower drops what follows an append, although nothing proves a conflict."""

    def try_append(log: RaftLog, index: int, term: int, commit: int, entries: tuple[Entry, ...]) -> int:
        if log.matches(index, term) and entries and index >= log.committed and log.last > index:
            log.append(entries)
        return original(log, index, term, commit, entries)

    original = RaftLog.try_append
    monkeypatch.setattr(RaftLog, "try_append", try_append)
    scope = Scope(Budget(ticks=0, proposals=2, crashes=0, duplicates=1, losses=0), prelude=ELECTED, coalesce=False)
    _finds(scope, "durability|state-machine|breaks")


def test_finds_commits_that_a_message_does_not_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower commits up to the leader's index whatever its own log holds there."""

    def try_append(log: RaftLog, index: int, term: int, commit: int, entries: tuple[Entry, ...]) -> int:
        proved = original(log, index, term, commit, entries)
        log.commit_to(min(commit, log.last))
        return proved

    original = RaftLog.try_append
    monkeypatch.setattr(RaftLog, "try_append", try_append)
    # 3 leads term 1 with an entry that nobody else has, 1 leads term 2 and commits; then 1 finds 3.
    prelude = (
        *ELECTED, ("propose", 3), ("forget", 1), ("forget", 2), ("disk", 3), ("tick", 1), ("hand", 2), ("disk", 2),
        ("forget", 3), ("disk", 1), ("hand", 1), ("forget", 3), ("hand", 2), ("disk", 2), ("disk", 1), ("hand", 1),
    )  # fmt: skip
    _finds(Scope(Budget(ticks=1, proposals=0, crashes=0, duplicates=0, losses=0), prelude=prelude), "state-machine")


def test_finds_reads_without_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader answers a read from what it knows to be committed, without asking whether it still leads."""
    monkeypatch.setattr(Core, "sole_voter", lambda core: True)
    budget = Budget(ticks=1, proposals=0, crashes=0, duplicates=0, losses=0, reads=1)
    _finds(Scope(budget, prelude=ELECTED), "linearizable reads")


def test_finds_two_votes_in_one_term(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(core: Core, message: Message) -> None:
        if message.kind == Kind.VOTE:
            core.vote = 0
        original(core, message)

    original = election.handle_vote_request
    monkeypatch.setattr(election, "handle_vote_request", handle)
    _finds(Scope(Budget(ticks=2, proposals=0, crashes=0, duplicates=0, losses=0)), "election safety")


def test_finds_commits_by_counting_in_old_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figure 8 of the paper: an entry of an earlier term is on a majority, and yet not safe."""

    def maybe_commit(core: Core) -> bool:
        reached = sorted(progress.match for progress in core.progress.values())[1]
        if reached <= core.log.committed:
            return False
        core.log.commit_to(reached)
        return True

    prelude = (
        # 1 leads term 1, with an entry that nobody else has
        ("tick", 1), ("hand", 2), ("disk", 2), ("forget", 3), ("disk", 1), ("hand", 1), ("disk", 1), ("forget", 2),
        ("forget", 3),
        # 3 leads term 2, likewise
        ("tick", 3), ("forget", 1), ("forget", 2), ("disk", 3), ("tick", 3), ("hand", 2), ("disk", 2), ("hand", 1),
        ("disk", 1), ("disk", 3), ("hand", 3), ("disk", 3), ("forget", 1), ("forget", 2),
        # 1 leads term 3 and hands its old entry, but not the new one, to 2
        ("tick", 1), ("forget", 3), ("hand", 2), ("disk", 2), ("disk", 1), ("hand", 1), ("disk", 1), ("forget", 3),
        ("hand", 2), ("disk", 2), ("hand", 1),
        # 3 is back and catches up with the term
        ("crash", 3), ("tick", 3), ("forget", 1), ("disk", 3), ("hand", 2), ("disk", 2), ("forget", 3),
    )  # fmt: skip
    budget = Budget(ticks=1, proposals=0, crashes=0, duplicates=0, losses=0)
    scope = Scope(budget, max_term=4, max_messages=8, max_message_bytes=1, prelude=prelude)
    assert Explorer(scope).run(20_000).deepest_commit >= 2  # the same scope is safe with the rule
    monkeypatch.setattr(replication, "maybe_commit", maybe_commit)
    _finds(scope, "leader completeness|state-machine|durability|breaks")
