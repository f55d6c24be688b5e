"""How many groups each chunk server should have, and which to move for that. Pure.

The unit is a *slot*: one membership in one group's row. A server's target is its share of all slots by weight, but no
more than one slot in each group. A move takes a slot from who has the most above its target to who has the most below,
as long as that brings both closer, never into a more crowded failure domain, and of the groups that can move it takes
the one whose draw likes the new server best. So few groups move, and everybody ends within one slot of the target.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from metadata.placement import RANDOM, WEIGHTED, Candidate, Domains, Table, plan, score, weight_of

SLACK = 1.0  # slots: a difference between two servers that no move can make smaller
BYTES_SLACK = 1.5  # the same in bytes, which change all the time: no group moves for less


class Move(NamedTuple):
    """One slot of ``group`` goes from ``source`` to ``target``."""

    group: int
    source: int
    target: int


def targets(candidates: Sequence[Candidate], replicas: int, groups: int, strategy: str = WEIGHTED) -> dict[int, float]:
    """Return how many slots each server should have. What a heavy one cannot take goes to the others."""
    weights = {c.server: weight_of(c, strategy) for c in candidates}
    left = float(groups * min(replicas, sum(weight > 0.0 for weight in weights.values())))
    found = dict.fromkeys(weights, 0.0)
    open_servers = {server for server, weight in weights.items() if weight > 0.0}
    while open_servers:
        total = sum(weights[server] for server in open_servers)
        capped = {server for server in open_servers if left * weights[server] / total >= groups}
        if not capped:
            for server in open_servers:
                found[server] = left * weights[server] / total
            break
        for server in capped:
            found[server] = float(groups)
        left -= groups * len(capped)
        open_servers -= capped
    return found


def slots(rows: Sequence[Sequence[int]]) -> dict[int, int]:
    """Count the slots of every server."""
    counts: dict[int, int] = {}
    for row in rows:
        for server in row:
            counts[server] = counts.get(server, 0) + 1
    return counts


def loads(rows: Sequence[Sequence[int]], sizes: Sequence[float] | None = None) -> dict[int, float]:
    """Add up the sizes of every server's slots; without ``sizes`` each counts 1."""
    counts: dict[int, float] = {}
    for number, row in enumerate(rows):
        for server in row:
            counts[server] = counts.get(server, 0.0) + (1.0 if sizes is None else sizes[number])
    return counts


def moves(
    rows: Sequence[Sequence[int]],
    candidates: Sequence[Candidate],
    wanted: Mapping[int, float],
    limit: int,
    movable: Collection[int],
    takers: Collection[int] | None = None,
    sizes: Sequence[float] | None = None,
    slack: float = SLACK,
) -> list[Move]:
    """Return at most ``limit`` moves, at most one a group, of ``movable`` groups. ``rows``: who will have each group
    when everything under way is done. ``takers``: who may take more; None: all. ``sizes``: what each group's slots
    count, 1 on average."""
    by_id = {candidate.server: candidate for candidate in candidates}
    counts = loads(rows, sizes)
    surplus = {server: counts.get(server, 0.0) - wanted[server] for server in by_id}
    held: dict[int, set[int]] = {server: set() for server in by_id}
    for group in movable:
        for server in rows[group]:
            if server in held:
                held[server].add(group)
    found: list[Move] = []
    while len(found) < limit:
        move = _best(rows, by_id, surplus, held, takers, sizes, slack)
        if move is None:
            break
        found.append(move)
        size = 1.0 if sizes is None else sizes[move.group]
        surplus[move.source] -= size
        surplus[move.target] += size
        for server in rows[move.group]:
            held.get(server, set()).discard(move.group)
    return found


def _best(
    rows: Sequence[Sequence[int]], by_id: Mapping[int, Candidate], surplus: Mapping[int, float],
    held: Mapping[int, set[int]], takers: Collection[int] | None, sizes: Sequence[float] | None, slack: float,
) -> Move | None:
    largest = 1.0 if sizes is None else max(sizes, default=1.0)
    able = [server for server in surplus if by_id[server].weight > 0.0 and (takers is None or server in takers)]
    poor = sorted(able, key=lambda server: (surplus[server], server))
    for source in sorted(surplus, key=lambda server: (-surplus[server], server)):
        for target in poor:
            gap = surplus[source] - surplus[target]
            if gap <= slack:
                break
            groups = [g for g in held[source] if target not in rows[g] and _no_worse(rows[g], by_id, source, target)]
            if sizes is not None:
                groups = [g for g in groups if sizes[g] < gap]  # else the two would only change places
            if groups:
                near = sizes if sizes is not None and gap < 2 * largest else None  # so near that it matters which
                best = max(groups, key=lambda g: (
                    -abs(near[g] - gap / 2) if near is not None else 0.0, score(g, target, by_id[target].weight), -g
                ))
                return Move(best, source, target)
    return None


def _no_worse(row: Sequence[int], by_id: Mapping[int, Candidate], source: int, target: int) -> bool:
    """Whether the target's domains are no more crowded by the rest of the row than the source's."""
    domains = Domains()
    for server in row:
        if server != source and server in by_id:
            domains.place(by_id[server])
    return domains.crowding(by_id[target]) <= domains.crowding(by_id[source])


def ideal(candidates: Sequence[Candidate], replicas: int, groups: int, strategy: str = WEIGHTED) -> Table:
    """Return the table of a volume that holds nothing yet."""
    table = plan(candidates, replicas, groups, strategy)
    if strategy == RANDOM:
        return table
    wanted = targets(candidates, replicas, groups, strategy)
    rows = list(table)
    while found := moves(rows, candidates, wanted, groups, range(groups)):
        for group, source, target in found:
            rows[group] = tuple(target if server == source else server for server in rows[group])
    return tuple(rows)
