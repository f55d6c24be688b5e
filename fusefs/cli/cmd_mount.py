"""``fusefs mount``: serve a cluster at a directory."""

from __future__ import annotations

import click

from fusefs.cli.layout import config_path_of
from fusefs.cli.options import output_of, with_json
from fusefs.cli.output import Failure, Progress
from fusefs.mount import table
from fusefs.mount.launch import MountFailed, MountRequest, replace_process, start_background
from fusefs.mount.options import parse_options
from fusefs.mount.plan import make_plan


@click.command()
@click.argument("cluster", type=click.Path())
@click.argument("mnt", type=click.Path())
@click.option("-o", "options", metavar="OPTS", multiple=True,
              help="Comma-separated: timeout=30s, key=FILE, ro, allow_other, nosuid, nodev, noexec.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@with_json
@click.pass_context
def mount(context: click.Context, cluster: str, mnt: str, options: tuple[str, ...], foreground: bool) -> None:
    """Mount CLUSTER, a cluster.toml or the directory that holds one, on the empty directory MNT.

    Returns when the mount serves.
    """
    request = MountRequest(config_path_of(cluster), table.absolute(mnt), options)
    make_plan(request.cluster_path, request.mount, parse_options(options))
    table.check_mount_point(request.mount)
    if foreground:
        replace_process(request)
    with Progress(f"mounting {mnt}"):
        process = start(request)
    output = output_of(context)
    output.document({"mount": request.mount, "cluster": str(request.cluster_path), "pid": process})


def start(request: MountRequest) -> int:
    """Start a mount in the background and return the pid of its process. Raises Failure with its reason and code."""
    try:
        return start_background(request).pid
    except MountFailed as error:
        raise Failure(str(error), error.code) from None
