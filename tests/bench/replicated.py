"""What copies cost: a large file written and read with 1 and 3 replicas beside a plain directory, with the CPU seconds
of the servers and the mount, and how fast a wiped chunk server fills up and a drained one empties.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import MIB, Source, read_all
from tests.bench.systems import Fusefs, Plain
from tests.harness import FUSEFS, Cluster, run, wait_for

Row = tuple[str, str, float, str]  # row, system, figure, unit
PATIENCE_S = 600.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
now = time.perf_counter


def measure(base: Path, file_mib: int) -> Iterator[Row]:
    """Rows of the group ``replicated``, in a directory of their own below ``base``."""
    base = base / "replicated"
    base.mkdir()
    data = Source(file_mib * MIB, False)
    plain = Plain(base)
    write_s, read_s = _write(plain, data), _read(plain)
    for replicas in (1, 3):
        yield f"seqwrite_{replicas}_copies", "plain", file_mib / write_s, "MiB/s"
        yield f"seqread_{replicas}_copies", "plain", file_mib / read_s, "MiB/s"
        part = base / f"copies{replicas}"
        part.mkdir()
        system = Fusefs(part, servers=replicas, replicas=replicas)
        try:
            yield from _one(system, data, replicas, file_mib)
        finally:
            system.close()
            shutil.rmtree(part, ignore_errors=True)


def _one(system: Fusefs, data: Source, replicas: int, file_mib: int) -> Iterator[Row]:
    for what in ("write", "read"):
        if what == "read":
            system.cold()
        before = cpu_s(system.cluster)
        took_s = _write(system, data) if what == "write" else _read(system)
        after = cpu_s(system.cluster)
        yield f"seq{what}_{replicas}_copies", "fusefs", file_mib / took_s, "MiB/s"
        for who in ("servers", "client"):
            spent_s = (after[who] - before[who]) * 1024 / file_mib
            yield f"cpu_{what}_{who}_{replicas}_copies", "fusefs", spent_s, "s/GiB"
    if replicas == 3:
        yield "repair", "fusefs", _repair(system.cluster), "MiB/s"
        yield "drain", "fusefs", _drain(system.cluster), "MiB/s"


def _write(system: Plain, data: Source) -> float:
    view = data.fresh()
    begun = now()
    with open(system.top / "large", "wb", buffering=0) as file:
        for at in range(0, len(view), MIB):
            file.write(view[at : at + MIB])
        os.fsync(file.fileno())
    return now() - begun


def _read(system: Plain) -> float:
    system.cold()
    begun = now()
    read_all(system.top / "large")
    return now() - begun


def cpu_s(cluster: Cluster) -> dict[str, float]:
    """CPU time used so far by the living servers, and by the mounts."""
    servers = set(cluster.server_pids().values())
    return {
        "servers": sum(map(_used_s, servers)),
        "client": sum(_used_s(pid) for pid in cluster.pids() if pid not in servers),
    }


def _used_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK_S


def _used_mib(cluster: Cluster, name: str) -> float:
    return sum(int(row["used_bytes"] or 0) for row in cluster.status()["servers"] if row["name"] == name) / MIB


def _repair(cluster: Cluster) -> float:
    """A chunk server loses its disk; how fast the new one gets everything."""
    wanted_mib = _used_mib(cluster, "storage-2")
    cluster.kill(cluster.server_pids()["storage-2"])
    shutil.rmtree(cluster.directory / "storage-2")
    begun = now()
    run(FUSEFS, "up", cluster.directory, "--only", "storage-2", "--detach")
    wait_for(lambda: _used_mib(cluster, "storage-2") >= wanted_mib - 1, PATIENCE_S, "the wiped server to be filled")
    return wanted_mib / (now() - begun)


def _drain(cluster: Cluster) -> float:
    """A fourth server takes its share, then another one is emptied; how fast."""
    run(FUSEFS, "server", "add", cluster.config, "storage-4")
    run(FUSEFS, "up", cluster.directory, "--only", "storage-4", "--detach")
    wait_for(lambda: _used_mib(cluster, "storage-4") > 1, PATIENCE_S, "the fourth server to take part")
    run(FUSEFS, "rebalance", cluster.config, timeout_s=PATIENCE_S)
    gone_mib = _used_mib(cluster, "storage-3")
    begun = now()
    run(FUSEFS, "server", "drain", cluster.config, "storage-3", timeout_s=PATIENCE_S)
    wait_for(lambda: _used_mib(cluster, "storage-3") < 1, PATIENCE_S, "the drained server to be empty")
    return gone_mib / (now() - begun)
