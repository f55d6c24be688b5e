"""``fusefs down``: stop what runs of a cluster on this host, with everything durable."""

from __future__ import annotations

import functools
import time

import click

from fusefs.cli.layout import Layout, layout_of
from fusefs.cli.options import output_of, with_json
from fusefs.cli.output import Failure, Output, Progress
from fusefs.cli.processes import Ending
from fusefs.cli.unmounting import LocalMount, detach, mounts_here, unmount
from fusefs.mount import table
from node.host.exitcodes import Exit
from node.wire.limits import STOP_FLUSH_S

WAIT_S = STOP_FLUSH_S + 15.0  # a server gives up by itself before


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path())
@with_json
@click.pass_context
def down(context: click.Context, directory: str) -> None:
    """Unmount this host's mounts of the cluster in DIR, flush, and stop every process of it that runs here."""
    layout = layout_of(directory)
    if not layout.config_path.exists() and not layout.living():
        raise Failure(f"{layout.config_path}: no such cluster", Exit.NOT_FOUND)
    output = output_of(context)
    output.document(bring_down(layout, output))


def bring_down(layout: Layout, output: Output) -> dict[str, list[str]]:
    """Stop everything; return what was stopped. What fails is reported after all else has been stopped. Idempotent."""
    failures = []
    mounts = mounts_here(layout.config_path)
    for mount in mounts:
        try:
            _end_mount(mount, output)
        except (Failure, OSError) as error:
            failures.append(error.message if isinstance(error, Failure) else f"{mount.path}: {error.strerror}")
    servers = stop_servers(layout, failures)
    if failures:
        raise Failure("; ".join(failures))
    return {"unmounted": [mount.path for mount in mounts], "stopped": servers}


def _end_mount(mount: LocalMount, output: Output) -> None:
    """Unmount; one that is in use is flushed and then taken away from its users."""
    if table.mounted_at(mount.path) is None:
        detach(mount)  # unmounted already, its process is still flushing
        return
    if table.is_dead(mount.path):
        detach(mount)
        output.line(f"cleared the dead mount {mount.path}")
        return
    try:
        unmount(mount)
    except Failure:
        if table.mounted_at(mount.path) is None:
            raise
        users = ", ".join(table.users_of(mount.path)) or "unknown"
        output.warning(f"{mount.path} is busy ({users}): flushing, then detaching it from them")
        detach(mount)
    output.line(f"unmounted {mount.path}")


def stop_servers(layout: Layout, failures: list[str]) -> list[str]:
    """Ask all servers to stop, wait for each, remove their pid files; return their names."""
    servers = {name: Ending(functools.partial(layout.holder, name)) for name in layout.living()}
    for server in servers.values():
        server.terminate()
    deadline = time.monotonic() + WAIT_S
    with Progress("stopping") as progress:
        for name, server in servers.items():
            progress.update(f"waiting for {name} to stop")
            if not server.wait(max(0.0, deadline - time.monotonic())):
                where = layout.log(name)
                failures.append(f"{name} (process {server.pid}) has not stopped within {WAIT_S:g}s; see {where}")
    still = layout.living()
    for path in layout.run.glob("*.pid"):
        if path.stem not in still and not path.stem.startswith("mount-"):
            path.unlink(missing_ok=True)
    return [name for name in servers if name not in still]
