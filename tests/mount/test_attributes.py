"""Attributes by the system calls that programs use, where a FUSE filesystem easily differs from a local one."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from pathlib import Path

import pytest

from tests.harness import run

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


def test_truncating_open_takes_setuid(work: Path) -> None:
    path = work / "tool"
    path.write_bytes(b"x")
    path.chmod(0o6777)
    path.write_bytes(b"by root")
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777
    run(*NOBODY, "sh", "-c", ": > tool", cwd=work)  # by a relative path: the directories above are closed
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@pytest.mark.parametrize("time_s", [-1 << 40, -(10**10) - 1, 253402300799, 1 << 40])
def test_times_out_of_range_are_clamped(work: Path, time_s: int) -> None:
    path = work / "f"
    path.touch()
    os.utime(path, (time_s, time_s))
    assert (path.stat().st_mtime_ns < 0) == (time_s < 0)
    assert abs(path.stat().st_mtime_ns) > 9 * 10**18


def test_a_nanosecond_before_1970(work: Path) -> None:
    path = work / "f"
    path.touch()
    os.utime(path, ns=(-1, -1))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (-1, -1)


def test_attribute_namespaces(work: Path) -> None:
    path = work / "f"
    path.touch()
    for name in ("user.a", "trusted.a", "security.a"):
        os.setxattr(path, name, b"v")
    assert set(os.listxattr(path)) == {"user.a", "trusted.a", "security.a"}
    for name, expected in (("foo.bar", errno.EOPNOTSUPP), ("user.", errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            os.setxattr(path, name, b"v")
        assert caught.value.errno == expected


@pytest.mark.parametrize("flags", [0, os.O_APPEND, os.O_DIRECT], ids=["buffered", "append", "direct"])
def test_a_write_takes_the_capabilities_that_another_mount_has_given(
    flags: int, work: Path, second_mount: Path
) -> None:
    """The mount that writes may have known until then that there are none."""
    path, other = work / "f", second_mount / work.name / "f"
    capable = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw, as in linux/capability.h
    block = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o755)
    try:
        for i in range(20):
            os.write(fd, block)
            os.setxattr(other, "security.capability", capable)
            if i % 2:
                assert os.getxattr(path, "security.capability") == capable
            os.write(fd, block)
            for where in (path, other):
                assert "security.capability" not in os.listxattr(where)
    finally:
        os.close(fd)


@pytest.mark.parametrize("how", ["conv=notrunc", "oflag=append conv=notrunc", "oflag=direct conv=notrunc"])
def test_a_write_takes_setuid(how: str, work: Path) -> None:
    path = work / "tool"
    path.write_bytes(b"x" * 4096)
    write = f"dd if=/dev/zero of=tool bs=4096 count=1 {how}"
    path.chmod(0o6777)
    run("sh", "-c", write, cwd=work)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777, "not from root"
    run(*NOBODY, "sh", "-c", write, cwd=work)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
