"""Orders to chunk servers under way, and what their reports say. Pure; forgotten with the leadership.

An order is given again with every heartbeat until its report says that it is done. Its number is this leadership's, so
that a report of an earlier one is taken for nothing else. An order is only good for the epoch of its group that it
was made at, and for the sources that were there: when either changes it is replaced by a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from node.wire.limits import HEAL_GROUPS_MAX, HEAL_GROUPS_PER_SERVER_MAX, ORDERS_MAX
from storage.api import DropGroup, DropReport, GroupReport, Order, Report, Scrub, ScrubReport, SyncGroup

TERM_SHIFT = 32


@dataclass(slots=True)
class Task:
    """One server is to read one group from these sources."""

    order: int
    epoch: int  # of the group
    sources: frozenset[int]
    given: bool = False  # it counts against the bounds
    done: bool = False
    missing: int = 0  # blocks, as last reported


Key = tuple[int, int]  # server, group


class OrderBook:
    """What every server is to do."""

    def __init__(self, term: int) -> None:
        self._last = term << TERM_SHIFT
        self.tasks: dict[Key, Task] = {}
        self._drops: dict[Key, DropGroup] = {}
        self._scrub: Scrub | None = None
        self.scrubs: dict[int, ScrubReport] = {}
        self.pulled = 0  # blocks, in this leadership
        self._pulled: dict[int, int] = {}

    def _number(self) -> int:
        self._last += 1
        return self._last

    # --- what is wanted --------------------------------------------------------------------------------------

    def want(self, wanted: Iterable[tuple[int, int, int, frozenset[int]]]) -> None:
        """Set what is to be read now: (server, group, the group's epoch, sources), the most urgent first.

        So many are given at once as the bounds allow; who was given stays so until it is done."""
        tasks: dict[Key, Task] = {}
        busy: dict[int, int] = {}
        waiting: list[tuple[int, Task]] = []
        under_way = 0
        for server, group, epoch, sources in wanted:
            task = self.tasks.get((server, group))
            if task is None or (task.epoch, task.sources) != (epoch, sources):
                task = Task(self._number(), epoch, sources, given=task is not None and task.given and not task.done)
            tasks[server, group] = task
            if task.given and not task.done:
                under_way += 1
                busy[server] = busy.get(server, 0) + 1
            elif not task.given:
                waiting.append((server, task))
        for server, task in waiting:
            if under_way < HEAL_GROUPS_MAX and busy.get(server, 0) < HEAL_GROUPS_PER_SERVER_MAX:
                task.given = True
                under_way += 1
                busy[server] = busy.get(server, 0) + 1
        self.tasks = tasks

    def again(self, server: int, group: int) -> None:
        """What a server has read of a group is too old: have it read anew."""
        self.tasks.pop((server, group), None)

    def drop(self, wanted: Mapping[Key, int], groups: int) -> None:
        """Set what servers are to give up: (server, group) -> the table's epoch."""
        self._drops = {
            key: self._drops.get(key) or DropGroup(self._number(), key[1], groups, epoch)
            for key, epoch in wanted.items()
        }

    def scrub(self, bytes_per_s: int, restart: bool) -> None:
        """Have every server scrub."""
        self._scrub = Scrub(self._number(), bytes_per_s, restart)

    # --- what is told and heard ------------------------------------------------------------------------------

    def orders_for(self, server: int, groups: int) -> tuple[Order, ...]:
        """What to tell a server now, at most ORDERS_MAX."""
        found: list[Order] = [
            SyncGroup(task.order, group, groups, task.epoch, tuple(sorted(task.sources)))
            for (target, group), task in self.tasks.items()
            if target == server and task.given and not task.done
        ]
        if self._scrub is not None:
            heard = self.scrubs.get(server)
            if heard is None or heard.order != self._scrub.order:
                found.insert(0, self._scrub)
        found += [order for (target, _), order in self._drops.items() if target == server]
        return tuple(found[:ORDERS_MAX])

    def reported(self, server: int, reports: Sequence[Report]) -> None:
        """Take the reports of a server; those that answer no order of now are nothing."""
        for report in reports:
            if isinstance(report, ScrubReport):
                self.scrubs[server] = report
            elif isinstance(report, DropReport):
                order = self._drops.get((server, report.group))
                if order is not None and order.order == report.order and not report.left:
                    del self._drops[server, report.group]  # what a late put brings is dropped by another order
            elif isinstance(report, GroupReport):
                task = self.tasks.get((server, report.group))
                if task is not None and task.order == report.order:
                    task.done = task.done or report.complete
                    task.missing = 0 if task.done else report.missing
                    self.pulled += max(0, report.pulled - self._pulled.get(report.order, 0))
                    self._pulled[report.order] = report.pulled
                    if task.done:
                        self._pulled.pop(report.order, None)

    def read_by(self, group: int, epoch: int, members: Iterable[int]) -> dict[int, frozenset[int]]:
        """Who has read a group, and from whom, since its epoch."""
        found = {}
        for server in members:
            task = self.tasks.get((server, group))
            if task is not None and task.done and task.epoch == epoch:
                found[server] = task.sources
        return found

    @property
    def scrub_order(self) -> int:
        """The number of the last Scrub, 0: none in this leadership."""
        return self._scrub.order if self._scrub is not None else 0

    def under_way(self) -> int:
        """Orders to read that were given and are not done."""
        return sum(task.given and not task.done for task in self.tasks.values())
