"""Healing as the leader decides it: states of servers, changes of rows, orders to read, what is under-replicated.

The rules of one row are in ``metadata.rows``, those of shares in ``metadata.balance``. Here they are applied to all
groups with what heartbeats, reports and digests tell. Pure: time comes in; entries and orders come out. What is
remembered begins with a leadership and ends with it; whatever must not be forgotten is in the rows themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from metadata.api import HealingReply, ServerHealing, ServerRecord
from metadata.balance import Move, slots
from metadata.placement import Candidate
from metadata.rows import DRAINING, OUT, View, joined, live_copies, readings, settled, vacancies
from metadata.server.census import Census
from metadata.server.fleet import Fleet
from metadata.server.orders import OrderBook
from metadata.server.shares import Draws, Shares
from metadata.state.command import SetServerState, SetTable, TableItem
from metadata.state.records import Group
from node.wire.errors import Code, FsError
from node.wire.limits import HEAL_AGAIN_ASKS, HEAL_ASK_S, HEAL_MOVES_MAX, ROW_SERVERS_MAX, TABLE_ITEMS_MAX


@dataclass(frozen=True)
class Volume:
    """What is replicated, as of now."""

    replicas: int
    strategy: str
    pg_epoch: int
    groups: Sequence[Group]
    servers: Sequence[ServerRecord]


class Healing:
    """One leadership's healing."""

    def __init__(self, term: int, now_s: float, *, noout_s: float, ask_s: float = HEAL_ASK_S) -> None:
        self.orders = OrderBook(term)
        self.census = Census()
        self._noout_s = noout_s
        self._again_s = HEAL_AGAIN_ASKS * ask_s
        self._reconcile: dict[int, float] = {}  # groups whose members shall read from each other, since when
        self._draws = Draws()
        self._since_s = now_s
        self.counts = {"suspect": 0, "out": 0, "back": 0, "substitutes": 0, "moves": 0}

    # --- servers ---------------------------------------------------------------------------------------------

    def transitions(self, volume: Volume, fleet: Fleet, now_s: float) -> list[SetServerState]:
        """The changes of servers' states that are due."""
        found = []
        rows = slots([group.servers for group in volume.groups])
        for record in volume.servers:
            state, note = self._state(record, fleet, now_s, rows.get(record.server, 0))
            if (state, note) != (record.state, record.note):
                found.append(SetServerState(record.server, state, note=note))
        return found

    def _state(self, record: ServerRecord, fleet: Fleet, now_s: float, rows: int) -> tuple[str, str]:
        silent_s = fleet.silent_s(record.server, now_s)
        state = record.state
        if state == OUT:
            return ("serving", "") if not record.note and fleet.alive(record.server) else (state, record.note)
        if state == DRAINING and not rows:
            return OUT, "drained"
        if silent_s > fleet.silent_after_s + self._noout_s:
            return OUT, ""
        if silent_s > fleet.silent_after_s:
            return (state if state == DRAINING else "suspect"), ""
        if state in ("joining", "suspect") and fleet.alive(record.server):
            return "serving", ""
        return state, ""

    def view(self, volume: Volume, fleet: Fleet, now_s: float) -> View:
        """The servers as rows see them."""
        servers = {record.server: record for record in volume.servers}
        silent = {server for server in servers if fleet.silent_s(server, now_s) > fleet.silent_after_s}
        return View(volume.replicas, servers, silent)

    @staticmethod
    def candidates(volume: Volume, fleet: Fleet) -> list[Candidate]:
        """Who may take groups now."""
        return [
            Candidate(record.server, record.weight, record.host, record.rack)
            for record in volume.servers
            if record.state == "serving" and fleet.takes(record.server)
        ]

    # --- rows ------------------------------------------------------------------------------------------------

    def table_change(self, volume: Volume, view: View, candidates: Sequence[Candidate]) -> SetTable | None:
        """The next change of rows that is due: what reports allow, substitutes, and moves for balance."""
        shares = self._shares(volume, view, candidates)
        changed: dict[int, Group] = {}
        for number, group in enumerate(volume.groups):
            read = self.orders.read_by(number, group.changed, group.servers)
            after = settled(group, view, read, shares.preference(number), volume.pg_epoch + 1)
            if after is not None:
                changed[number] = after
        self._substitute(volume, view, shares, changed)
        self._balance(volume, view, shares, changed)
        items = tuple([TableItem(n, g.servers, g.filling, g.leaving) for n, g in sorted(changed.items())])
        return SetTable(volume.pg_epoch, items[:TABLE_ITEMS_MAX], keep=True) if items else None

    def _shares(self, volume: Volume, view: View, candidates: Sequence[Candidate]) -> Shares:
        sizes = self.census.sizes(volume.groups)
        return Shares(volume.groups, volume.servers, volume.strategy, view, candidates, sizes, self._draws)

    def _substitute(self, volume: Volume, view: View, shares: Shares, changed: dict[int, Group]) -> None:
        """Let substitutes join where copies or living members lack; those with the fewest living copies first."""
        drains = sum(bool(group.filling or group.leaving) for group in volume.groups)
        order = sorted(range(len(volume.groups)), key=lambda n: (live_copies(volume.groups[n], view), n))
        for number in order:
            group = changed.get(number, volume.groups[number])
            wanted = vacancies(group, view)
            if not wanted or len(group.servers) >= ROW_SERVERS_MAX:
                continue
            planned = all(view.living(server) for server in group.servers)  # a drain: nothing is short meanwhile
            if planned and live_copies(group, view) >= volume.replicas:
                if drains >= HEAL_MOVES_MAX:
                    continue
                drains += 1
            for _ in range(wanted):
                server = shares.best(number, group)
                if server is None:
                    break
                group = changed[number] = joined(group, server, volume.pg_epoch + 1)
                shares.takes(server, number)
                self.counts["substitutes"] += 1

    def _balance(self, volume: Volume, view: View, shares: Shares, changed: dict[int, Group]) -> None:
        """Move groups towards the weights: only while nothing else is under way but moves, and only so many."""
        if changed or any(vacancies(group, view) for group in volume.groups):
            return
        busy = sum(bool(group.filling or group.leaving) for group in volume.groups)
        for move in self.wanted_moves(volume, view, shares, HEAL_MOVES_MAX - busy):
            changed[move.group] = joined(volume.groups[move.group], move.target, volume.pg_epoch + 1)
            self.counts["moves"] += 1

    @staticmethod
    def wanted_moves(volume: Volume, view: View, shares: Shares, limit: int) -> list[Move]:
        """Which groups would move now."""
        calm = {n for n, g in enumerate(volume.groups) if not g.filling and not g.leaving and _whole(g, view)}
        return shares.moves(volume.groups, limit, calm) if limit > 0 else []

    # --- orders ----------------------------------------------------------------------------------------------

    def compare(self, volume: Volume, view: View, now_s: float) -> None:
        """A round of questions is over: have members that differ read from each other."""
        self.census.compare(volume.groups, view)
        for number in self.census.differing:
            since_s = self._reconcile.get(number)
            if since_s is None or now_s - since_s > self._again_s:
                self._reconcile[number] = now_s
                for server in volume.groups[number].servers:
                    self.orders.again(server, number)
        for number in list(self._reconcile):
            if number not in self.census.differing and now_s - self._reconcile[number] > self._again_s:
                del self._reconcile[number]

    def plan_orders(self, volume: Volume, view: View) -> None:
        """Set what every server is to read and to drop."""
        wanted = []
        for number, group in enumerate(volume.groups):
            read = self.orders.read_by(number, group.changed, group.servers)
            copies = live_copies(group, view)
            for server, sources in readings(group, view, read, number in self._reconcile).items():
                wanted.append((copies, number, server, group.changed, frozenset(sources)))
        wanted.sort(key=lambda item: item[:3])
        self.orders.want([(server, number, epoch, sources) for _, number, server, epoch, sources in wanted])
        drops = {}
        for server, number in self.census.strangers(volume.groups):
            group = volume.groups[number]
            known = view.servers.get(server)
            if not group.filling and not group.leaving and known is not None and known.note != "lost":
                drops[server, number] = volume.pg_epoch
        self.orders.drop(drops, len(volume.groups))

    # --- for people ------------------------------------------------------------------------------------------

    def under_replicated(self, volume: Volume, view: View) -> int:
        """How many copies of blocks there are too few, by groups."""
        return sum(self.census.missing(number, group, view) for number, group in enumerate(volume.groups))

    def progress(
        self, volume: Volume, view: View, candidates: Sequence[Candidate], records: Sequence[ServerRecord]
    ) -> HealingReply:
        """How far everything is; ``records`` are the servers with what heartbeats tell."""
        shares = self._shares(volume, view, candidates)
        rows = slots([group.servers for group in volume.groups])
        lacking = 0
        for number, group in enumerate(volume.groups):
            whole = max([self.census.stored_bytes(server, number) for server in group.servers], default=0)
            lacking += sum(max(0, whole - self.census.stored_bytes(server, number)) for server in group.filling)
        return HealingReply(
            tuple([self._server(record, rows, shares) for record in records if record.note != "lost"]),
            self.under_replicated(volume, view),
            sum(bool(group.filling or group.leaving) for group in volume.groups),
            len(self.wanted_moves(volume, view, shares, len(volume.groups))),
            lacking,
            self.orders.under_way(),
            self.orders.pulled,
            self.orders.scrub_order,
            volume.strategy,
        )

    def _server(self, record: ServerRecord, rows: Mapping[int, int], shares: Shares) -> ServerHealing:
        server, target = record.server, shares.targets.get(record.server, 0.0)
        stored_bytes, target_bytes = self.census.total_bytes(server), shares.target_bytes(server)
        found = ServerHealing(record, rows.get(server, 0), target, stored_bytes, target_bytes=target_bytes)
        scrub = self.orders.scrubs.get(server)
        if scrub is None:
            return found
        return replace(
            found, scrub_order=scrub.order, scrub_pass=scrub.number, scrub_passes=scrub.passes,
            scrub_done_bytes=scrub.done_bytes, scrub_total_bytes=scrub.total_bytes, scrub_damaged=scrub.damaged,
        )

    # --- what people ask for ---------------------------------------------------------------------------------

    @staticmethod
    def named(name: str, volume: Volume) -> ServerRecord:
        """The server of this name; of several stores that had it, the one that counts. FsError NOT_FOUND."""
        found = [record for record in volume.servers if record.name == name and record.note != "lost"]
        found = found or [record for record in volume.servers if record.name == name]
        if not found:
            raise FsError(Code.NOT_FOUND, f"the cluster has no chunk server {name}")
        return found[-1]

    def asked_for(self, action: str, name: str, volume: Volume, fleet: Fleet) -> SetServerState | None:
        """The change that ChangeServer asks for, None where it is so already. Raises FsError (see there)."""
        record = self.named(name, volume)
        server = record.server
        if action == "drain":
            others = [r for r in volume.servers if r.state in ("serving", "suspect", "joining") and r.server != server]
            if len(others) < volume.replicas and record.state != OUT:
                there = f"{len(others)} other chunk servers for {volume.replicas} copies"
                raise FsError(Code.NO_SPACE, f"{name} cannot be drained: there are {there}")
            out = record.state in (OUT, DRAINING) and not (record.state == OUT and not record.note)
            return None if out else SetServerState(server, DRAINING)
        if action == "serve":
            again = record.note == "drained" or record.state == DRAINING
            return SetServerState(server, "serving" if fleet.alive(server) else "suspect") if again else None
        if action == "remove":
            if record.note not in ("drained", "lost"):
                raise FsError(Code.BUSY, f"{name} is {record.state}: drain it first, or declare it lost")
            return None
        if action == "lost":
            if fleet.alive(server):
                raise FsError(Code.BUSY, f"{name} answers: stop it first, if its data are to be given up")
            return None if record.note == "lost" else SetServerState(server, OUT, note="lost")
        raise FsError(Code.INVALID, f"{action} is nothing that a chunk server can be asked for")


def _whole(group: Group, view: View) -> bool:
    return all(view.living(server) and view.staying(server) for server in group.servers)
