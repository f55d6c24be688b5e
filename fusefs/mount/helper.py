"""``mount.fusefs``: what mount(8), fstab and systemd call. Exit code 0 when it serves, else 32 and the reason."""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusefs.mount import table
from fusefs.mount.launch import MountFailed, MountRequest, start_background
from fusefs.mount.options import parse_options
from node.host.cluster import load_cluster
from node.host.exitcodes import UsageError, describe

FAILED = 32  # "mount failure" in mount(8)
USAGE = "usage: mount.fusefs CLUSTER_TOML DIR [-sfnv] [-o OPTIONS]"


@dataclass(frozen=True, slots=True)
class Call:
    """The command line of a mount helper."""

    source: str
    directory: str
    options: tuple[str, ...]
    sloppy: bool
    fake: bool
    verbose: bool


def parse_call(arguments: Sequence[str]) -> Call:
    """Read the command line. UsageError when it is none of a mount helper's."""
    try:
        flags, operands = getopt.gnu_getopt(list(arguments), "sfnvN:t:o:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error}; {USAGE}") from None
    if len(operands) != 2:
        raise UsageError(USAGE)
    names = [name for name, _ in flags]
    if "-N" in names:
        raise UsageError("mounting in another namespace (-N) is not supported")
    return Call(
        source=operands[0],
        directory=operands[1],
        options=tuple(value for name, value in flags if name == "-o"),
        sloppy="-s" in names,
        fake="-f" in names,
        verbose="-v" in names,
    )


def run(call: Call) -> None:
    """Check what can be checked before, then mount. Raises UsageError, FsError, OSError or MountFailed."""
    parse_options(call.options, sloppy=call.sloppy)
    cluster_path = Path(os.path.abspath(call.source))
    load_cluster(cluster_path)
    mount = table.absolute(call.directory)
    table.check_mount_point(mount)
    if call.fake:
        return
    start_background(MountRequest(cluster_path, mount, call.options))
    if call.verbose:
        print(f"mount.fusefs: {call.source} mounted on {mount}")


def main() -> int:
    """Entry point of the console script."""
    try:
        run(parse_call(sys.argv[1:]))
    except Exception as error:
        line = str(error) if isinstance(error, MountFailed) else describe(error)
        if line is None:
            raise
        print(f"mount.fusefs: {line}", file=sys.stderr)
        return FAILED
    return 0
