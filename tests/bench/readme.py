"""Writes the tables of figures into README.md: between its two marks, and nowhere else.

    make bench README=1        # or: python -m tests.bench.readme [--repeats N] [--quick] [--json FILE]

Runs every row over the mount, MooseFS where it is installed, bindfs and a plain directory: with one copy, and the first
two with three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench import moosefs
from tests.bench.meter import Meter
from tests.bench.rows import GROUPS, Scale
from tests.bench.systems import Bindfs, Fusefs, Plain

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- figures: written by make bench README=1 -->\n", "<!-- end of figures -->\n"

Table = dict[str, dict[str, list[float]]]


def measure(copies: int, scale: Scale, repeats: int, units: dict[str, str]) -> Table:
    """All rows over all systems, one system after the other in each repeat. With more than one copy there is nothing to
    compare a plain directory with."""
    table: Table = {}
    base = Path(tempfile.mkdtemp(prefix="fusefs-bench-", dir="/var/tmp"))
    systems: list[Plain] = []
    peaks: dict[str, int] = {}
    try:
        systems.append(Fusefs(base, members=copies, servers=copies, replicas=copies))
        if not moosefs.missing():
            systems.append(moosefs.MooseFs(base, copies))
        if copies == 1:
            systems += [Plain(base), Bindfs(base)]
        for group, run in GROUPS.items():
            for repeat in range(repeats):
                for system in systems:
                    print(f"{copies}x {group} {repeat + 1}/{repeats} {system.name}", file=sys.stderr, flush=True)
                    with Meter(system) as meter:
                        for row, value, unit in run(system, scale):
                            table.setdefault(row, {}).setdefault(system.name, []).append(value)
                            units[row] = unit
                    if system.pids():
                        table.setdefault(f"CPU, {group}", {}).setdefault(system.name, []).append(meter.cpu_s)
                        units[f"CPU, {group}"] = "s"
                        peaks[system.name] = max(peaks.get(system.name, 0), meter.rss_bytes)
        table["anonymous memory, peak"] = {name: [peak / (1 << 20)] for name, peak in peaks.items()}
        units["anonymous memory, peak"] = "MiB"
    finally:
        for system in systems:
            system.close()
        shutil.rmtree(base, ignore_errors=True)
    return table


def figure(values: list[float] | None) -> str:
    if not values:
        return ""
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ahead(table: Table, row: str, other: str, unit: str) -> str:
    """How many times as fast, or as cheap, the first is."""
    ours, theirs = table.get(row, {}).get("fusefs"), table.get(row, {}).get(other)
    if not ours or not theirs:
        return ""
    quotient = statistics.median(ours) / statistics.median(theirs)
    return f"{1 / quotient if unit in ('s', 'MiB') else quotient:.2f}"


def render(one: Table, three: Table, units: dict[str, str], scale: Scale, repeats: int) -> str:
    """The text between the marks."""
    lines = [
        f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} CPUs, Python {platform.python_version()}; files of"
        f" {scale.file_mib} MiB, {scale.files:,} small ones, {scale.directories} directories; medians of {repeats}.",
        "",
        "| row | unit | plain | bindfs | fusefs, 1 copy | MooseFS, 1 copy | ahead by | fusefs, 3 copies"
        " | MooseFS, 3 copies | ahead by |",
        "|---" * 10 + "|",
    ]
    for row, unit in units.items():
        cells = [figure(one.get(row, {}).get(name)) for name in ("plain", "bindfs", "fusefs", "moosefs")]
        cells.append(ahead(one, row, "moosefs", unit))
        cells += [figure(three.get(row, {}).get(name)) for name in ("fusefs", "moosefs")]
        cells.append(ahead(three, row, "moosefs", unit))
        lines.append(f"| {row} | {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(text: str, readme: Path = README) -> None:
    """Replace what is between the marks."""
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}{text}{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench README=1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="an eighth of the sizes and one repeat")
    parser.add_argument("--json", help="keep all single figures here")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the bench mounts filesystems and drops caches: run it as root")
    if lacking := moosefs.missing():
        print(f"without MooseFS: {', '.join(lacking)} not installed", file=sys.stderr)
    scale, repeats = (Scale(64, 160, 16, 64, 64), 1) if options.quick else (Scale(), options.repeats)
    units: dict[str, str] = {}
    one, three = (measure(copies, scale, repeats, units) for copies in (1, 3))
    if options.json:
        Path(options.json).write_text(json.dumps({"units": units, "one": one, "three": three}, indent=1))
    text = render(one, three, units, scale, repeats)
    print(text)
    write(text)


if __name__ == "__main__":
    main()
