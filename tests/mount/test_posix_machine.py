"""A hypothesis state machine drives the mount and a tmpfs directory with the same calls and compares the answers."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.harness import LONG

NAMES = st.sampled_from(["a", "b", "c", "d"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4711, 0o2770, 0o1777])
DATA = st.binary(max_size=40) | st.integers(1, 70_000).map(lambda n: b"%05d" % n * (n // 5))
OFFSETS = st.sampled_from([0, 1, 7, 4095, 4096, 65_536, 1_048_575, 1_048_576, 1_500_000])
# Answers that depend on the order in which a system looks at two errors that are both true.
SAME = {errno.ENOTEMPTY: errno.EEXIST}

counter = itertools.count()


def describe(top: Path, path: str) -> object:
    s = os.lstat(top / path)
    kind = stat.S_IFMT(s.st_mode)
    size = None if stat.S_ISDIR(kind) else s.st_size
    # tmpfs counts links of directories as we do: two and one for each directory inside
    return kind, stat.S_IMODE(s.st_mode), s.st_nlink, s.st_uid, s.st_gid, size


class Comparison(RuleBasedStateMachine):
    mount: Path
    plain: Path

    @initialize()
    def begin(self) -> None:
        self.tops = (self.mount / f"m{next(counter)}", self.plain / f"m{next(counter)}")
        for top in self.tops:
            top.mkdir()

    def teardown(self) -> None:
        for top in getattr(self, "tops", ()):
            shutil.rmtree(top)

    def both(self, call: object) -> None:
        answers = []
        for top in self.tops:
            try:
                answers.append(("ok", call(top)))  # type: ignore[operator]
            except OSError as error:
                answers.append(("error", SAME.get(error.errno or 0, error.errno)))
        assert answers[0] == answers[1], f"mount: {answers[0]}, tmpfs: {answers[1]}"

    @rule(path=PATHS, mode=MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.both(lambda top: os.mkdir(top / path, mode))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda top: os.rmdir(top / path))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda top: os.unlink(top / path))

    @rule(source=PATHS, to=PATHS)
    def rename(self, source: str, to: str) -> None:
        self.both(lambda top: os.rename(top / source, top / to))

    @rule(source=PATHS, to=PATHS)
    def link(self, source: str, to: str) -> None:
        self.both(lambda top: os.link(top / source, top / to, follow_symlinks=False))

    @rule(text=PATHS, path=PATHS)
    def symlink(self, text: str, path: str) -> None:
        self.both(lambda top: os.symlink(text, top / path))

    @rule(path=PATHS)
    def readlink(self, path: str) -> None:
        self.both(lambda top: os.readlink(top / path))

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda top: os.chmod(top / path, mode))

    @rule(path=PATHS, uid=st.sampled_from([0, 1000]), gid=st.sampled_from([0, 1000, -1]))
    def chown(self, path: str, uid: int, gid: int) -> None:
        self.both(lambda top: os.lchown(top / path, uid, gid))

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda top: os.truncate(top / path, size))

    @rule(path=PATHS, times=st.tuples(st.integers(0, 1 << 60), st.integers(0, 1 << 60)))
    def utime(self, path: str, times: tuple[int, int]) -> None:
        def call(top: Path) -> int:
            os.utime(top / path, ns=times)
            return os.stat(top / path).st_mtime_ns

        self.both(call)

    @rule(
        path=PATHS,
        offset=OFFSETS,
        data=DATA,
        flags=st.sampled_from([0, os.O_EXCL, os.O_TRUNC, os.O_APPEND]),
        create=st.booleans(),
    )
    def write(self, path: str, offset: int, data: bytes, flags: int, create: bool) -> None:
        def call(top: Path) -> int:
            fd = os.open(top / path, os.O_RDWR | flags | (os.O_CREAT if create else 0), 0o640)
            try:
                written = os.pwrite(fd, data, offset) if not flags & os.O_APPEND else os.write(fd, data)
                return written + os.fstat(fd).st_size * 1_000_000
            finally:
                os.close(fd)

        self.both(call)

    @rule(path=PATHS)
    def read(self, path: str) -> None:
        self.both(lambda top: (top / path).read_bytes())

    @rule(path=PATHS)
    def listdir(self, path: str) -> None:
        self.both(lambda top: sorted(os.listdir(top / path)))

    @rule(path=PATHS)
    def lstat(self, path: str) -> None:
        self.both(lambda top: describe(top, path))

    @rule(path=PATHS, name=st.sampled_from(["user.a", "user.b"]), value=st.binary(max_size=30))
    def set_and_list_xattrs(self, path: str, name: str, value: bytes) -> None:
        def call(top: Path) -> object:
            os.setxattr(top / path, name, value, follow_symlinks=True)
            names = sorted(n for n in os.listxattr(top / path) if n.startswith("user."))
            return names, os.getxattr(top / path, name)

        self.both(call)

    @invariant()
    def same_tree(self) -> None:
        if not hasattr(self, "tops"):
            return
        trees = []
        for top in self.tops:
            found = {}
            for where, directories, files in os.walk(top):
                for name in directories + files:
                    path = os.path.relpath(os.path.join(where, name), top)
                    found[path] = describe(top, path)
            trees.append(found)
        assert trees[0] == trees[1]


def test_mount_behaves_like_tmpfs(volume: object, work: Path) -> None:
    plain = Path("/dev/shm") / f"compare-{os.getpid()}"
    plain.mkdir()
    try:
        probe = plain / "probe"
        probe.touch()
        try:
            os.setxattr(probe, "user.a", b"")
        except OSError:
            pytest.fail("tmpfs here has no user attributes: compare with another directory")
        probe.unlink()
        machine = type("Bound", (Comparison,), {"mount": work, "plain": plain})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=400 if LONG else 40,
                stateful_step_count=40,
                deadline=None,
                print_blob=True,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        shutil.rmtree(plain)
