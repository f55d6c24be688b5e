"""One row against the worst writers and readers there may be: a put is on a bare write quorum, nobody mends anything
but what orders say, and a disk is lost whenever the row is whole. Production rules, many seeds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

import metadata.rows as rows
from metadata.api import ServerRecord
from metadata.rows import View, joined, readings, settled, vacancies
from metadata.state.records import Group
from tests.harness import LONG, seed

RUNS = 20_000 if LONG else 600
STEPS = 60


class Lost(AssertionError):
    """A committed block is on no member of the row."""


class Life:
    """One group with its servers, of which some are spare."""

    def __init__(self, rng: random.Random, replicas: int) -> None:
        self.rng = rng
        self.replicas = replicas
        self.states = {server: "serving" for server in range(1, replicas + 4)}
        self.notes = {server: "" for server in self.states}
        self.gone: set[int] = set()
        self.epoch = 1
        self.group = Group(tuple(range(1, replicas + 1)), 1)
        self.held: dict[int, set[int]] = {server: set() for server in self.states}
        self.committed: set[int] = set()
        self.read: dict[int, frozenset[int]] = {}
        self.asked: dict[int, tuple[int, tuple[int, ...], set[int]]] = {}  # reader -> epoch, sources, what they had

    @property
    def view(self) -> View:
        records = {
            server: ServerRecord(server, b"", "", "", "", "", 1.0, 1, state, note=self.notes[server])
            for server, state in self.states.items()
        }
        return View(self.replicas, records, frozenset(self.gone))

    def write(self) -> None:
        """A block on a bare quorum of those that count, committed at once."""
        able = [s for s in self.group.servers if s not in self.group.leaving and s not in self.gone]
        if len(able) >= self.view.write_quorum:
            block = len(self.committed)
            self.committed.add(block)
            for server in self.rng.sample(able, self.view.write_quorum):
                self.held[server].add(block)

    def begin_reading(self) -> None:
        wanted = readings(self.group, self.view, self.read, False)
        for reader, sources in wanted.items():
            able = [source for source in sources if source not in self.gone]
            if reader not in self.gone and reader not in self.asked and self.rng.random() < 0.5:
                found = set().union(*(self.held[source] for source in able)) if able else set()
                self.asked[reader] = self.group.changed, tuple(able), found

    def end_reading(self) -> None:
        for reader in list(self.asked):
            if self.rng.random() < 0.5:
                epoch, sources, found = self.asked.pop(reader)
                if reader not in self.gone:
                    self.held[reader] |= found
                    if epoch == self.group.changed:
                        self.read[reader] = frozenset(sources)

    def change(self, group: Group | None) -> None:
        if group is None:
            return
        for server in set(self.group.servers) - set(group.servers):
            self.held[server] = set()  # it drops what it has
            if self.states[server] == "draining":
                self.states[server] = "out"
        self.group = group
        self.epoch += 1
        self.read = {}

    def decide(self) -> None:
        self.change(settled(self.group, self.view, self.read, lambda server: -server, self.epoch + 1))
        spare = [s for s, state in self.states.items() if state == "serving" and s not in self.group.servers]
        if vacancies(self.group, self.view) and spare:
            self.change(joined(self.group, self.rng.choice(spare), self.epoch + 1))

    def lose(self) -> None:
        """A disk, when the row is whole; it is noticed later."""
        group = self.group
        whole = not group.filling and not group.leaving and not self.gone & set(group.servers)
        if whole and all(self.states[server] == "serving" for server in group.servers):
            server = self.rng.choice(group.servers)
            self.gone.add(server)
            self.held[server] = set()

    def notice(self) -> None:
        for server in self.gone:
            self.states[server], self.notes[server] = "out", "lost"

    def drain(self) -> None:
        able = [s for s in self.group.servers if self.states[s] == "serving" and s not in self.gone]
        draining = any(state == "draining" for state in self.states.values())
        if able and not draining and len([s for s in self.states if self.states[s] == "serving"]) > self.replicas:
            self.states[self.rng.choice(able)] = "draining"

    def check(self) -> None:
        for block in self.committed:
            if not any(block in self.held[server] for server in self.group.servers):
                raise Lost(f"block {block} of {self.group}")

    def live(self) -> None:
        actions: list[tuple[Callable[[], None], int]] = [
            (self.write, 6), (self.begin_reading, 8), (self.end_reading, 8), (self.decide, 8), (self.lose, 2),
            (self.notice, 2), (self.drain, 1),
        ]  # fmt: skip
        for _ in range(STEPS):
            (action,) = self.rng.choices([a for a, _ in actions], [w for _, w in actions])
            action()
            self.check()


def live(number: int, runs: int) -> None:
    for run in range(runs):
        Life(random.Random(number + run), 3 if run % 3 else 2 + run % 4).live()


def test_no_block_is_ever_lost() -> None:
    live(seed("rows"), RUNS)


@pytest.mark.parametrize(
    ("name", "weaker"),
    [
        ("_may_go", lambda group, leaver, view, read: True),
        ("_may_go", lambda group, leaver, view, read: bool(read)),
    ],
    ids=["whoever leaves is gone at once", "one reader is enough"],
)
def test_without_a_rule_one_gets_lost(name: str, weaker: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, name, weaker)
    with pytest.raises(Lost):
        live(1, 3000)
