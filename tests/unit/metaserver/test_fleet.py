"""The leader's view of chunk servers: liveness, capacity, and when the table changes."""

from __future__ import annotations

from metadata.api import ServerRecord, VolumeStat
from metadata.placement import Table
from metadata.server.fleet import Fleet
from node.wire.limits import SERVER_SILENT_S, TABLE_ITEMS_MAX, TABLE_SETTLE_S
from storage.api import ServerStatus

GIB = 1 << 30


def record(server: int, state: str = "serving", weight: float = 1.0) -> ServerRecord:
    return ServerRecord(server, b"%016d" % server, f"s{server}", f"ipc://s{server}", "", "", weight, GIB, state)


def status(server: int, *, used: int = 0, state: str = "serving") -> ServerStatus:
    return ServerStatus(server, b"%016d" % server, f"ipc://s{server}", used, GIB, 0, state)


def fleet(*heard: int, replicas: int = 1, expected: int = 0) -> Fleet:
    made = Fleet(0.0, replicas=replicas, expected=expected)
    for server in heard:
        made.heard(server, status(server), 0.0)
    return made


def apply(made: Fleet, servers: list[ServerRecord], table: Table, *, now_s: float = 100.0) -> Table:
    """Apply changes until none is due."""
    rows = dict(enumerate(table))
    while (change := made.table_change(servers, tuple(rows.values()), 1, now_s)) is not None:
        assert len(change.items) <= TABLE_ITEMS_MAX
        assert bool(change.groups) == (not rows)
        rows = rows or {group: () for group in range(change.groups)}
        rows.update({item.group: item.servers for item in change.items})
    return tuple(rows.values())


def test_a_silent_server_lapses_once_and_comes_back() -> None:
    made = fleet(1)
    assert made.lapse(SERVER_SILENT_S) == []
    assert made.lapse(SERVER_SILENT_S + 0.1) == [1]
    assert made.lapse(SERVER_SILENT_S + 0.2) == [] and not made.alive(1)
    assert made.heard(1, status(1), 20.0) and made.alive(1)
    assert not made.heard(1, status(1), 21.0)


def test_capacity_is_divided_by_the_copies_and_counts_only_who_can_take() -> None:
    made = fleet(1, 2, replicas=2)
    servers = [record(1), record(2)]
    empty = VolumeStat(0, 0, 5, 0)
    assert made.capacity(empty, servers) == VolumeStat(GIB, GIB, 5, 0)
    made.heard(1, status(1, used=GIB // 2), 0.0)
    assert made.capacity(empty, servers).free_bytes == GIB * 3 // 4
    made.heard(2, status(2, state="full"), 0.0)
    assert made.capacity(empty, servers).free_bytes == GIB // 4
    assert made.capacity(empty, [record(1), record(2, "out")]).total_bytes == GIB // 2
    made.lapse(100.0)
    assert made.capacity(empty, servers) == VolumeStat(GIB, 0, 5, 0)


def test_a_server_not_heard_of_yet_counts_by_its_share_of_the_volume() -> None:
    made = fleet()
    assert made.capacity(VolumeStat(0, 0, 1, GIB // 4), [record(1)]).free_bytes == GIB * 3 // 4


def test_the_first_table_waits_for_the_servers_that_are_expected() -> None:
    made = fleet(1, expected=2)
    servers = [record(1)]
    assert made.table_change(servers, (), 0, TABLE_SETTLE_S - 0.1) is None
    assert made.table_change(servers, (), 0, TABLE_SETTLE_S) is not None
    made.heard(2, status(2), 0.0)
    assert made.table_change([*servers, record(2)], (), 0, 0.1) is not None


def test_no_table_without_a_living_server() -> None:
    assert fleet().table_change([record(1)], (), 0, 100.0) is None


def test_an_unused_volume_is_spread_again() -> None:
    made = fleet(1, 2, replicas=1)
    one = apply(made, [record(1)], ())
    assert set(one) == {(1,)} and len(one) == 64
    assert {(1,), (2,)} == set(apply(made, [record(1), record(2)], one))


def test_heartbeats_fill_in_what_the_log_does_not_know() -> None:
    made = fleet(1)
    made.heard(1, status(1, used=7), 0.0)
    known, unknown = made.records([record(1), record(2)])
    assert (known.used_bytes, known.alive) == (7, True)
    assert (unknown.used_bytes, unknown.alive) == (0, False)
    assert made.stored_bytes() == 7


def test_what_was_written_since_a_heartbeat_counts() -> None:
    made = fleet()
    made.heard(1, status(1, used=0), 0.0, file_bytes=100)
    assert made.capacity(VolumeStat(0, 0, 1, 100 + GIB // 4), [record(1)]).free_bytes == GIB * 3 // 4
    assert made.capacity(VolumeStat(0, 0, 1, 50), [record(1)]).free_bytes == GIB
