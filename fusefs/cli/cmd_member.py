"""``fusefs member``: who belongs to the metadata service, who votes, who leads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import trio
from rich.console import Console
from rich.table import Table

from fusefs.cli.create import PEER_SUFFIX, peer_of, split_address
from fusefs.cli.layout import MEMBER_PREFIX, Layout, config_path_of, layout_of
from fusefs.cli.options import client_keys, key_option, output_of, with_json
from fusefs.cli.output import Output
from fusefs.cli.query import Answers, ask_all, change_members
from fusefs.cli.rewriting import NAME_CHARACTERS, NAME_LENGTH_MAX, relative, stop
from fusefs.cli.rows import member_rows
from metadata.api import ChangeMembers
from node.host.cluster import ClusterConfig, Member, load_cluster, save_cluster
from node.host.exitcodes import Exit, UsageError
from node.host.keys import create_keys, key_path, load_keys
from node.host.paths import ipc_address
from node.wire.errors import Code, FsError

WIDTH_MIN = 160


@click.group()
def member() -> None:
    """Add, remove and promote members of the metadata service, and say who leads.

    CLUSTER is a cluster.toml or the directory that holds one. Every host has its own copy of cluster.toml: bring the
    changed one to the others; those that run already have heard of the change and need no restart.
    """


def about_member(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command CLUSTER, NAME, --key and --json."""
    argued = click.argument("cluster", type=click.Path())(click.argument("name")(command))
    return key_option(with_json(click.pass_context(argued)))


@member.command("add")
@click.option("--address", metavar="HOST:PORT", help="Where it serves clients (tcp).")
@click.option("--peer-address", metavar="HOST:PORT", help="Where other members reach it (tcp). Default: port + 1000.")
@about_member
def add(
    context: click.Context, cluster: str, name: str, key: Path | None, address: str | None, peer_address: str | None
) -> None:
    """Add member NAME, as a learner: it gets the state and follows, and has no vote before it is promoted."""
    path, config, output = _open(context, cluster)
    layout = layout_of(path.parent)
    wanted = _place(layout, config, name, address, peer_address)
    request = ChangeMembers("add", name, *_absolute(layout, wanted), wanted.public_key)
    number = _ask(config, path, key, request)
    config = load_cluster(path)  # it may have changed while the group decided
    if all(known.name != name for known in config.members):
        entry = msgspec.structs.replace(wanted, id=number)
        save_cluster(path, _relative(layout, config, (*config.members, entry)))
    output.line(f"{name} is member {number}, a learner")
    output.line(f"start it, on its host: fusefs up {layout.directory} --only {name} --detach")
    output.line(f"once `fusefs member list {cluster}` shows no lag: fusefs member promote {cluster} {name}")
    output.document({"name": name, "id": number, "role": "learner", "address": wanted.address})


@member.command("promote")
@about_member
def promote(context: click.Context, cluster: str, name: str, key: Path | None) -> None:
    """Make learner NAME a voter, once it has caught up."""
    path, config, output = _open(context, cluster)
    number = _ask(config, path, key, ChangeMembers("promote", name))
    output.line(f"{name} is a voter")
    output.document({"name": name, "id": number, "role": "voter"})


@member.command("remove")
@about_member
def remove(context: click.Context, cluster: str, name: str, key: Path | None) -> None:
    """Remove member NAME, dead or alive; where it runs on this host it is stopped. Its number is never used again."""
    path, config, output = _open(context, cluster)
    layout = layout_of(path.parent)
    known = any(entry.name == name for entry in config.members)
    try:
        _ask(config, path, key, ChangeMembers("remove", name))
    except FsError as error:
        if error.code is not Code.NOT_FOUND or not known:
            raise
    config = load_cluster(path)
    left = tuple(entry for entry in config.members if entry.name != name)
    if left != config.members and left:
        save_cluster(path, _relative(layout, config, left))
    stopped = stop(layout, name)
    output.line(f"{name} is no member any more" + (", and stopped" if stopped else ""))
    output.line(f"its data in {layout.data(name)} are of no use to anybody")
    output.document({"name": name, "removed": True, "stopped": stopped})


@member.command("transfer-leader")
@about_member
def transfer_leader(context: click.Context, cluster: str, name: str, key: Path | None) -> None:
    """Hand leadership over to voter NAME."""
    path, config, output = _open(context, cluster)
    number = _ask(config, path, key, ChangeMembers("transfer", name))
    output.line(f"{name} leads")
    output.document({"name": name, "id": number, "role": "leader"})


@member.command("list")
@click.argument("cluster", type=click.Path())
@key_option
@with_json
@click.pass_context
def list_members(context: click.Context, cluster: str, key: Path | None) -> None:
    """Show each member: its role, what it has and by how much it lags. Exit code 4 where nobody leads."""
    path, config, output = _open(context, cluster)
    answers = trio.run(ask_all, config, client_keys(config, path, key))
    if answers.refusal is not None:
        raise answers.refusal
    rows = [_row(config, answers, row) for row in member_rows(config, answers)]
    output.document({"members": rows})
    if not output.as_json:
        _print(output, rows)
    if answers.leader is None:
        context.exit(Exit.UNREACHABLE)


def _row(config: ClusterConfig, answers: Answers, row: dict[str, Any]) -> dict[str, Any]:
    """A row of ``status`` with what only matters here."""
    leader = answers.leader
    seen = {known.name: known for known in leader.members} if leader is not None else {}
    numbers = {entry.name: entry.id for entry in config.members} | {known.name: known.member for known in seen.values()}
    view = seen.get(row["name"])
    return {
        "id": numbers.get(row["name"]),
        **row,
        "match": view.match if view is not None else None,
        "state": view.state if view is not None else "",
    }


def _print(output: Output, rows: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH_MIN)
    table = Table("ID", "MEMBER", "ROLE", "STATE", "MATCH", "APPLIED", "LAG", "ADDRESS", box=None, pad_edge=False)
    for row in rows:
        shown = ["-" if row[column] is None else str(row[column])
                 for column in ("id", "name", "role", "state", "match", "applied", "lag", "address")]
        table.add_row(*shown)
    console.print(table)


# --- inside -----------------------------------------------------------------------------------------------------------


def _open(context: click.Context, cluster: str) -> tuple[Path, ClusterConfig, Output]:
    path = config_path_of(cluster)
    return path, load_cluster(path), output_of(context)


def _ask(config: ClusterConfig, path: Path, key: Path | None, request: ChangeMembers) -> int:
    return trio.run(change_members, config, client_keys(config, path, key), request).member


def _place(layout: Layout, config: ClusterConfig, name: str, address: str | None, peer_address: str | None) -> Member:
    """Where a new member will be; that of an ``add`` that was interrupted, where there is one. ``id`` is not known."""
    if not name.startswith(MEMBER_PREFIX) or not NAME_CHARACTERS.issuperset(name) or len(name) > NAME_LENGTH_MAX:
        raise UsageError(f"{name}: the name of a member is {MEMBER_PREFIX} and letters, digits, dots or dashes")
    if config.transport == "ipc":
        if address or peer_address:
            raise UsageError("--address goes with tcp; this cluster's sockets are files")
        endpoints = ipc_address(layout.directory, name), ipc_address(layout.directory, name + PEER_SUFFIX)
        return Member(id=1, name=name, address=endpoints[0], peer_address=endpoints[1])
    if not address:
        raise UsageError("--address HOST:PORT is needed: where the new member will serve")
    for given in (address, peer_address):
        try:
            split_address(given) if given else None
        except ValueError as error:
            raise UsageError(f"--address: {error}") from None
    path = key_path(layout.config_path, name)
    keys = load_keys(path) if path.exists() else create_keys(path)
    return Member(
        id=1,
        name=name,
        address=f"tcp://{address}",
        peer_address=f"tcp://{peer_address or peer_of(address)}",
        public_key=keys.public.decode(),
    )


def _absolute(layout: Layout, entry: Member) -> tuple[str, str]:
    """The addresses as every process of this cluster understands them: cluster.toml has ipc paths beside itself."""
    base = layout.config_path.resolve().parent

    def absolute(given: str) -> str:
        return f"ipc://{base / given.removeprefix('ipc://')}" if given.startswith("ipc://") else given

    return absolute(entry.address), absolute(entry.peer_address)


def _relative(layout: Layout, config: ClusterConfig, members: tuple[Member, ...]) -> ClusterConfig:
    """The configuration to write, with these members."""
    return relative(layout, msgspec.structs.replace(config, members=members))
