"""``make bench``: the same work on the mount, on a plain directory and on bindfs, in one run; prints, never judges.

    python -m tests.bench [--only ROW-OR-GROUP,...] [--repeats N] [--json FILE] [--members N --servers N --replicas N]

The groups failover, consensus and million run clusters of their own (``tests.bench.failover``); million only by name.
The groups chunk and replicated run chunk servers alone, and clusters with 1 and 3 copies (``tests.bench.chunk``,
``tests.bench.replicated``).
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

from tests.bench import chunk, failover, replicated
from tests.bench.memory import memory
from tests.bench.rows import GROUPS, Scale
from tests.bench.systems import Bindfs, Fusefs, Plain

Table = dict[str, dict[str, list[float]]]


def chosen(only: str) -> tuple[list[str], set[str]]:
    """Split --only into groups to run and rows to print (empty: all of them)."""
    if not only:
        return [*GROUPS, "memory", "chunk", "replicated", "failover", "consensus"], set()
    words = only.split(",")
    known = (*GROUPS, "memory", "chunk", "replicated", *failover.GROUPS)
    groups = [g for g in known if g in words]
    rows = {w for w in words if w not in known}
    prefixes = {
        "seq": "sequential", "rand": "accesses", "small": "small", "par": "parallel", "rss": "memory",
        "mkdir": "names", "rename": "names", "create_empty": "names", "lsR": "names", "rmdir": "names",
        "tar": "tools", "cp": "tools", "md5": "tools", "grep": "tools", "rm_rf": "tools", "git": "tools",
    }  # fmt: skip
    for row in rows:
        group = next((g for p, g in prefixes.items() if row.startswith(p)), None)
        if group is None:
            sys.exit(f"no such row or group: {row}; groups are {', '.join(known)}")
        if group not in groups:
            groups.append(group)
    return groups, rows


def print_table(table: Table, units: dict[str, str], names: list[str]) -> None:
    def cell(row: str, name: str) -> str:
        values = table[row].get(name)
        return f"{statistics.median(values):,.6g}" if values else ""

    def ratio(row: str, name: str) -> str:
        ours, theirs = table[row].get("fusefs"), table[row].get(name)
        if not ours or not theirs:
            return ""
        quotient = statistics.median(ours) / statistics.median(theirs)
        return f"{1 / quotient if units[row] == 's' else quotient:.2f}"

    others = [n for n in names if n != "fusefs"]
    print("| row | unit | " + " | ".join(names) + " | " + " | ".join(f"speed / {n}" for n in others) + " |")
    print("|---" * (2 + len(names) + len(others)) + "|")
    for row in table:
        cells = [cell(row, n) for n in names] + [ratio(row, n) for n in others]
        print(f"| {row} | {units[row]} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="an eighth of the sizes and one repeat")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the bench mounts filesystems and drops caches: run it as root")
    groups, rows = chosen(options.only)
    scale = Scale(64, 160, 16, 64, 64) if options.quick else Scale()
    repeats = 1 if options.quick else options.repeats

    base = Path(tempfile.mkdtemp(prefix="fusefs-bench-", dir="/var/tmp"))
    table: Table = {}
    units: dict[str, str] = {}
    systems: list[Plain] = []
    try:
        flags = {"members": options.members, "servers": options.servers, "replicas": options.replicas}
        if any(group not in (*failover.GROUPS, "chunk", "replicated") for group in groups):
            systems += [Fusefs(base, **flags), Plain(base), Bindfs(base)]
        for group in groups:
            if group not in GROUPS:
                continue
            for repeat in range(repeats):
                for system in systems:
                    print(f"{group} {repeat + 1}/{repeats} {system.name}", file=sys.stderr, flush=True)
                    for row, value, unit in GROUPS[group](system, scale):
                        if not rows or row in rows:
                            table.setdefault(row, {}).setdefault(system.name, []).append(value)
                            units[row] = unit
        if "memory" in groups:
            fusefs = systems[0]
            assert isinstance(fusefs, Fusefs)
            for row, value, unit in memory(fusefs, 1 if options.quick else 10, 2000 if options.quick else 20_000):
                table.setdefault(row, {})["fusefs"] = [value]
                units[row] = unit
        sizes = (256, 50_000) if options.quick else (1024, 1_000_000)
        for row, value, unit in chunk.measure(*sizes) if "chunk" in groups else ():
            table.setdefault(row, {})["fusefs"] = [value]
            units[row] = unit
        for row, name, value, unit in replicated.measure(base, scale.file_mib) if "replicated" in groups else ():
            table.setdefault(row, {})[name] = [value]
            units[row] = unit
        own = [group for group in groups if group in failover.GROUPS]
        for row, value, unit in failover.measure(own, failover.Effort(5, 2.0) if options.quick else failover.Effort()):
            print(f"{row} {value:,.6g} {unit}", file=sys.stderr, flush=True)
            table.setdefault(row, {})["fusefs"] = [value]
            units[row] = unit
    finally:
        for system in systems:
            system.close()
        shutil.rmtree(base, ignore_errors=True)
        # Also where it broke off: what was measured took minutes
        machine = f"{platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
        print(f"# {machine}, medians of {repeats}")
        below = ["plain"] if "replicated" in groups else []
        print_table(table, units, [s.name for s in systems] or ["fusefs", *below])
    if options.json:
        Path(options.json).write_text(json.dumps({"units": units, "figures": table}, indent=1))


if __name__ == "__main__":
    main()
