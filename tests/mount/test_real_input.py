"""CPython's standard library goes in, out and around by the ordinary tools."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from pathlib import Path

import pytest

from tests.harness import run

STDLIB = Path(sysconfig.get_path("stdlib"))
SKIP = {"__pycache__", "site-packages", "dist-packages"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private copy of the standard library, with a symlink, a hard link, an empty directory and odd names."""
    copy = tmp_path_factory.mktemp("source") / "lib"
    run("cp", "-a", STDLIB, copy)
    for cache in [p for p in copy.rglob("*") if p.name in SKIP]:
        run("rm", "-rf", cache)
    (copy / "a link").symlink_to("os.py")
    (copy / "dangling").symlink_to("nowhere/at all")
    os.link(copy / "abc.py", copy / "abc hard.py")
    (copy / "empty").mkdir()
    (copy / "n\u00e4me with \u4e2d\u6587 and 'quotes'").write_text("x")
    os.mkfifo(copy / "fifo")
    (copy / "private").write_bytes(b"secret")
    (copy / "private").chmod(0o400)
    os.utime(copy / "private", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    return copy


def checksums(top: Path) -> dict[str, str]:
    return {
        str(p.relative_to(top)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(top.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }


def attributes(top: Path) -> dict[str, tuple[int, ...]]:
    """What an archiver must keep: type, permissions, owner, size and, except for directories, mtime."""
    found = {}
    for p in sorted(top.rglob("*")):
        s = p.lstat()
        directory = stat.S_ISDIR(s.st_mode)
        found[str(p.relative_to(top))] = (
            s.st_mode,
            s.st_uid,
            s.st_gid,
            0 if directory else s.st_size,
            0 if directory else s.st_nlink,
        )
    return found


def test_cp_archive(tree: Path, work: Path) -> None:
    run("cp", "-a", tree, work / "lib")
    run("diff", "-r", "--no-dereference", "--exclude=fifo", tree, work / "lib")
    assert checksums(work / "lib") == checksums(tree)
    assert attributes(work / "lib") == attributes(tree)
    for name in ("private", "os.py", "json/decoder.py"):
        assert (work / "lib" / name).stat().st_mtime_ns == (tree / name).stat().st_mtime_ns
    assert (work / "lib/abc hard.py").stat().st_ino == (work / "lib/abc.py").stat().st_ino


def test_tar_extract(tree: Path, work: Path, tmp_path: Path) -> None:
    run("tar", "cf", tmp_path / "lib.tar", "-C", tree.parent, "lib")
    run("tar", "xpf", tmp_path / "lib.tar", "-C", work)
    run("tar", "df", tmp_path / "lib.tar", "-C", work)
    assert attributes(work / "lib") == attributes(tree)
    # and out again, read from the mount
    run("tar", "cf", tmp_path / "again.tar", "-C", work, "lib")
    run("tar", "df", tmp_path / "again.tar", "-C", tree.parent)


def test_rsync_twice(tree: Path, work: Path) -> None:
    run("rsync", "-aH", f"{tree}/", work / "lib")
    again = run("rsync", "-aH", "--itemize-changes", "--checksum", f"{tree}/", work / "lib")
    assert again.stdout == "", "the second rsync found a difference"
    assert checksums(work / "lib") == checksums(tree)
    assert attributes(work / "lib") == attributes(tree)


def test_ordinary_tools(tree: Path, work: Path) -> None:
    """mv, ln, chmod, touch, find, du and rm on the whole tree."""
    lib = work / "lib"
    run("cp", "-a", tree, lib)
    want = checksums(tree)

    run("mv", lib / "json", lib / "yaml")
    run("mv", lib / "yaml", work / "outside")
    run("mv", work / "outside", lib / "json")
    assert checksums(lib) == want

    run("chmod", "-R", "u+rwX,go-rwx", lib)
    modes = {stat.S_IMODE(p.lstat().st_mode) & 0o077 for p in lib.rglob("*") if not p.is_symlink()}
    assert modes == {0}

    run("cp", "-al", lib, work / "links")
    assert (work / "links/os.py").stat().st_ino == (lib / "os.py").stat().st_ino
    assert (lib / "os.py").stat().st_nlink == 2
    run("ln", "-s", lib, work / "pointer")
    assert (work / "pointer/os.py").read_bytes() == (tree / "os.py").read_bytes()
    run("rm", "-rf", work / "links")
    assert (lib / "os.py").stat().st_nlink == 1

    files = run("find", lib, "-type", "f").stdout.splitlines()
    assert len(files) == len(want)
    run("touch", "-d", "2001-02-03 04:05:06.789", lib / "os.py")
    assert (lib / "os.py").stat().st_mtime_ns % 1_000_000_000 == 789_000_000

    run("rm", "-rf", lib)
    assert sorted(p.name for p in work.iterdir()) == ["pointer"]


def test_removal_while_open(work: Path) -> None:
    """A removed file lives until its last descriptor is closed."""
    path = work / "gone"
    with open(path, "w+b") as f:
        f.write(b"before")
        f.flush()
        path.unlink()
        assert not path.exists()
        f.write(b" and after")
        f.flush()
        os.fsync(f.fileno())
        f.seek(0)
        assert f.read() == b"before and after"
        assert os.fstat(f.fileno()).st_nlink == 0
    assert list(work.iterdir()) == []
