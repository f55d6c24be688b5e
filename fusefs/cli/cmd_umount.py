"""``fusefs umount``: end a mount, with everything durable."""

from __future__ import annotations

import click

from fusefs.cli.options import output_of, with_json
from fusefs.cli.output import Failure
from fusefs.cli.unmounting import LocalMount, detach, unmount
from fusefs.mount import table
from fusefs.mount.state import find_state


@click.command()
@click.argument("mnt", type=click.Path())
@with_json
@click.pass_context
def umount(context: click.Context, mnt: str) -> None:
    """Unmount MNT; returns when everything is durable and the client has ended."""
    path = table.absolute(mnt)
    entry = table.mounted_at(path)
    if entry is None or entry.type != table.FUSE_TYPE:
        raise Failure(f"{path} is not a fusefs mount")
    mount = LocalMount(path, find_state(table.cluster_of(entry.source), path))
    if table.is_dead(path):
        detach(mount)
        raise Failure(f"{path} was dead: its process had been killed; it is cleared away, what was not synced is lost")
    unmount(mount)
    output_of(context).document({"mount": path, "unmounted": True})
