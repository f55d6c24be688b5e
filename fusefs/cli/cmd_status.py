"""``fusefs status``: is the cluster well, who is part of it, what does it hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from fusefs.cli.layout import config_path_of
from fusefs.cli.options import client_keys, key_option, output_of, with_json
from fusefs.cli.output import Output, count
from fusefs.cli.query import Answers, ask_all
from fusefs.cli.rows import DOWN, member_rows
from metadata.api import ServerRecord, StatusReply
from node.host.cluster import ClusterConfig, load_cluster
from node.host.exitcodes import Exit
from node.host.units import format_size
from node.wire.errors import FsError
from storage.api import ServerStatus

WIDTH_MIN = 200
HEALTH_EXIT = {"healthy": Exit.OK, "degraded": Exit.FINDINGS, "down": Exit.UNREACHABLE}


@click.command()
@click.argument("cluster", type=click.Path())
@key_option
@with_json
@click.pass_context
def status(context: click.Context, cluster: str, key: Path | None) -> None:
    """Show the state of CLUSTER, a cluster.toml or the directory that holds one.

    Exit code 0: healthy, 3: degraded, 4: down.
    """
    path = config_path_of(cluster)
    config = load_cluster(path)
    answers = trio.run(ask_all, config, client_keys(config, path, key))
    if answers.refusal is not None:
        raise answers.refusal
    report = report_of(config, answers)
    output = output_of(context)
    output.document(report)
    if not output.as_json:
        _print(output, report)
    context.exit(HEALTH_EXIT[report["health"]])


def report_of(config: ClusterConfig, answers: Answers) -> dict[str, Any]:
    """Build the document of ``status --json`` from what the processes answered. Pure."""
    leader = answers.leader
    members = member_rows(config, answers)
    records = {record.name: record for record in leader.servers if record.note != "lost"} if leader else {}
    configured = {server.name for server in config.servers}
    records = {n: record for n, record in records.items() if n in configured or record.note != "drained"}
    servers = [
        _server(server.name, server.address, server.capacity_bytes, records.pop(server.name, None), leader,
                answers.servers.get(server.name))
        for server in config.servers
    ]
    servers += [_server(record.name, record.address, 0, record, leader, None) for record in records.values()]
    sessions = [
        {"id": session.id, "host": session.host, "mount": session.mount, "leases": session.leases}
        for session in (leader.sessions if leader else ())
    ]
    volume = _volume(config, leader)
    if leader is not None and all(isinstance(answer, ServerStatus) for answer in answers.servers.values()):
        volume["stored_bytes"] = sum(server["used_bytes"] for server in servers)  # fresher than the last heartbeats
    return {
        "health": _health(leader, members, servers, volume),
        "members": members,
        "servers": servers,
        "volume": volume,
        "sessions": sessions,
    }


def _server(
    name: str,
    address: str,
    capacity_bytes: int,
    record: ServerRecord | None,
    leader: StatusReply | None,
    answer: ServerStatus | FsError | None,
) -> dict[str, Any]:
    """One chunk server: its own word where it gave one, else what the leader remembers."""
    used, blocks = (record.used_bytes, record.blocks) if record else (0, 0)
    alive = record is not None and record.alive
    if isinstance(answer, ServerStatus):
        used, blocks, capacity_bytes = answer.used_bytes, answer.blocks, answer.capacity_bytes
        # It runs. Whether it serves is the leader's decision; without a leader its own word must do.
        state = record.state if record is not None and alive else "joining" if leader else answer.state
        if answer.state != "serving" and state == "serving":
            state = answer.state
    elif answer is None and record is not None and alive:
        state, capacity_bytes = record.state, record.capacity_bytes
    else:
        state = DOWN
        capacity_bytes = record.capacity_bytes if record else capacity_bytes
    return {
        "name": name,
        "address": address,
        "state": state,
        "used_bytes": used,
        "capacity_bytes": capacity_bytes,
        "blocks": blocks,
    }


def _volume(config: ClusterConfig, leader: StatusReply | None) -> dict[str, Any]:
    """Numbers that only a leader knows are null without one."""
    known = leader if leader is not None and leader.volume is not None else None
    return {
        "files": known.volume.files if known and known.volume else None,
        "bytes": known.volume.bytes if known and known.volume else None,
        "stored_bytes": known.stored_bytes if known else None,
        "replicas": (known.replicas if known else 0) or config.replicas,
        "under_replicated_blocks": known.under_replicated_blocks if known else None,
    }


def _health(
    leader: StatusReply | None, members: list[dict[str, Any]], servers: list[dict[str, Any]], volume: dict[str, Any]
) -> str:
    if leader is None:
        return "down"
    drained = {record.name for record in leader.servers if record.note == "drained"}
    well = all(member["role"] != DOWN for member in members) and all(
        server["state"] == "serving" or server["name"] in drained for server in servers
    )
    return "healthy" if well and not volume["under_replicated_blocks"] else "degraded"


def _print(output: Output, report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH_MIN)  # an address that is cut off helps nobody
    output.line(f"{report['health']}")
    table = Table("MEMBER", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "ADDRESS", box=None, pad_edge=False)
    for row in report["members"]:
        known = row["role"] != DOWN
        numbers = [str(row[key]) if known and row[key] is not None else "-"
                   for key in ("term", "commit", "applied", "lag")]
        table.add_row(row["name"], row["role"], *numbers, row["address"])
    console.print(table)
    table = Table("SERVER", "STATE", "USED", "CAPACITY", "BLOCKS", "ADDRESS", box=None, pad_edge=False)
    for row in report["servers"]:
        sizes = format_size(row["used_bytes"]), format_size(row["capacity_bytes"])
        table.add_row(row["name"], row["state"], *sizes, str(row["blocks"]), row["address"])
    console.print(table)
    volume = report["volume"]
    if volume["files"] is not None:
        stored = format_size(volume["stored_bytes"])
        copies = count(volume["replicas"], "replica")
        output.line(f"{volume['files']} files, {format_size(volume['bytes'])} of data, {stored} stored, {copies}")
        if volume["under_replicated_blocks"]:
            output.line(f"{volume['under_replicated_blocks']} blocks have fewer copies than they should")
    for row in report["sessions"]:
        output.line(f"mounted on {row['host']}:{row['mount']} (session {row['id']}, {count(row['leases'], 'lease')})")
