"""Who has which share of a volume's groups, and who should: the volume's strategy, applied to a table that is in use.

- ``weighted``: what the groups store is spread by the weights, in bytes as far as it is known. A group counts for what
  it stores beside the others and a little more, so that groups without data are spread too.
- ``round-robin``: everybody has the same number of groups, whatever the weights, to within one.
- ``random``: each group belongs to those who draw best for it, all with the same chance; shares are as chance makes
  them.

Whatever is not as it should be changes group by group: the new member takes the writes at once, and the data follow.
Pure; one is made for each decision and kept up to date while changes are made up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Optional

from metadata.api import ServerRecord
from metadata.balance import BYTES_SLACK, SLACK, Move, loads, moves, targets
from metadata.placement import RANDOM, WEIGHTED, Candidate, Domains, choose, score, weight_of
from metadata.rows import View, prospects
from metadata.state.records import Group


class Draws:
    """Who draws best for each group, remembered for as long as the servers are the same."""

    def __init__(self) -> None:
        self._key: object = None
        self._rows: dict[int, tuple[int, ...]] = {}

    def of(self, number: int, candidates: Sequence[Candidate], count: int) -> tuple[int, ...]:
        """Return the servers that a group should have by chance."""
        key = tuple(candidates), count
        if key != self._key:
            self._key, self._rows = key, {}
        if number not in self._rows:
            self._rows[number] = choose(number, candidates, count, strategy=RANDOM)
        return self._rows[number]


class Shares:
    """Loads and targets of everybody, in groups of the usual size. ``sizes``: what each group stores, where that is
    known.

    A row with more members than it needs will lose some: here it is decided who, so that all rows together come close
    to what they should be."""

    def __init__(
        self, groups: Sequence[Group], servers: Sequence[ServerRecord], strategy: str, view: View,
        candidates: Sequence[Candidate], sizes: Optional[Sequence[int]], draws: Draws,
    ) -> None:
        self.candidates = candidates
        self._view = view
        self._strategy = strategy
        self._draws = draws
        staying = [record for record in servers if view.staying(record.server)]
        self.by_id = {r.server: Candidate(r.server, r.weight, r.host, r.rack) for r in staying}
        self._able = list(self.by_id.values())
        self.targets = targets(self._able, view.replicas, len(groups), strategy)
        self._total_bytes = sum(sizes or ())
        self._sizes = relative(sizes) if sizes is not None and strategy == WEIGHTED else None
        rows = [prospects(group, view) for group in groups]
        self._loads = loads(rows, self._sizes)
        self._leavers: dict[int, set[int]] = {}
        for number, (group, row) in enumerate(zip(groups, rows)):
            for _ in range(len(row) - view.replicas):
                gone = self._leavers.setdefault(number, set())
                old = [s for s in row if s not in group.filling and s not in gone]
                if not old:
                    break
                leaver = max(old, key=lambda s: (self._strays(s, number), self.surplus(s), s))
                gone.add(leaver)
                self._loads[leaver] -= self._size(number)

    def _size(self, number: int) -> float:
        return self._sizes[number] if self._sizes is not None else 1.0

    def _strays(self, server: int, number: int) -> bool:
        """Whether a server has a group that others have drawn."""
        return self._strategy == RANDOM and server not in self._draws.of(number, self._able, self._view.replicas)

    def future(self, number: int, group: Group) -> tuple[int, ...]:
        """Who will have a group when everything under way is done."""
        gone = self._leavers.get(number, ())
        return tuple([server for server in prospects(group, self._view) if server not in gone])

    def preference(self, number: int) -> Callable[[int], float]:
        """Whom the row of this group gives up rather."""
        gone = self._leavers.get(number, ())
        return lambda server: math.inf if server in gone else self.surplus(server)

    def surplus(self, server: int) -> float:
        """Load above the target; by chance there is no target."""
        if self._strategy == RANDOM:
            return 0.0
        return self._loads.get(server, 0.0) - self.targets.get(server, 0.0)

    def target_bytes(self, server: int) -> float:
        """What a server should store of all that is stored."""
        whole = sum(self.targets.values())
        return self._view.replicas * self._total_bytes * self.targets.get(server, 0.0) / whole if whole else 0.0

    def takes(self, server: int, number: int) -> None:
        """Note that a server gets one more group."""
        self._loads[server] = self._loads.get(server, 0.0) + self._size(number)

    def best(self, number: int, group: Group) -> int | None:
        """Who is to join a row: in the least crowded domain, of those the one that has the least of its share."""
        domains = Domains()
        for server in prospects(group, self._view):
            domains.place(self.by_id[server])
        free = [c for c in self.candidates if c.server not in group.servers and c.weight > 0.0]
        if not free:
            return None

        def rank(candidate: Candidate) -> tuple[int, int, int, float]:
            drawn = score(number, candidate.server, weight_of(candidate, self._strategy))
            return (*domains.crowding(candidate), int(self.surplus(candidate.server)), -drawn)

        return min(free, key=rank).server

    def moves(self, groups: Sequence[Group], limit: int, movable: Collection[int]) -> list[Move]:
        """Return at most ``limit`` moves that bring the shares closer to what they should be."""
        rows = [self.future(number, group) for number, group in enumerate(groups)]
        takers = {candidate.server for candidate in self.candidates}
        if self._strategy != RANDOM:
            slack = SLACK if self._sizes is None else BYTES_SLACK
            return moves(rows, self._able, self.targets, limit, movable, takers, self._sizes, slack)
        found: list[Move] = []
        for number in sorted(movable):
            drawn = self._draws.of(number, self._able, self._view.replicas)
            strays = [server for server in rows[number] if server not in drawn]
            absent = [server for server in drawn if server not in rows[number] and server in takers]
            if strays and absent and len(found) < limit:
                found.append(Move(number, strays[0], absent[0]))
        return found


GROUND_BYTES = 64 << 10  # what a group without data counts for


def relative(sizes: Sequence[int]) -> list[float]:
    """Return how much each group counts; 1 on average."""
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return [(size + GROUND_BYTES) / (mean + GROUND_BYTES) for size in sizes]
