"""End a mount of this host and wait until its process has flushed and gone."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from fusefs.cli.output import Failure, Progress
from fusefs.cli.processes import Ending
from fusefs.mount import table
from fusefs.mount.plan import STOP_S
from fusefs.mount.state import MountState, find_state, states_of

WAIT_S = STOP_S + 10.0  # the process gives up by itself before


@dataclass(frozen=True, slots=True)
class LocalMount:
    """One mount of a cluster on this host. ``state`` is None where its process left none that we may read."""

    path: str
    state: MountState | None

    def process(self) -> Ending:
        """Return the process that serves it; taken before it is told to end."""
        return Ending(self.state.holder if self.state else lambda: None)


def mounts_here(cluster_path: Path) -> list[LocalMount]:
    """Return this host's mounts of a cluster.toml: those in the mount table and those whose process still lives."""
    found = {mount.path: find_state(cluster_path, mount.path) for mount in table.mounts_of(cluster_path)}
    for state, info in states_of(cluster_path):
        if info.mount not in found and state.holder() is not None:
            found[info.mount] = state
    return [LocalMount(path, state) for path, state in found.items()]


def unmount(mount: LocalMount) -> None:
    """Unmount as umount(8) does and wait for the process. While somebody uses the mount: Failure, nothing changed."""
    process = mount.process()
    try:
        with Progress(f"unmounting {mount.path}"):
            table.unmount(mount.path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        users = ", ".join(table.users_of(mount.path)) or "a process that cannot be seen from here"
        raise Failure(f"{mount.path} is busy: {users} uses it; end that or leave it, then try again") from None
    _wait_flushed(mount, process)


def detach(mount: LocalMount) -> None:
    """Have the process unmount, lazily where somebody uses the mount, flush and end; a dead mount is cleared."""
    process = mount.process()
    process.terminate()
    _wait_flushed(mount, process)
    if any(entry.path == mount.path for entry in table.read_table() if entry.type == table.FUSE_TYPE):
        table.unmount(mount.path, lazy=True)


def _wait_flushed(mount: LocalMount, process: Ending) -> None:
    """Wait until the process has ended. Failure when it does not, or when it said that something was not flushed."""
    with Progress(f"flushing {mount.path}"):
        ended = process.wait(WAIT_S)
    if not ended:
        raise Failure(f"{mount.path}: its process ({process.pid}) has not ended within {WAIT_S:g}s; it may be flushing")
    if mount.state is None:
        return
    mount.state.clear()  # what a killed process could not
    failure = mount.state.take_failure()
    if failure:
        raise Failure(f"{mount.path} is unmounted, but not everything was flushed: {failure}")
