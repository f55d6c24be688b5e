"""Three copies: what a reader and a writer notice when a server damages, stops or dies, and what the server is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FUSEFS, Cluster, cluster, need_fuse, profile, run, seed, wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_fuse()
    with cluster(tmp_path_factory.mktemp("three") / "data", servers=3, replicas=3) as made:
        yield made


def configure(made: Cluster, **client: str) -> None:
    """Set what mounts do from now on."""
    before = made.config.read_text().split("\n[client]")[0]
    made.config.write_text(before + "\n[client]\n" + "".join(f"{key} = {value}\n" for key, value in client.items()))


def segments(made: Cluster, server: int) -> list[Path]:
    return sorted((made.directory / f"storage-{server}" / "segments").glob("*.seg"))


def copy_of(made: Cluster, server: int, marker: bytes) -> tuple[Path, int] | None:
    """Where a server holds these bytes."""
    for path in segments(made, server):
        at = path.read_bytes().find(marker)
        if at >= 0:
            return path, at
    return None


def read_anew(path: Path) -> bytes:
    """Read a file, nothing of it from the kernel's memory."""
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()


def test_bad_and_silent_copies_are_read_elsewhere_and_told(made: Cluster, tmp_path: Path) -> None:
    configure(made, block_cache_bytes='"0"', short_circuit="false")
    mount = made.mount(tmp_path / "m")
    data = os.urandom(3 * MIB)
    with open(mount / "f", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    marker = data[MIB + 4321 : MIB + 4321 + 64]
    # fsync waits for two of three; the damage is done where the copy is
    place = wait_for(lambda: copy_of(made, 1, marker), 60, "the copy of server 1")
    path, at = place
    with open(path, "r+b") as segment:
        segment.seek(at)
        segment.write(bytes([marker[0] ^ 1]))
    pids = made.server_pids()
    os.kill(pids["storage-2"], signal.SIGSTOP)

    def told() -> bool:
        assert read_anew(mount / "f") == data  # each read begins with another server
        return re.search(r"corrupt block [0-9a-f]{64} in segment", made.log("storage-1")) is not None

    try:
        for _ in range(6):
            told()
        wait_for(told, 60, "server 1 to name its bad copy")
    finally:
        os.kill(pids["storage-2"], signal.SIGCONT)
        made.umount(mount)


def test_what_lies_on_this_host_is_read_without_its_servers(made: Cluster, tmp_path: Path) -> None:
    configure(made, block_cache_bytes='"0"')
    mount = made.mount(tmp_path / "m")
    data = os.urandom(6 * MIB)
    with open(mount / "f", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())

    def reads() -> float:
        before: float = counted()
        assert read_anew(mount / "f") == data
        return counted() - before

    def counted() -> float:
        found: float = profile(mount)["statistics"]["volume.blocks.short_circuit_reads"]
        return found

    wait_for(lambda: reads() >= 6, 60, "the mount to know where all blocks lie")
    pids = [pid for name, pid in made.server_pids().items() if name.startswith("storage-")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert reads() >= 6
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    marker = data[2 * MIB + 4321 : 2 * MIB + 4321 + 64]
    for server in (1, 2):  # only the copy of server 3 stays good
        path, at = wait_for(lambda: copy_of(made, server, marker), 60, f"the copy of server {server}")  # noqa: B023
        with open(path, "r+b") as segment:
            segment.seek(at)
            segment.write(bytes([marker[0] ^ 1]))
    for _ in range(3):
        assert read_anew(mount / "f") == data
    made.umount(mount)


def test_a_clone_outlives_the_metadata_service(made: Cluster, tmp_path: Path) -> None:
    configure(made)
    mount = made.mount(tmp_path / "m")
    source, target = mount / "source", mount / "target"
    for number in range(40):
        path = source / f"d{number % 8}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 100)
    with subprocess.Popen([FUSEFS, "clone", source, target], stdout=subprocess.PIPE, text=True) as cloning:
        wait_for(lambda: target.exists() or cloning.poll() is not None, 60, "the clone to begin")
        made.kill(made.server_pids()["metadata-1"])
        run(FUSEFS, "up", made.directory, "--only", "metadata-1", "--detach", timeout_s=120)
        told, _ = cloning.communicate(timeout=120)
    assert cloning.returncode == 0 and "40 files in 9 directories" in told, told
    subprocess.run(["diff", "-r", source, target], check=True)
    made.umount(mount)


def test_a_server_killed_in_mid_stream_costs_no_byte(made: Cluster, tmp_path: Path) -> None:
    configure(made, chain="true")
    mount = made.mount(tmp_path / "m")
    number = seed("data path")
    data = os.urandom(32 * MIB)
    victim = f"storage-{1 + number % 3}"
    pid = made.server_pids()[victim]
    halfway = threading.Event()

    def kill() -> None:
        halfway.wait(60)
        made.kill(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with open(mount / "f", "wb", buffering=0) as file:
        for at in range(0, len(data), MIB):
            file.write(data[at : at + MIB])
            if at == 12 * MIB:
                halfway.set()
        killer.join(60)
        os.fsync(file.fileno())
    made.umount(mount)
    made.mount(mount)
    assert (mount / "f").read_bytes() == data
