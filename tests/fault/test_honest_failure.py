"""Full disks, flipped bytes, dead servers and wrong input: one clear answer, and nothing acknowledged is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FUSEFS, Cluster, need_fuse, run, wait_for

MIB = 1 << 20


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A small disk of our own that can be filled."""
    need_fuse()
    path = tmp_path / "disk"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=220m", "tmpfs", path)
    yield path
    run("umount", "-l", path)


def fill(top: Path, unit: int) -> tuple[dict[str, bytes], int]:
    """Write fsynced files until the first error; return what was acknowledged and the error's number."""
    acknowledged: dict[str, bytes] = {}
    for i in range(10_000):
        data = os.urandom(unit)
        try:
            fd = os.open(top / f"fill{i}", os.O_WRONLY | os.O_CREAT)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            return acknowledged, error.errno or 0
        acknowledged[f"fill{i}"] = data
    raise AssertionError("the disk never became full")


def check_full(made: Cluster, mount: Path, unit: int) -> None:
    acknowledged, code = fill(mount, unit)
    assert code == errno.ENOSPC, os.strerror(code)
    assert len(acknowledged) >= 5
    for name, data in acknowledged.items():
        assert (mount / name).read_bytes() == data
    # names can still be removed, and after a restart all is as it was acknowledged
    victim = acknowledged.popitem()[0]
    os.unlink(mount / victim)
    made.umount(mount)
    made.down()
    made.up()
    made.mount(mount)
    assert not (mount / victim).exists()
    for name, data in acknowledged.items():
        assert (mount / name).read_bytes() == data


def test_capacity_reached(tmp_path: Path) -> None:
    need_fuse()
    made = Cluster(tmp_path / "data", capacity="64MiB")
    try:
        made.up()
        check_full(made, made.mount(tmp_path / "mnt"), 3 * MIB)
    finally:
        made.clean()


def test_disk_full(tmpfs: Path, tmp_path: Path) -> None:
    made = Cluster(tmpfs / "data", capacity="10GiB")
    try:
        made.up()
        check_full(made, made.mount(tmp_path / "mnt"), 5 * MIB)
    finally:
        made.clean()


def test_flipped_byte_is_eio_and_named(tmp_path: Path) -> None:
    need_fuse()
    made = Cluster(tmp_path / "data")
    mount = tmp_path / "mnt"
    try:
        made.up()
        made.mount(mount)
        good, bad = os.urandom(MIB), os.urandom(MIB)
        for name, data in (("good", good), ("bad", bad)):
            with open(mount / name, "wb") as f:
                f.write(data)
                os.fsync(f.fileno())
        made.umount(mount)
        made.down()
        damaged = 0
        for segment in (made.directory / "storage-1" / "segments").rglob("*"):
            raw = segment.read_bytes() if segment.is_file() else b""
            at = raw.find(bad[500_000:500_064])
            if at >= 0:
                with open(segment, "r+b") as f:
                    f.seek(at)
                    f.write(bytes([raw[at] ^ 0x40]))
                damaged += 1
        assert damaged == 1, "random data is stored raw, once"
        made.up()
        made.mount(mount)
        with pytest.raises(OSError) as caught:
            (mount / "bad").read_bytes()
        assert caught.value.errno == errno.EIO
        assert (mount / "good").read_bytes() == good
        logs = "".join(p.read_text(errors="replace") for p in (made.directory / "log").glob("*.log"))
        assert "CORRUPT" in logs.upper()
        from storage.api import encode_block

        name = bytes(encode_block(bad)[0]).hex()
        assert name[:16] in logs, "the log must name the block"
        made.lost = {name}
    finally:
        made.clean()


def test_chunk_server_dies_and_returns(tmp_path: Path) -> None:
    need_fuse()
    made = Cluster(tmp_path / "data")
    mount = tmp_path / "mnt"
    try:
        made.up()
        made.mount(mount, "-o", "timeout=6s")
        (mount / "before").write_bytes(b"x" * 200_000)
        made.umount(mount)
        made.mount(mount, "-o", "timeout=6s")
        made.kill(made.server_pids()["storage-1"])
        start = time.monotonic()
        with pytest.raises(OSError):
            (mount / "before").read_bytes()
        with pytest.raises(OSError):
            with open(mount / "during", "wb") as f:
                f.write(b"y" * 3 * MIB)
                os.fsync(f.fileno())
        assert time.monotonic() - start < 45
        assert "before" in os.listdir(mount), "names do not need the chunk server"
        run(FUSEFS, "up", made.directory, "--only", "storage-1", "--detach")
        wait_for(lambda: _reads(mount / "before", b"x" * 200_000), 60, "reads work again")
        (mount / "after").write_bytes(b"z" * 2 * MIB)
        assert (mount / "after").read_bytes() == b"z" * 2 * MIB
    finally:
        made.clean()


def test_stopped_servers_do_not_hang_the_mount(tmp_path: Path) -> None:
    """SIGSTOP: the processes exist and say nothing. Each call ends by its deadline; afterwards all serve again."""
    need_fuse()
    made = Cluster(tmp_path / "data")
    mount = tmp_path / "mnt"
    try:
        made.up()
        made.mount(mount, "-o", "timeout=5s")
        (mount / "f").write_bytes(b"x" * 100_000)
        pids = made.server_pids()
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        done = subprocess.run(["cat", str(mount / "f")], capture_output=True, timeout=30)
        assert done.returncode != 0 or done.stdout == b"x" * 100_000
        command = ["dd", "if=/dev/zero", f"of={mount / 'g'}", "bs=1k", "count=1", "conv=fsync"]
        done = subprocess.run(command, capture_output=True, timeout=30)
        assert done.returncode != 0, "what nobody has stored is not acknowledged as synced"
        assert time.monotonic() - start < 45
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: _reads(mount / "f", b"x" * 100_000), 60, "reads work again")
        (mount / "h").write_bytes(b"again")
        assert (mount / "h").read_bytes() == b"again"
    finally:
        made.clean()


def _reads(path: Path, want: bytes) -> bool:
    try:
        return path.read_bytes() == want
    except OSError:
        return False
