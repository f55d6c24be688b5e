"""``fusefs up``: a whole cluster of real processes on this host, its data under one directory."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
import trio

from fusefs.cli.cmd_down import bring_down
from fusefs.cli.cmd_mount import start as start_mount
from fusefs.cli.create import Flags, check_flags, check_same, create_cluster
from fusefs.cli.layout import Layout, layout_of, names_of
from fusefs.cli.options import as_addresses, as_size, client_keys, output_of, with_json
from fusefs.cli.output import Failure, Output, Progress, count
from fusefs.cli.starting import Cluster, check_not_running, check_ports, stop_signals
from fusefs.mount import table
from fusefs.mount.launch import MountRequest
from node.host.cluster import ClusterConfig, load_cluster
from node.host.exitcodes import UsageError
from node.host.lock import LivenessLock
from node.host.paths import private_directory
from node.host.units import format_size


@dataclass(frozen=True, slots=True)
class Wish:
    """What this call of ``up`` is to do, beside the shape of the cluster."""

    mount: str | None
    only: str | None
    start: bool
    detach: bool
    welcome: bool


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--mount", "mnt", metavar="MNT", type=click.Path(), help="Mount the cluster on this empty directory too.")
@click.option("--members", type=int, help="Metadata members. Default 1.")
@click.option("--servers", type=int, help="Chunk servers. Default 1.")
@click.option("--replicas", type=int, help="Copies of each block. Default 1.")
@click.option("--transport", type=click.Choice(["ipc", "tcp"]), help="Default ipc; tcp is encrypted and makes keys.")
@click.option("--capacity", callback=as_size, metavar="SIZE",
              help="What each chunk server may store, such as 10GiB. Default: free space less 5 %, shared among them.")
@click.option("--address", "addresses", callback=as_addresses, multiple=True, metavar="NAME=HOST:PORT",
              help="Where a process listens (tcp); metadata-1-peer is where members reach metadata-1.")
@click.option("--no-start", is_flag=True, help="Only write configuration and keys.")
@click.option("--detach", is_flag=True, help="Return when everything serves.")
@click.option("--only", metavar="NAME", help="Start only this process of an existing cluster.")
@click.option("--welcome", is_flag=True, hidden=True)
@with_json
@click.pass_context
def up(
    context: click.Context,
    directory: str,
    mnt: str | None,
    members: int | None,
    servers: int | None,
    replicas: int | None,
    transport: str | None,
    capacity: int | None,
    addresses: Mapping[str, str],
    no_start: bool,
    detach: bool,
    only: str | None,
    welcome: bool,
) -> None:
    """Bring up a cluster in DIR: made when there is none, started again otherwise.

    Prints `ready` when everything serves; Ctrl-C or SIGTERM then stops it all, as `fusefs down DIR` does.
    """
    flags = Flags(members, servers, replicas, transport, capacity, addresses)
    wish = Wish(table.absolute(mnt) if mnt else None, only, not no_start, detach, welcome)
    check_flags(flags)
    layout = layout_of(directory)
    output = output_of(context)
    config = _configuration(layout, flags, wish)
    names = _names(config, wish)
    if not wish.start:
        _introduce(layout, config, output)
        output.document(_document(layout, config, {}, None))
        return
    check_not_running(layout, names)
    if wish.mount:
        table.check_mount_point(wish.mount)
    _introduce(layout, config, output)
    private_directory(layout.run)
    if wish.only:
        trio.run(_run, layout, config, names, wish, output)
    else:
        with LivenessLock(layout.up_lock, f"another fusefs up of {layout.directory}"):
            trio.run(_run, layout, config, names, wish, output)


def _configuration(layout: Layout, flags: Flags, wish: Wish) -> ClusterConfig:
    """Load the cluster of DIR, or make it."""
    if layout.config_path.exists():
        config = load_cluster(layout.config_path)
        check_same(flags, config)
        return config
    if wish.only:
        raise UsageError(f"--only {wish.only}: there is no cluster in {layout.directory} yet")
    create_cluster(layout, flags)
    return load_cluster(layout.config_path)


def _introduce(layout: Layout, config: ClusterConfig, output: Output) -> None:
    capacity = format_size(sum(server.capacity_bytes for server in config.servers))
    shape = ", ".join([
        count(len(config.members), "member"), count(len(config.servers), "server"), count(config.replicas, "replica")
    ])
    output.line(f"cluster in {layout.directory}: {shape}, {config.transport}, {capacity}")


def _names(config: ClusterConfig, wish: Wish) -> list[str]:
    names = names_of(config)
    if wish.only is None:
        return names
    if wish.only not in names:
        raise UsageError(f"--only {wish.only}: the cluster has no such process; it has {', '.join(names)}")
    return [wish.only]


async def _run(layout: Layout, config: ClusterConfig, names: list[str], wish: Wish, output: Output) -> None:
    """Start, mount, and unless detached watch until told to stop; then bring everything down."""
    check_ports(config, names)
    cluster = Cluster(layout, config, client_keys(config, layout.config_path, None))
    started = False
    try:
        async with stop_signals() as asked:
            mount_pid = await _start(cluster, layout, names, wish, asked)
            started = True
            _announce(layout, config, cluster, mount_pid, wish, output)
            if not wish.detach:
                await _watch(cluster, mount_pid, wish, asked, output)
    finally:
        # Also when the announcement failed because nobody reads it: what is in the foreground does not outlive us.
        if started and not wish.detach:
            if wish.only is None:
                bring_down(layout, output)
            else:
                cluster.stop_started()
    if started and not wish.detach and not asked.is_set() and cluster.failed:
        raise Failure("no server is left running")


async def _watch(cluster: Cluster, mount_pid: int | None, wish: Wish, asked: trio.Event, output: Output) -> None:
    """Report what ends; return when told to stop or when no server is left."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when, asked, nursery.cancel_scope)
        if mount_pid is not None:
            nursery.start_soon(_report_mount, str(wish.mount), mount_pid, output)
        await cluster.watch(output)
        nursery.cancel_scope.cancel()


async def _start(cluster: Cluster, layout: Layout, names: list[str], wish: Wish, asked: trio.Event) -> int | None:
    """Start everything; return the pid of the mount. When told to stop meanwhile, nothing is left running."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when, asked, nursery.cancel_scope)
        await cluster.start(names)
        try:
            if wish.only is None or wish.mount:
                await cluster.wait_serving(whole=wish.only is None)
            else:
                await cluster.wait_joined(wish.only)
            mount_pid = None
            if wish.mount:
                request = MountRequest(layout.config_path, wish.mount)
                with Progress(f"mounting on {wish.mount}"):
                    mount_pid = await trio.to_thread.run_sync(start_mount, request)
        except BaseException:
            cluster.stop_started()
            raise
        nursery.cancel_scope.cancel()
    if asked.is_set():
        raise click.Abort
    return mount_pid


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _report_mount(mount: str, pid: int, output: Output) -> None:
    """Say so when the mount ends by itself."""
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    output.warning(f"{mount} is no longer mounted")


def _announce(
    layout: Layout, config: ClusterConfig, cluster: Cluster, mount_pid: int | None, wish: Wish, output: Output
) -> None:
    pids = {child.name: pid for pid, child in cluster.children.items()}
    output.document(_document(layout, config, pids, wish.mount if mount_pid is not None else None))
    for name, pid in pids.items():
        output.line(f"{name} runs (process {pid})")
    if wish.mount:
        output.line(f"mounted on {wish.mount}")
    if wish.welcome:
        _welcome(layout, wish, output)
    if not wish.detach:
        output.line(f"ready {wish.mount}" if wish.welcome and wish.mount else "ready")


def _document(layout: Layout, config: ClusterConfig, pids: dict[str, int], mount: str | None) -> dict[str, Any]:
    def entry(name: str, address: str) -> dict[str, Any]:
        return {"name": name, "address": address, "pid": pids.get(name)}

    return {
        "cluster": str(layout.config_path),
        "members": [entry(member.name, member.address) for member in config.members],
        "servers": [entry(server.name, server.address) for server in config.servers],
        "mount": mount,
    }


def _own_command() -> str:
    """How a shell starts this very command."""
    path = os.path.abspath(sys.argv[0])
    return "fusefs" if shutil.which("fusefs") == path else path


def _welcome(layout: Layout, wish: Wish, output: Output) -> None:
    """One screen: what runs, what to type next."""
    output.line()
    output.line(f"A filesystem of your own is mounted on {wish.mount}; its data lie in {layout.directory}.")
    output.line("In another terminal, for instance:")
    output.line()
    output.line(f"    cp -r /usr/share/common-licenses {wish.mount}/")
    output.line(f"    ls -l {wish.mount}/common-licenses")
    output.line(f"    df -h {wish.mount}")
    output.line(f"    {_own_command()} status {layout.config_path}")
    output.line()
    output.line("Ctrl-C unmounts and stops it; the data stay, and the same command brings them back.")
