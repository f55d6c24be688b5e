"""A hypothesis state machine drives two mounts and a tmpfs directory, and compares.

Each operation goes through one of the mounts, by chance, and to the directory; then the tree is looked at through the
other mount. Files stay open on either while others change, truncate, rename and remove them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.harness import LONG
from tests.mount.test_posix_machine import DATA, OFFSETS, PATHS, SAME, Comparison, counter, describe

READ_MAX = 100_000  # of each file, whenever the tree is looked at
OPEN_MAX = 6
FLAGS = st.sampled_from([0, 0, os.O_APPEND, os.O_TRUNC])


class TwoMounts(Comparison):
    """``mount`` and ``other`` are the same directory through two mounts."""

    other: Path
    done = [0, 0]  # operations through each

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        name = f"m{next(counter)}"
        self.mounts = (self.mount / name, self.other / name)
        self.tops = (self.mounts[0], self.plain / name)
        self.which = 0
        self.open: list[tuple[int, int]] = []  # on a mount, and in the directory
        for top in self.tops:
            top.mkdir()

    def teardown(self) -> None:
        for pair in getattr(self, "open", ()):
            for fd in pair:
                os.close(fd)
        super().teardown()

    def both(self, call: object) -> None:
        self.which = self.rng.randrange(2)
        self.done[self.which] += 1
        self.tops = (self.mounts[self.which], self.tops[1])
        super().both(call)

    def both_files(self, number: int, call: Callable[[int], object]) -> None:
        answers = []
        for fd in self.open[number % len(self.open)]:
            try:
                answers.append(("ok", call(fd)))
            except OSError as error:
                answers.append(("error", SAME.get(error.errno or 0, error.errno)))
        assert answers[0] == answers[1], f"mount: {answers[0]}, tmpfs: {answers[1]}"

    # --- files that stay open ---------------------------------------------------------------------------------

    @precondition(lambda self: len(self.open) < OPEN_MAX)
    @rule(path=PATHS, flags=FLAGS, create=st.booleans())
    def open_file(self, path: str, flags: int, create: bool) -> None:
        opened: list[int] = []

        def call(top: Path) -> int:
            fd = os.open(top / path, os.O_RDWR | flags | (os.O_CREAT if create else 0), 0o600)
            opened.append(fd)
            return os.fstat(fd).st_size

        try:
            self.both(call)
        finally:
            if len(opened) == 2:
                self.open.append((opened[0], opened[1]))

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, OPEN_MAX), offset=OFFSETS, data=DATA)
    def write_open(self, number: int, offset: int, data: bytes) -> None:
        def call(fd: int) -> object:
            written = os.pwrite(fd, data, offset)
            os.fsync(fd)
            return written, os.fstat(fd).st_size

        self.both_files(number, call)

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, OPEN_MAX), offset=OFFSETS, length=st.sampled_from([1, 100, 5000, 100_000]))
    def read_open(self, number: int, offset: int, length: int) -> None:
        self.both_files(number, lambda fd: os.pread(fd, length, offset))

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, OPEN_MAX), size=OFFSETS)
    def truncate_open(self, number: int, size: int) -> None:
        self.both_files(number, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, OPEN_MAX))
    def stat_open(self, number: int) -> None:
        def call(fd: int) -> object:
            s = os.fstat(fd)
            return stat.S_IMODE(s.st_mode), s.st_nlink, s.st_uid, s.st_gid, s.st_size

        self.both_files(number, call)

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, OPEN_MAX))
    def close_open(self, number: int) -> None:
        for fd in self.open.pop(number % len(self.open)):
            os.close(fd)

    # --- the other view ---------------------------------------------------------------------------------------

    @invariant()
    def same_tree(self) -> None:
        if hasattr(self, "mounts"):
            assert tree(self.mounts[1 - self.which]) == tree(self.tops[1])


def tree(top: Path) -> dict[str, object]:
    """Everything below, with attributes and contents."""
    found: dict[str, object] = {}
    for where, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.relpath(os.path.join(where, name), top)
            data = None
            with contextlib.suppress(OSError), open(top / path, "rb", buffering=0) as file:
                data = file.read(READ_MAX)
            found[path] = describe(top, path), data
    return found


def test_two_mounts_behave_like_one_tmpfs(work: Path, second_mount: Path) -> None:
    plain = Path("/dev/shm") / f"compare-two-{os.getpid()}"
    plain.mkdir()
    began = time.monotonic()
    try:
        bound = {"mount": work, "other": second_mount / work.name, "plain": plain}
        run_state_machine_as_test(
            type("Bound", (TwoMounts,), bound),
            settings=settings(
                max_examples=300 if LONG else 25,
                stateful_step_count=50,
                deadline=None,
                print_blob=True,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        shutil.rmtree(plain)
    print(f"{TwoMounts.done} operations through the two mounts, {time.monotonic() - began:.1f} s")
