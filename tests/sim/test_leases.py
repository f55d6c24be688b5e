"""Read leases on a fake clock and a slow network, against a checker that knows the truth.

Leaders run the production table. Every object is a counter: a mutation raises it, a read returns it from the
session's cache or from the leader. Whatever is read must be at least as new as every mutation and every read that
ended before the read began. Each rule is also taken out once, and the checker must notice.

What mounts change by themselves under exclusive leases is played with whole mounts, in ``test_mounts_sim``.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

import pytest

from metadata.leases import LeaseTable, Recall
from tests.harness import LONG, seed

LEASE_S = 10.0
MARGIN_S = 0.5
OBJECTS = range(3)
WEAKENINGS = (
    "no recall", "late grant cached", "no grace", "clock ignored", "answer before acknowledgement", "shown early",
    "maker forgotten", "any word clears",
)  # fmt: skip


class World:
    """A leader at a time, its predecessors forgotten; sessions; a network; and the truth."""

    def __init__(self, rng: random.Random, without: str = "") -> None:
        self.rng = rng
        self.without = without
        self.now_s = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.value = dict.fromkeys(OBJECTS, 0)  # replicated: what was applied
        self.seen = dict.fromkeys(OBJECTS, 0)  # the newest that anybody was shown or told is done
        self.sessions = [Session(self, number) for number in (1, 2, 3)]
        self.term = 0
        self.leader = self.elect()
        self.reads = self.cached = self.mutations = 0

    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now_s + delay_s, next(self.order), what))

    def elect(self) -> Leader:
        self.term += 1
        self.leader = Leader(self, self.term)
        return self.leader

    def lag(self) -> float:
        """How long a message is under way: mostly short, sometimes longer than a lease."""
        return self.rng.choice((0.001, 0.01, 0.1, 1.0)) * self.rng.random() + (self.rng.random() < 0.02) * 12

    def run(self, events: int) -> None:
        rng = self.rng
        for _ in range(events):
            self.at(rng.expovariate(4.0), partial(rng.choice(self.sessions).act, rng.choice(OBJECTS)))
            if rng.random() < 0.004:
                self.at(0, lambda: self.elect() and None)
            if rng.random() < 0.02:
                stopped = rng.choice(self.sessions)
                stopped.stopped_until_s = max(stopped.stopped_until_s, self.now_s + rng.uniform(0, 25))
            until_s = self.now_s + rng.expovariate(4.0)
            while self.queue and self.queue[0][0] <= until_s:
                self.now_s, _, what = heapq.heappop(self.queue)
                what()
            self.now_s = until_s
            self.leader.table.lapse(self.now_s)

    def check(self, ino: int, shown: int, floor: int) -> None:
        assert shown >= floor, f"object {ino}: {shown} was read where {floor} had been seen"
        self.seen[ino] = max(self.seen[ino], shown)


class Leader:
    def __init__(self, world: World, term: int) -> None:
        self.world = world
        self.arrives_s: dict[int, float] = {}
        self.table = LeaseTable(LEASE_S, MARGIN_S, 1000)
        self.table.begin(term, [s.number for s in world.sessions] if term > 1 else [], world.now_s)
        if world.without == "no grace":
            for number in (1, 2, 3):
                self.table.clear(number)

    def tell(self, session: Session, what: Callable[[], None]) -> None:
        """What one leader sends to one session arrives in order: it is one connection."""
        world = self.world
        arrives_s = max(world.now_s + world.lag(), self.arrives_s.get(session.number, 0.0))
        self.arrives_s[session.number] = arrives_s
        world.at(arrives_s - world.now_s, what)

    def gone(self) -> bool:
        return self.world.leader is not self

    def hear(self, session: Session, term: int) -> None:
        """An unknown or earlier term is answered with this one; the right one is a promise."""
        if term == self.table.term:
            self.table.clear(session.number)
        elif self.world.without == "any word clears":
            self.table.clear(session.number)
            self.tell(session, partial(session.adopt, self.table.term))
        else:
            self.tell(session, partial(session.adopt, self.table.term))

    def read(self, session: Session, ino: int, term: int, reply: Callable[[int, int], None]) -> None:
        if self.gone():
            return
        self.hear(session, term)
        self.answer(session, ino, reply)

    def answer(self, session: Session, ino: int, reply: Callable[[int, int], None]) -> None:
        if self.gone():
            return
        if self.world.without != "shown early":
            if self.table.in_grace:
                return self.table.wait_grace(partial(self.answer, session, ino, reply))
            if self.world.without != "maker forgotten":
                self.send(self.table.demand([ino], session.number))
            if debts := self.table.debts([ino], session.number):
                return self.table.wait(debts, partial(self.answer, session, ino, reply))
        granted = self.table.grant(session.number, [ino], self.world.now_s)
        self.tell(session, partial(reply, self.world.value[ino], self.table.term if granted else 0))

    def mutate(self, session: Session, ino: int, term: int, reply: Callable[[int], None]) -> None:
        if self.gone():
            return
        self.hear(session, term)
        self.world.value[ino] += 1
        value = self.world.value[ino]
        recalls = self.table.change((ino,), session.number, self.world.value[ino])
        self.send(recalls)
        self.settle(session, ino, value, reply)

    def send(self, recalls: list[Recall]) -> None:
        for number, recall, inos in recalls:
            other = self.world.sessions[number - 1]
            if self.world.without != "no recall":
                self.tell(other, partial(other.recalled, self, recall, inos))
            else:
                self.table.acknowledge(number, recall)

    def settle(self, session: Session, ino: int, value: int, reply: Callable[[int], None]) -> None:
        if self.gone():
            return
        if self.world.without != "answer before acknowledgement":
            if self.table.in_grace:
                return self.table.wait_grace(partial(self.settle, session, ino, value, reply))
            if debts := self.table.debts([ino], session.number):
                return self.table.wait(debts, partial(self.settle, session, ino, value, reply))
        self.tell(session, partial(reply, value))


class Session:
    """A mount, reduced to its cache."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.cache: dict[int, int] = {}
        self.changes = dict.fromkeys(OBJECTS, 0)  # recalls and own mutations: answers from before are not cached
        self.term = 0
        self.until_s = 0.0
        self.stopped_until_s = 0.0

    def expire(self) -> None:
        if self.cache and self.world.now_s >= self.until_s and self.world.without != "clock ignored":
            self.drop()

    def drop(self) -> None:
        self.cache.clear()
        for ino in OBJECTS:
            self.changes[ino] += 1

    def adopt(self, term: int) -> None:
        """Learn of a leader. Sent on one connection before anything that it grants."""
        if self.world.now_s < self.stopped_until_s:
            return self.world.at(self.stopped_until_s - self.world.now_s, partial(self.adopt, term))
        if term > self.term:
            self.drop()
            self.term, self.until_s = term, 0.0

    def act(self, ino: int) -> None:
        world = self.world
        if world.now_s < self.stopped_until_s:
            return world.at(self.stopped_until_s - world.now_s, partial(self.act, ino))
        self.expire()
        floor = world.seen[ino]
        if world.rng.random() < 0.2:
            world.mutations += 1
            world.at(world.lag(), partial(world.leader.mutate, self, ino, self.term, partial(self.mutated, ino)))
        elif ino in self.cache:
            world.cached += 1
            world.check(ino, self.cache[ino], floor)
        else:
            world.reads += 1
            reply = partial(self.got, ino, floor, world.now_s, self.changes[ino])
            world.at(world.lag(), partial(world.leader.read, self, ino, self.term, reply))

    def mutated(self, ino: int, value: int) -> None:
        self.changes[ino] += 1
        self.cache.pop(ino, None)
        self.world.seen[ino] = max(self.world.seen[ino], value)

    def got(self, ino: int, floor: int, sent_s: float, changes: int, value: int, term: int) -> None:
        if self.world.now_s < self.stopped_until_s:
            delay_s = self.stopped_until_s - self.world.now_s
            return self.world.at(delay_s, partial(self.got, ino, floor, sent_s, changes, value, term))
        self.expire()
        self.world.check(ino, value, floor)
        if term != self.term:
            return
        fresh = changes == self.changes[ino] or self.world.without == "late grant cached"
        self.until_s = max(self.until_s, sent_s + LEASE_S)
        self.expire()
        if fresh:
            self.cache[ino] = value

    def recalled(self, leader: Leader, number: int, inos: tuple[int, ...]) -> None:
        if self.world.now_s < self.stopped_until_s:
            delay_s = self.stopped_until_s - self.world.now_s
            return self.world.at(delay_s, partial(self.recalled, leader, number, inos))
        for ino in inos:
            self.cache.pop(ino, None)
            self.changes[ino] += 1
        self.world.at(self.world.lag(), partial(leader.table.acknowledge, self.number, number))


def play(number: int, without: str = "", events: int = 1500) -> World:
    world = World(random.Random(number), without)
    world.run(events)
    return world


@pytest.mark.timeout(1200)
def test_nothing_stale_is_ever_read() -> None:
    base = seed("leases")
    reads = cached = mutations = 0
    for number in range(2000 if LONG else 60):
        world = play(base + number)
        reads, cached, mutations = reads + world.reads, cached + world.cached, mutations + world.mutations
    print(f"{reads} reads at the leader, {cached} from the cache, {mutations} mutations")
    assert cached > 1000 and mutations > 1000


@pytest.mark.parametrize("without", WEAKENINGS)
def test_each_rule_is_needed(without: str) -> None:
    for number in range(200):
        try:
            play(number, without)
        except AssertionError as error:
            print(f"seed {number}: {error}")
            return
    raise AssertionError(f"nothing was noticed without: {without}")
