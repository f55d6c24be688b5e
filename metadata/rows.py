"""What happens to the row of a placement group when servers come, go, fill up and drain. Pure.

A row is an ordered list of servers. Some are *filling*: they take new writes, and read what is older from the others.
Some are *leaving*: another one has taken their place; no put counts on them any more. All others are *complete*. None
of these words promises that a server has every block, because a put that enough members took is done. What is promised
is that of the members that a put could have counted on, ``write_quorum`` had it. So whoever must know everything has to
read from so many that they meet every write quorum, and a server whose data are lost answers nothing.

A member leaves in three steps, each an entry that names the group's epoch:

1. A substitute joins, filling.
2. When it has read from a quorum it is complete, and in the same entry the one to go becomes leaving. The epoch of the
   group changed, so whatever was put before and not yet committed is refused and put again, without the leaving one.
3. When a write quorum of the others have read, after that, from the leaving one (or, where it is lost or out, from a
   quorum of the row), it is gone. It is not enough that the substitute has read: filling members took writes too.

``tests/sim/repair_explorer.py`` visits every interleaving of this at small scope.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from metadata.api import ServerRecord
from metadata.state.records import Group

Read = Mapping[int, frozenset[int]]
"""Who has everything that these others had when it asked them, all after the group's last change."""

OUT = "out"
DRAINING = "draining"


@dataclass(frozen=True)
class View:
    """The servers as the leader knows them now. ``silent``: not heard for a while."""

    replicas: int
    servers: Mapping[int, ServerRecord]
    silent: Collection[int] = ()

    @property
    def write_quorum(self) -> int:
        """How many durable copies a writer waits for."""
        return self.replicas // 2 + 1

    def out(self, server: int) -> bool:
        return self.servers[server].state == OUT

    def lost(self, server: int) -> bool:
        record = self.servers[server]
        return record.state == OUT and record.note == "lost"

    def living(self, server: int) -> bool:
        return not self.out(server) and server not in self.silent

    def staying(self, server: int) -> bool:
        """Whether a slot is meant to remain where it is."""
        return self.servers[server].state not in (OUT, DRAINING)

    def goes_first(self, server: int) -> int:
        """Whom a row with more members than it needs gives up first; 0: whoever is the best to move."""
        if self.lost(server):
            return 3
        return 2 if self.out(server) else int(self.servers[server].state == DRAINING)


def prospects(group: Group, view: View) -> tuple[int, ...]:
    """Who will have the group when everything under way is done."""
    return tuple([s for s in group.servers if s not in group.leaving and view.staying(s)])


def vacancies(group: Group, view: View) -> int:
    """How many substitutes must join now: so that there will be enough copies, and so that writers find enough members
    that live."""
    staying = prospects(group, view)
    living = sum(view.living(server) for server in group.servers if server not in group.leaving)
    return max(view.replicas - len(staying), view.write_quorum - living, 0)


def joined(group: Group, server: int, epoch: int) -> Group:
    """The row with a substitute. A row that has no member yet has nothing to read from."""
    filling = (*group.filling, server) if group.servers else ()
    return Group((*group.servers, server), epoch, filling, group.leaving)


def settled(group: Group, view: View, read: Read, prefer: Callable[[int], float], epoch: int) -> Group | None:
    """The row after whatever may happen to it now, None where that is nothing.

    ``prefer``: of several that could go, all of them healthy, the one with the highest number goes.
    """
    filling = tuple([s for s in group.filling if not view.out(s) and not _filled(group, s, view, read)])
    leaving = group.leaving + tuple([s for s in group.filling if view.out(s)])
    gone = {s for s in group.leaving if _may_go(group, s, view, read)}
    complete = [s for s in group.servers if s not in filling and s not in leaving]
    while (leaver := _surplus(complete, view, prefer)) is not None:
        complete.remove(leaver)
        leaving += (leaver,)
    after = Group(
        tuple([s for s in group.servers if s not in gone]), epoch, filling, tuple([s for s in leaving if s not in gone])
    )
    same = (after.servers, after.filling, after.leaving) == (group.servers, group.filling, group.leaving)
    return None if same else after


def _surplus(complete: list[int], view: View, prefer: Callable[[int], float]) -> int | None:
    """Whom the row can spare: there are enough complete ones without."""
    if len(complete) <= view.replicas:
        return None
    leaver = max(complete, key=lambda server: (view.goes_first(server), prefer(server), server))
    healthy = not view.goes_first(leaver)
    if healthy and any(not view.living(server) for server in complete):
        return None  # the silent one may come back, or be out; then it is clear who goes
    if sum(view.living(server) for server in complete if server != leaver) < view.write_quorum:
        return None
    return leaver


def _filled(group: Group, server: int, view: View, read: Read) -> bool:
    """Whether a filling member has read from enough complete ones."""
    complete = {s for s in group.servers if s not in group.filling}
    able = {s for s in complete if not view.lost(s)}
    needed = min(len(complete) - view.write_quorum + 1, len(able))
    return needed == 0 or (server in read and len(read[server] & able) >= needed)


def _may_go(group: Group, leaver: int, view: View, read: Read) -> bool:
    """Whether nothing is only on the leaving one: enough others have read from it, or from a quorum without it."""
    able = {s for s in group.servers if not view.lost(s)}
    needed = min(len(group.servers) - view.write_quorum + 1, len(able))
    enough = 0
    for reader in group.servers:
        alone = not any(view.living(other) for other in group.servers if other != reader)
        if reader in group.filling or reader in group.leaving or not (alone or reader in read):
            continue
        known = read.get(reader, frozenset()) | {reader}
        enough += leaver in known if view.living(leaver) else len(known & able) >= needed
    return enough >= view.write_quorum


def readings(group: Group, view: View, read: Read, reconcile: bool) -> dict[int, tuple[int, ...]]:
    """Who has to read from whom: filling members; everybody, while somebody leaves or the members differ."""
    living = [server for server in group.servers if view.living(server)]
    wanted: dict[int, tuple[int, ...]] = {}
    for server in living:
        all_read = reconcile or bool(group.leaving)
        if server in group.filling or (all_read and server not in group.leaving):
            sources = tuple([source for source in living if source != server])
            if sources:
                wanted[server] = sources
    return wanted


def live_copies(group: Group, view: View) -> int:
    """How many living members have what is in the group, as far as their state tells."""
    return sum(view.living(server) for server in group.servers if server not in group.filling)
