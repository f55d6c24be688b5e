"""``fusefs profile``: what a mount of this host does, and how long each kind of request takes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fusefs.cli.options import output_of, with_json
from fusefs.cli.output import Failure
from fusefs.mount import table
from fusefs.mount.observe import read_profile
from fusefs.mount.profile import MountProfile, OperationProfile
from fusefs.mount.state import find_state
from node.host.units import format_size

PAUSE_S = 1.0


@click.command()
@click.argument("mnt", type=click.Path())
@with_json
@click.pass_context
def profile(context: click.Context, mnt: str) -> None:
    """Show the requests that MNT serves: how many, how long they take, how many bytes.

    On a terminal second by second, until Ctrl-C; otherwise, and with --json, once, since the mount began.
    """
    path = table.absolute(mnt)
    entry = table.mounted_at(path)
    if entry is None or entry.type != table.FUSE_TYPE:
        raise Failure(f"{path} is not a fusefs mount")
    state = find_state(table.cluster_of(entry.source), path)
    if state is None:
        raise Failure(f"the process that serves {path} left no trace on this host")
    output = output_of(context)
    if sys.stdout.isatty() and not output.as_json:
        _follow(state.socket_path)
        return
    seen = read_profile(state.socket_path)
    output.document(document_of(seen))
    for line in lines_of(seen.operations, seen.elapsed_s):
        output.line(line)


def document_of(seen: MountProfile) -> dict[str, Any]:
    """What --json prints: operations that were asked for, and the statistics of the caches."""
    return {
        "mount": seen.mount,
        "elapsed_s": seen.elapsed_s,
        "operations": {
            name: {
                "count": row.count,
                "errors": row.errors,
                "bytes": row.bytes,
                "total_s": row.total_ns / 1e9,
                "p50_s": row.quantile_s(0.5),
                "p99_s": row.quantile_s(0.99),
                "max_s": row.max_ns / 1e9,
            }
            for name, row in seen.operations.items()
            if row.count
        },
        "statistics": seen.statistics,
    }


HEADINGS = ("operation", "count", "per second", "p50 ms", "p99 ms", "max ms", "errors", "bytes/s")


def rows_of(operations: dict[str, OperationProfile], elapsed_s: float) -> list[tuple[str, ...]]:
    """A row for each operation that there was, the one that took most first."""
    found = sorted(operations.items(), key=lambda item: -item[1].total_ns)
    span_s = max(elapsed_s, 1e-9)
    return [
        (
            name,
            f"{row.count}",
            f"{row.count / span_s:.1f}",
            f"{row.quantile_s(0.5) * 1e3:.3f}",
            f"{row.quantile_s(0.99) * 1e3:.3f}",
            f"{row.max_ns / 1e6:.3f}",
            f"{row.errors}",
            format_size(int(row.bytes / span_s)) if row.bytes else "",
        )
        for name, row in found
        if row.count
    ]


def lines_of(operations: dict[str, OperationProfile], elapsed_s: float) -> list[str]:
    """The rows as text, under their headings."""
    cells = [HEADINGS, *rows_of(operations, elapsed_s)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for name, *figures in cells:
        columns = [name.ljust(widths[0]), *(figure.rjust(width) for figure, width in zip(figures, widths[1:]))]
        lines.append("  ".join(columns))
    return lines


def _follow(path: Path) -> None:
    """Show what was added in each second, until interrupted or until the mount ends."""
    before = read_profile(path)
    try:
        with Live(console=Console(), auto_refresh=False) as live:
            while True:
                time.sleep(PAUSE_S)
                now = read_profile(path)
                live.update(_panel(now, before), refresh=True)
                before = now
    except KeyboardInterrupt:
        pass


def _panel(now: MountProfile, before: MountProfile) -> Table:
    nothing = OperationProfile()
    added = {name: row.since(before.operations.get(name, nothing)) for name, row in now.operations.items()}
    panel = Table(title=now.mount)
    for number, heading in enumerate(HEADINGS):
        panel.add_column(heading, justify="right" if number else "left")
    for row in rows_of(added, now.elapsed_s - before.elapsed_s):
        panel.add_row(*row)
    return panel
