"""Which chunk servers hold a placement group. Pure: servers in, table out.

A block's placement group is the first bytes of its name modulo the length of the table; a group's servers are chosen
by weighted rendezvous hashing: each server draws a score from (group, server) and the highest win, so a server that
joins or leaves moves only its own share. Copies go to different failure domains as far as there are any: first
another rack, then another host, then another server of the same host.

``plan`` computes the ideal table. ``revise`` changes a table under data that nothing has moved yet: whoever holds a
group and may stay does stay, in the same order, and only vacancies are filled. Blocks are looked for where the table
says, so a table must never lose the last server that holds a block just because somebody else draws a better score.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from node.wire.limits import PLACEMENT_GROUPS_MAX, PLACEMENT_GROUPS_MIN, PLACEMENT_GROUPS_PER_SERVER

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk server as placement sees it. No host: a host of its own; no rack: the one rack of all such servers."""

    server: int
    weight: float
    host: str = ""
    rack: str = ""


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


def choose(group: int, candidates: Sequence[Candidate], count: int, keep: Sequence[int] = ()) -> tuple[int, ...]:
    """Return at most ``count`` servers for a group: ``keep`` first, as they are, then the best draws.

    Each choice takes the server whose rack, then whose host, has the fewest copies so far; the draw decides the rest.
    """
    by_id = {candidate.server: candidate for candidate in candidates}
    chosen = [server for server in keep if server in by_id][:count]
    draws = {c.server: score(group, c.server, c.weight) for c in candidates if c.weight > 0.0}
    racks: dict[str, int] = {}
    hosts: dict[tuple[str, str], int] = {}

    def place(candidate: Candidate) -> None:
        racks[candidate.rack] = racks.get(candidate.rack, 0) + 1
        host = _host(candidate)
        hosts[host] = hosts.get(host, 0) + 1

    for server in chosen:
        place(by_id[server])
    free = [by_id[server] for server in draws if server not in chosen]
    while free and len(chosen) < count:
        best = min(
            free,
            key=lambda c: (racks.get(c.rack, 0), hosts.get(_host(c), 0), -draws[c.server], c.server),
        )
        free.remove(best)
        chosen.append(best.server)
        place(best)
    return tuple(chosen)


def plan(candidates: Sequence[Candidate], replicas: int, groups: int) -> Table:
    """Return the ideal table. Groups are shorter than ``replicas`` while there are fewer servers than that."""
    assert groups & (groups - 1) == 0, groups
    return tuple(choose(group, candidates, replicas) for group in range(groups))


def revise(table: Table, candidates: Sequence[Candidate], replicas: int, holders: Collection[int] = ()) -> Table:
    """Return ``table`` with its vacancies filled and nobody displaced.

    ``candidates`` may take new groups. ``holders`` may not (draining, full, not heard from) but keep what they have,
    because what they hold is nowhere else until somebody copied it. Servers in neither are dropped.
    """
    known = {candidate.server for candidate in candidates}
    rows = []
    for group, row in enumerate(table):
        stay = tuple(server for server in row if server in known or server in holders)
        guests = tuple(server for server in stay if server not in known)
        room = max(replicas - len(guests), 0)
        chosen = choose(group, candidates, room, keep=tuple(server for server in stay if server in known))
        added = tuple(server for server in chosen if server not in stay)
        rows.append(tuple(server for server in stay if server in guests or server in chosen) + added)
    return tuple(rows)


def _host(candidate: Candidate) -> tuple[str, str]:
    return candidate.rack, candidate.host or f"#{candidate.server}"
