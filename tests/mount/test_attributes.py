"""Attributes by the system calls that programs use, where a FUSE filesystem easily differs from a local one."""

from __future__ import annotations

import errno
import os
import stat
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
