"""``fusefs server``: which chunk servers there are, bringing one in, emptying and removing one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from fusefs.cli.create import split_address
from fusefs.cli.layout import SERVER_PREFIX, Layout, config_path_of, layout_of
from fusefs.cli.leading import asking_leader
from fusefs.cli.options import as_size, client_keys, key_option, output_of, with_json
from fusefs.cli.output import Failure, Output
from fusefs.cli.rewriting import NAME_CHARACTERS, NAME_LENGTH_MAX, relative, stop
from fusefs.cli.watching import CALL_TIMEOUT_S, Step, watch
from metadata.api import ChangeServer, GetHealing, HealingReply, ServerHealing
from node.host.cluster import ChunkServer, ClusterConfig, load_cluster, save_cluster
from node.host.exitcodes import UsageError
from node.host.keys import create_keys, key_path, load_keys
from node.host.paths import ipc_address
from node.host.units import format_size
from node.wire.errors import Code, FsError

WIDTH_MIN = 160


@click.group()
def server() -> None:
    """Add, drain, remove and list chunk servers.

    CLUSTER is a cluster.toml or the directory that holds one. Every host has its own copy of cluster.toml: bring the
    changed one to the others.
    """


def about_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command CLUSTER, NAME, --key and --json."""
    argued = click.argument("cluster", type=click.Path())(click.argument("name")(command))
    return key_option(with_json(click.pass_context(argued)))


@server.command("add")
@click.option("--address", metavar="HOST:PORT", help="Where it serves (tcp).")
@click.option("--capacity", callback=as_size, metavar="SIZE", help="What it may store. Default: as the last one.")
@click.option("--host", default="", help="Failure domain: copies go to different hosts.")
@click.option("--rack", default="", help="Failure domain: and to different racks.")
@click.option("--weight", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Its share beside the others.")
@about_server
def add(
    context: click.Context, cluster: str, name: str, key: Path | None, address: str | None, capacity: int | None,
    host: str, rack: str, weight: float,
) -> None:
    """Add chunk server NAME to the configuration, and make its key. Once it runs it takes its share of the data.

    A drained one of this name takes data again. With tcp, processes that run hear of the new one's key through the
    metadata service; where that does not answer, they know it after a restart with the changed cluster.toml, or when
    this command was given again.
    """
    path, config, output = _open(context, cluster)
    layout = layout_of(path.parent)
    known = [entry for entry in config.servers if entry.name == name]
    if known:
        _again(config, path, key, name)
    else:
        entry = _place(layout, config, name, address)
        size = capacity or (config.servers[-1].capacity_bytes if config.servers else 0)
        entry = msgspec.structs.replace(entry, capacity_bytes=size, host=host, rack=rack, weight=weight)
        known = [entry]
    introduced = config.transport != "tcp" or _introduce(config, path, key, known[0])
    if known[0] not in config.servers:
        save_cluster(path, relative(layout, msgspec.structs.replace(config, servers=(*config.servers, *known))))
    if not introduced:
        output.line("the metadata service does not answer: what runs does not know the key yet; give the command again")
    running = name in layout.living()
    output.line(f"{name} is {'back' if running else 'configured'}, {format_size(known[0].capacity_bytes)}")
    if not running:
        output.line(f"start it, on its host: fusefs up {layout.directory} --only {name} --detach")
    output.line(f"then watch its share come: fusefs rebalance {cluster}")
    output.document({"name": name, "address": known[0].address, "capacity_bytes": known[0].capacity_bytes,
                     "introduced": introduced})


@server.command("drain")
@click.option("--no-wait", is_flag=True, help="Only begin it.")
@about_server
def drain(context: click.Context, cluster: str, name: str, key: Path | None, no_wait: bool) -> None:
    """Move everything from chunk server NAME to the others while it serves; no block ever has fewer copies."""
    path, config, output = _open(context, cluster)

    def step(reply: HealingReply) -> Step:
        found = _row(reply, name)
        done = no_wait or found.record.note == "drained"
        return Step(found.groups, f"{found.groups} groups, {format_size(found.stored_bytes)} left", done)

    request = ChangeServer("drain", name)
    reply = trio.run(watch, config, client_keys(config, path, key), step, f"draining {name}", request)
    state = _row(reply, name).record.state
    output.line(f"{name} is {'empty; remove it with: fusefs server remove ' + cluster + ' ' + name}" if state == "out"
                else f"{name} is being drained")
    output.document({"name": name, "state": state, "groups": _row(reply, name).groups})


@server.command("remove")
@click.option("--lost", is_flag=True, help="Its disk is gone: give its data up, nobody waits for it any more.")
@about_server
def remove(context: click.Context, cluster: str, name: str, key: Path | None, lost: bool) -> None:
    """Remove chunk server NAME, drained or lost, from the configuration; where it runs on this host it is stopped."""
    path, config, output = _open(context, cluster)
    layout = layout_of(path.parent)
    configured = any(entry.name == name for entry in config.servers)
    if lost and name in layout.living():
        raise Failure(f"{name} runs here: drain it instead, or stop it first")
    try:
        _ask(config, path, key, ChangeServer("lost" if lost else "remove", name))
    except FsError as error:
        if error.code is not Code.NOT_FOUND or not configured:
            raise
    left = tuple(entry for entry in config.servers if entry.name != name)
    if left != config.servers:
        save_cluster(path, relative(layout, msgspec.structs.replace(config, servers=left)))
    stopped = stop(layout, name)
    output.line(f"{name} is removed" + (", and stopped" if stopped else ""))
    output.document({"name": name, "removed": True, "stopped": stopped})


@server.command("list")
@click.argument("cluster", type=click.Path())
@key_option
@with_json
@click.pass_context
def list_servers(context: click.Context, cluster: str, key: Path | None) -> None:
    """Show each chunk server: its state, its groups beside those that it should have, what it stores."""
    path, config, output = _open(context, cluster)
    reply: HealingReply = _ask(config, path, key, GetHealing())
    rows = [_document(found) for found in reply.servers]
    output.document({
        "servers": rows, "under_replicated_blocks": reply.under_replicated_blocks, "changing_groups": reply.changing,
        "waiting_moves": reply.waiting, "lacking_bytes": reply.lacking_bytes,
    })
    if not output.as_json:
        _print(reply, rows)


def _document(found: ServerHealing) -> dict[str, Any]:
    record = found.record
    return {
        "id": record.server, "name": record.name, "address": record.address, "host": record.host, "rack": record.rack,
        "weight": record.weight, "state": record.state, "note": record.note, "alive": record.alive,
        "groups": found.groups, "target_groups": round(found.target, 1), "used_bytes": record.used_bytes,
        "capacity_bytes": record.capacity_bytes, "blocks": record.blocks,
    }


def _print(reply: HealingReply, rows: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH_MIN)
    heads = ("ID", "SERVER", "STATE", "ALIVE", "GROUPS", "TARGET", "USED", "CAPACITY", "BLOCKS", "ADDRESS")
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        state = f"{row['state']} ({row['note']})" if row["note"] else row["state"]
        table.add_row(
            str(row["id"]), row["name"], state, "yes" if row["alive"] else "no", str(row["groups"]),
            str(row["target_groups"]), format_size(row["used_bytes"]), format_size(row["capacity_bytes"]),
            str(row["blocks"]), row["address"],
        )
    console.print(table)
    if reply.changing or reply.waiting:
        console.print(f"{reply.changing} groups are changing, {reply.waiting} more will move")
    if reply.under_replicated_blocks:
        console.print(f"{reply.under_replicated_blocks} copies of blocks are missing")


# --- inside -----------------------------------------------------------------------------------------------------------


def _open(context: click.Context, cluster: str) -> tuple[Path, ClusterConfig, Output]:
    path = config_path_of(cluster)
    return path, load_cluster(path), output_of(context)


def _ask(config: ClusterConfig, path: Path, key: Path | None, request: msgspec.Struct) -> Any:
    async def once() -> Any:
        async with asking_leader(config, client_keys(config, path, key)) as ask:
            return await ask(request, CALL_TIMEOUT_S)

    return trio.run(once)


def _again(config: ClusterConfig, path: Path, key: Path | None, name: str) -> None:
    try:
        _ask(config, path, key, ChangeServer("serve", name))
    except FsError as error:
        if error.code is not Code.NOT_FOUND:  # configured, and never started yet
            raise


def _introduce(config: ClusterConfig, path: Path, key: Path | None, entry: ChunkServer) -> bool:
    """Have everybody let a chunk server in; whether the metadata service could be told."""
    try:
        _ask(config, path, key, ChangeServer("introduce", entry.name, entry.address, entry.public_key))
    except FsError as error:
        if error.code is not Code.UNREACHABLE:
            raise
        return False
    return True


def _row(reply: HealingReply, name: str) -> ServerHealing:
    for found in reversed(reply.servers):
        if found.record.name == name:
            return found
    raise FsError(Code.NOT_FOUND, f"the cluster has no chunk server {name}")


def _place(layout: Layout, config: ClusterConfig, name: str, address: str | None) -> ChunkServer:
    """Where a new chunk server will be."""
    if not name.startswith(SERVER_PREFIX) or not NAME_CHARACTERS.issuperset(name) or len(name) > NAME_LENGTH_MAX:
        raise UsageError(f"{name}: the name of a chunk server is {SERVER_PREFIX} and letters, digits, dots or dashes")
    if config.transport == "ipc":
        if address:
            raise UsageError("--address goes with tcp; this cluster's sockets are files")
        return ChunkServer(name=name, address=ipc_address(layout.directory, name))
    if not address:
        raise UsageError("--address HOST:PORT is needed: where the new chunk server will serve")
    try:
        split_address(address)
    except ValueError as error:
        raise UsageError(f"--address: {error}") from None
    path = key_path(layout.config_path, name)
    keys = load_keys(path) if path.exists() else create_keys(path)
    return ChunkServer(name=name, address=f"tcp://{address}", public_key=keys.public.decode())
