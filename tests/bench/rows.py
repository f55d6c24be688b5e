"""The workloads. A group is a generator over one system's directory that yields (row, figure, unit).

Rates (op/s, MiB/s, entries/s, files/s) are better when higher, seconds when lower. Data never repeats between
repeats, so that deduplication cannot help; "cold" is a new mount and empty kernel caches.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tests.bench.systems import Plain

MIB = 1 << 20
Figure = tuple[str, float, str]
now = time.perf_counter


@dataclass(frozen=True)
class Scale:
    """How much work a run does."""

    file_mib: int = 512
    files: int = 1250
    synced_files: int = 125
    directories: int = 500
    accesses: int = 500
    processes: int = 4


class Source:
    """Data whose every 4 KiB differ from all data before; random, or Python source text that compresses."""

    def __init__(self, size: int, compressible: bool) -> None:
        self.rng = random.Random(time.time_ns())
        text = b"".join(p.read_bytes() for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
        unit = text if compressible else self.rng.randbytes(16 * MIB + 4099)
        self.data = bytearray((unit * (size // len(unit) + 1))[:size])

    def fresh(self) -> memoryview:
        for offset in range(0, len(self.data) - 16, 4096):
            self.data[offset : offset + 16] = b"%016x" % self.rng.getrandbits(64)
        return memoryview(self.data)


def rate(paths: Sequence[Path], call: Callable[[Path], object]) -> float:
    start = now()
    for path in paths:
        call(path)
    return len(paths) / (now() - start)


def read_all(path: Path) -> int:
    buffer, total = bytearray(MIB), 0
    fd = os.open(path, os.O_RDONLY)
    while count := os.readv(fd, [buffer]):
        total += count
    os.close(fd)
    return total


def create(path: Path, sync: bool = False) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, os.urandom(4096))
    if sync:
        os.fsync(fd)
    os.close(fd)


def create_synced(path: Path) -> None:
    create(path, sync=True)


def read_small(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert len(os.read(fd, 8192)) == 4096
    os.close(fd)


def touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def sequential(system: Plain, scale: Scale) -> Iterator[Figure]:
    for kind in ("random", "compressible"):
        data = Source(scale.file_mib * MIB, kind == "compressible").fresh()
        path = system.top / kind
        start = now()
        with open(path, "wb", buffering=0) as f:
            for offset in range(0, len(data), MIB):
                f.write(data[offset : offset + MIB])
            os.fsync(f.fileno())
        yield f"seqwrite_{kind}", scale.file_mib / (now() - start), "MiB/s"
        for heat in ("cold", "warm"):
            if heat == "cold":
                system.cold()
            start = now()
            assert read_all(path) == len(data)
            yield f"seqread_{heat}_{kind}", scale.file_mib / (now() - start), "MiB/s"
        path.unlink()


def accesses(system: Plain, scale: Scale) -> Iterator[Figure]:
    path = system.top / "accessed"
    path.write_bytes(Source(scale.file_mib * MIB, False).fresh())
    rng = random.Random(1)
    offsets = [rng.randrange(scale.file_mib * MIB // 4096) * 4096 for _ in range(scale.accesses)]
    system.cold()
    fd = os.open(path, os.O_RDWR)
    start = now()
    for offset in offsets:
        assert len(os.pread(fd, 4096, offset)) == 4096
    yield "randread4k_cold", len(offsets) / (now() - start), "op/s"
    start = now()
    for offset in offsets:
        os.pwrite(fd, os.urandom(4096), offset)
    os.fsync(fd)
    os.close(fd)
    yield "randwrite4k_fsync", len(offsets) / (now() - start), "op/s"
    path.unlink()


def small(system: Plain, scale: Scale) -> Iterator[Figure]:
    top = system.top / "small"
    top.mkdir()
    names = [top / f"f{i:05}" for i in range(scale.files)]
    synced = [top / f"s{i:05}" for i in range(scale.synced_files)]
    yield "small_create", rate(names, create), "op/s"
    yield "small_create_fsync", rate(synced, create_synced), "op/s"
    system.cold()
    yield "small_stat_cold", rate(names, os.stat), "op/s"
    yield "small_stat_warm", rate(names, os.stat), "op/s"
    system.cold()
    yield "small_read_cold", rate(names, read_small), "op/s"
    yield "small_read_warm", rate(names, read_small), "op/s"
    yield "small_unlink", rate(names + synced, os.unlink), "op/s"
    top.rmdir()


def list_tree(top: Path) -> int:
    count, stack = 0, [str(top)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                count += 1
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return count


def names(system: Plain, scale: Scale) -> Iterator[Figure]:
    top = system.top / "names"
    top.mkdir()
    made = [top / f"d{i:04}" for i in range(scale.directories)]
    yield "mkdir", rate(made, os.mkdir), "op/s"
    yield "rename", rate(made, lambda p: os.rename(p, f"{p}-renamed")), "op/s"
    made = [top / f"{p.name}-renamed" for p in made]
    yield "create_empty", rate([p / "x" for p in made], touch), "op/s"
    for heat in ("cold", "warm"):
        if heat == "cold":
            system.cold()
        start = now()
        count = list_tree(top)
        yield f"lsR_{heat}", count / (now() - start), "entries/s"
        assert count == 2 * len(made)
    for path in made:
        (path / "x").unlink()
    yield "rmdir", rate(made, os.rmdir), "op/s"
    top.rmdir()


def _tree_archive() -> bytes:
    out = io.BytesIO()
    skip = {"__pycache__", "site-packages", "dist-packages"}
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(
            sysconfig.get_path("stdlib"),
            "tree",
            filter=lambda info: None if skip & set(Path(info.name).parts) else info,
        )
    return out.getvalue()


def tools(system: Plain, scale: Scale) -> Iterator[Figure]:
    top = system.top / "tools"
    top.mkdir()
    archive = _tree_archive()

    def timed(row: str, command: str, cwd: Path = top, feed: bytes = b"") -> Figure:
        start = now()
        subprocess.run(command, shell=True, check=True, cwd=cwd, input=feed, stdout=subprocess.DEVNULL)
        return row, now() - start, "s"

    yield timed("tar_x", "tar xf -", feed=archive)
    yield timed("cp_r", "cp -r tree tree2")
    system.cold()
    yield timed("md5_cold", "find tree2 -type f -print0 | xargs -0 md5sum")
    yield timed("md5_warm", "find tree2 -type f -print0 | xargs -0 md5sum")
    yield timed("grep_r", "grep -r --include=*.py ZeroDivisionError tree2")
    yield timed("rm_rf", "rm -rf tree2")
    git = "git -c core.fsync=default -c gc.auto=0 -c user.name=a -c user.email=a@b.c"
    total = 0.0
    for row, command in (
        ("git_init", "init -q ."),
        ("git_add", "add -A"),
        ("git_commit", "commit -qm x"),
        ("git_status", "status --short"),
    ):
        figure = timed(row, f"{git} {command}", top / "tree")
        total += figure[1]
        yield figure
    yield "git_all", total, "s"
    system.cold()
    yield timed("git_status_cold", f"{git} status --short", top / "tree")
    shutil.rmtree(top)


def _in_one_process(job: tuple[str, list[Path]]) -> int:
    call = {"create": create, "create_fsync": create_synced, "stat": os.stat, "read": read_small, "unlink": os.unlink}
    for path in job[1]:
        call[job[0]](path)  # type: ignore[operator]
    return len(job[1])


def parallel(system: Plain, scale: Scale) -> Iterator[Figure]:
    tops = [system.top / f"par{k}" for k in range(scale.processes)]
    for top in tops:
        top.mkdir()
    each = scale.files // scale.processes
    files = [[top / f"f{i:05}" for i in range(each)] for top in tops]
    synced = [[top / f"s{i:05}" for i in range(scale.synced_files // scale.processes)] for top in tops]
    with ProcessPoolExecutor(scale.processes, mp_context=get_context("forkserver")) as pool:
        list(pool.map(_in_one_process, [("stat", [Path("/")])] * scale.processes))

        def together(row: str, call: str, lists: list[list[Path]]) -> Figure:
            start = now()
            count = sum(pool.map(_in_one_process, [(call, paths) for paths in lists]))
            return f"par{scale.processes}_{row}", count / (now() - start), "op/s"

        yield together("create", "create", files)
        yield together("create_fsync", "create_fsync", synced)
        system.cold()
        yield together("stat_cold", "stat", files)
        system.cold()
        yield together("read_cold", "read", files)
        yield together("read_warm", "read", files)
        yield together("unlink", "unlink", [a + b for a, b in zip(files, synced, strict=True)])
    for top in tops:
        top.rmdir()


GROUPS: dict[str, Callable[[Plain, Scale], Iterator[Figure]]] = {
    "small": small,
    "names": names,
    "sequential": sequential,
    "accesses": accesses,
    "tools": tools,
    "parallel": parallel,
}
