"""``fusefs clone``: another name for the same data, which costs no space until one of both is changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import trio

from fusefs.cli.options import client_keys, key_option, output_of, with_json
from fusefs.cli.output import Failure, Progress, count
from fusefs.client.cloning import Cloned, User
from fusefs.client.connect import open_volume
from fusefs.client.options import ClientOptions, Cluster, Peer
from fusefs.mount import table
from node.host.cluster import ClusterConfig, load_cluster
from node.host.exitcodes import Exit
from node.host.units import format_size
from node.rpc.security import CurveKeys


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path())
@key_option
@with_json
@click.pass_context
def clone(context: click.Context, source: str, target: str, key: Path | None) -> None:
    """Clone the file or tree SRC as DST, which must not exist; both on mounts of one cluster.

    No data is copied: both share the blocks until one of them is changed. Modes, times, extended attributes, hard links
    and holes are kept; a symbolic link is cloned as such. Whoever clones has to be allowed to read all of SRC and to
    make DST. Root keeps owners; what others clone and is not theirs becomes theirs, without setuid and setgid.
    """
    mounts = [_mount_of(source, source), _mount_of(os.path.dirname(os.path.abspath(target)), target)]
    paths = [os.path.realpath(table.cluster_of(mount.source)) for mount in mounts]
    if paths[0] != paths[1]:
        raise Failure(f"{source} is on {paths[0]}, {target} on {paths[1]}: a clone stays in one cluster")
    parent, name = os.path.split(os.path.abspath(target))
    _check(source, parent, target, name)
    for mount in {mount.path: mount for mount in mounts}.values():
        table.sync(mount.path)  # what was written here before belongs to it
    config = load_cluster(Path(paths[0]))
    keys = client_keys(config, Path(paths[0]), key)
    source_ino, parent_ino = os.lstat(source).st_ino, os.stat(parent).st_ino
    begun = time.monotonic()
    with Progress(f"cloning {source}") as progress:
        done = trio.run(_clone, config, keys, source_ino, parent_ino, os.fsencode(name), progress)
    output = output_of(context)
    output.document({
        "source": source, "target": target, "files": done.files, "directories": done.directories, "bytes": done.bytes,
        "seconds": round(time.monotonic() - begun, 3),
    })
    directories = f" in {done.directories} directories" if done.directories else ""
    output.line(f"{target}: {count(done.files, 'file')}{directories}, {format_size(done.bytes)} shared")


def _mount_of(path: str, named: str) -> table.Mount:
    """Return the mount that a path is on."""
    try:
        device = os.lstat(path).st_dev
    except FileNotFoundError:
        raise Failure(f"{path}: no such file or directory", Exit.NOT_FOUND) from None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = [mount for mount in table.read_table() if mount.device == wanted and mount.type == table.FUSE_TYPE]
    if not found:
        raise Failure(f"{named} is not on a fusefs mount")
    return found[-1]


def _check(source: str, parent: str, target: str, name: str) -> None:
    """Refuse what cannot work, and what the kernel would refuse this user."""
    if not name or name in (".", ".."):
        raise Failure(f"{target}: not a new name")
    if os.path.lexists(target):
        raise Failure(f"{target} exists")
    real = os.path.realpath(source)
    inside = os.path.realpath(parent) + "/"
    if os.path.isdir(source) and not os.path.islink(source) and inside.startswith(real.rstrip("/") + "/"):
        raise Failure(f"{target} is inside {source}: a tree cannot be cloned into itself")
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        raise Failure(f"{parent}: permission denied")
    if os.geteuid():
        _check_readable(source)


def _check_readable(source: str) -> None:
    """Have the kernel say whether this user could open all of a tree, as cp(1) would have to. The clone itself is made
    beside the mount, where nobody asks."""
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if os.path.islink(path):
            continue
        directory = os.path.isdir(path)
        if not os.access(path, os.R_OK | os.X_OK if directory else os.R_OK, effective_ids=True):
            raise Failure(f"{path}: permission denied")
        if directory:
            waiting += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]


def _user() -> User | None:
    """For whom a clone is made, None for root."""
    uid = os.geteuid()
    return User(uid, os.getegid(), frozenset(os.getgroups())) if uid else None


async def _clone(
    config: ClusterConfig, keys: CurveKeys | None, source: int, parent: int, name: bytes, progress: Progress
) -> Cloned:
    cluster = Cluster(
        cluster_id=config.cluster_id_bytes,
        members={member.id: Peer(member.address, member.public_key.encode()) for member in config.members},
    )

    def told(cloned: Cloned) -> None:
        progress.update(f"cloned {count(cloned.files, 'file')}, {format_size(cloned.bytes)}")

    options = ClientOptions(leases=False)
    async with open_volume(cluster, keys=keys, mount="fusefs clone", options=options) as volume:
        return await volume.clone(source, parent, name, told, _user())
