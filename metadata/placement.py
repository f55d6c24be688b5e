"""Which chunk servers hold a placement group. Pure: servers in, table out.

A block's placement group is the first bytes of its name modulo the length of the table; which servers a group has is
the volume's *strategy*:

- ``weighted`` (the usual one): weighted rendezvous hashing. Each server draws a score from (group, server) and the
  highest win, so a server that joins or leaves moves only its own share. A draw over some dozens of groups is uneven,
  so ``metadata.balance`` then gives a few groups to others.
- ``round-robin``: one server after the other, whatever their weights.
- ``random``: every server with the same chance in each group; shares are as uneven as chance makes them.

Copies go to different failure domains as far as there are any: first another rack, then another host, then another
server of the same host. ``plan`` makes the table of a volume that holds nothing; one that holds data changes row by row
(``metadata.rows``, ``metadata.balance``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from node.wire.limits import PLACEMENT_GROUPS_MAX, PLACEMENT_GROUPS_MIN, PLACEMENT_GROUPS_PER_SERVER

Table = tuple[tuple[int, ...], ...]

WEIGHTED, ROUND_ROBIN, RANDOM = "weighted", "round-robin", "random"
STRATEGIES = frozenset({WEIGHTED, ROUND_ROBIN, RANDOM})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk server as placement sees it. No host: a host of its own; no rack: the one rack of all such servers."""

    server: int
    weight: float
    host: str = ""
    rack: str = ""


class Domains:
    """How many copies of one group each failure domain has."""

    def __init__(self) -> None:
        self._racks: dict[str, int] = {}
        self._hosts: dict[tuple[str, str], int] = {}

    def place(self, candidate: Candidate) -> None:
        host = _host(candidate)
        self._racks[candidate.rack] = self._racks.get(candidate.rack, 0) + 1
        self._hosts[host] = self._hosts.get(host, 0) + 1

    def crowding(self, candidate: Candidate) -> tuple[int, int]:
        """Copies in its rack and on its host; the smaller, the better."""
        return self._racks.get(candidate.rack, 0), self._hosts.get(_host(candidate), 0)


def group_count(servers: int) -> int:
    """Return how many placement groups a new volume gets: a power of two, enough for an even spread."""
    wanted = max(PLACEMENT_GROUPS_MIN, servers * PLACEMENT_GROUPS_PER_SERVER)
    return min(PLACEMENT_GROUPS_MAX, 1 << (wanted - 1).bit_length())


def group_of(block: bytes, groups: int) -> int:
    """Return the placement group of a block's name."""
    return int.from_bytes(block[:8], "big") % groups


def score(group: int, server: int, weight: float) -> float:
    """Return a server's draw for a group: higher wins, in proportion to the weight over many groups."""
    assert weight > 0.0
    drawn = int.from_bytes(blake2b(b"%d/%d" % (group, server), digest_size=8).digest(), "big")
    uniform = (drawn + 1) / ((1 << 64) + 1)  # in (0, 1): a logarithm of 0 or a division by 0 cannot happen
    return weight / -math.log(uniform) if uniform < 1.0 else math.inf


def weight_of(candidate: Candidate, strategy: str) -> float:
    """What counts as a server's weight: only ``weighted`` looks at it, but for 0, which takes nothing."""
    return candidate.weight if strategy == WEIGHTED else float(candidate.weight > 0)


def choose(
    group: int, candidates: Sequence[Candidate], count: int, keep: Sequence[int] = (), strategy: str = WEIGHTED
) -> tuple[int, ...]:
    """Return at most ``count`` servers for a group: ``keep`` first, as they are, then the best draws.

    Each choice takes the server whose rack, then whose host, has the fewest copies so far; the draw decides the rest.
    """
    by_id = {candidate.server: candidate for candidate in candidates}
    chosen = [server for server in keep if server in by_id][:count]
    weights = {c.server: weight_of(c, strategy) for c in candidates}
    draws = {server: score(group, server, weight) for server, weight in weights.items() if weight > 0.0}
    domains = Domains()
    for server in chosen:
        domains.place(by_id[server])
    free = [by_id[server] for server in draws if server not in chosen]
    while free and len(chosen) < count:
        best = min(free, key=lambda c: (*domains.crowding(c), -draws[c.server], c.server))
        free.remove(best)
        chosen.append(best.server)
        domains.place(best)
    return tuple(chosen)


def plan(candidates: Sequence[Candidate], replicas: int, groups: int, strategy: str = WEIGHTED) -> Table:
    """Return the ideal table. Groups are shorter than ``replicas`` while there are fewer servers than that."""
    assert groups & (groups - 1) == 0, groups
    if strategy == ROUND_ROBIN:  # numbers without gaps, so that the circle is even
        ranked = sorted(candidates, key=lambda c: c.server)
        places = {place: c for place, c in enumerate(ranked)}
        return tuple(_circle(group, places, replicas) for group in range(groups))
    return tuple(choose(group, candidates, replicas, strategy=strategy) for group in range(groups))


def _circle(group: int, places: dict[int, Candidate], count: int) -> tuple[int, ...]:
    """The servers behind place ``group`` on the circle, each the next one whose domains are least crowded."""
    able = [places[(group + step) % len(places)] for step in range(len(places))]
    free = [candidate for candidate in able if candidate.weight > 0.0]
    chosen: list[int] = []
    domains = Domains()
    while free and len(chosen) < count:
        best = min(free, key=domains.crowding)  # the first of the best: circle order
        free.remove(best)
        chosen.append(best.server)
        domains.place(best)
    return tuple(chosen)


def _host(candidate: Candidate) -> tuple[str, str]:
    return candidate.rack, candidate.host or f"#{candidate.server}"
