"""Rules in which the kernel is the point, with real mounts: 5, 6, 8, 9, 14 and 18.

Each scene gets two directories, which are the same one through two mounts: A and B. Then it is played with a mount B in
which the rule is taken out.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metadata import api
from metadata.state.files import Files
from metadata.state.turn import Turn
from node.wire.limits import SESSION_RENEW_S
from tests.harness import LONG, Cluster, cluster, need_fuse
from tests.rules import violated
from tests.rules.weakened import weakened
from tests.unit.state.support import World

STALL_S = 5.0  # longer than anything takes where nobody waits for a lease or a request to end
TRIALS = 300 if LONG else 60
ATTEMPTS = 6  # to miss a rule, on a machine that is busy with other things

Scene = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_fuse()
    base = tmp_path_factory.mktemp("rules")
    with cluster(base / "data") as made:
        made.mount(base / "a")
        made.mount(base / "b")
        yield made


@pytest.fixture
def play(volume: Cluster, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Play a scene; then without the rule, where it must go wrong. ``under``: what makes it likely to, if it can."""
    a, b = (mount / request.node.name for mount in volume.mounts)

    def both(scene: Scene, without: str, under: str = "") -> None:
        a.mkdir()
        if under:
            with weakened(volume, tmp_path / "u", under) as mount:
                scene(a, mount / a.name)
        else:
            scene(a, b)
        attempts = [a.with_name(f"{a.name}-again{number}") for number in range(ATTEMPTS)]
        for again in attempts:
            again.mkdir()
        with weakened(volume, tmp_path / "w", *filter(None, (under, without))) as mount:
            missed = any(violated(partial(scene, again, mount / again.name)) for again in attempts)
            assert missed, f"nobody misses the rule against {without}"

    return both


# --- rule 5 ---------------------------------------------------------------------------------------------------------


def create_in_one_directory(a: Path, b: Path) -> None:
    """Each create recalls the directory from the other mount, whose own create holds the kernel's lock on it."""
    took: list[float] = []
    began = [0.0, 0.0]
    stop = time.monotonic() + 60
    together = threading.Barrier(2)  # else one may be done before the other begins

    def create(which: int, top: Path) -> None:
        # The mount is taken away from a thread that hangs
        with contextlib.suppress(OSError, threading.BrokenBarrierError):
            for i in range(TRIALS):
                together.wait(STALL_S * 4)
                began[which] = time.monotonic()
                (top / f"{which}-{i}").touch()
                took.append(time.monotonic() - began[which])
                began[which] = 0.0
        began[which] = 0.0

    threads = [
        threading.Thread(target=create, args=(which, top), daemon=True) for which, top in enumerate((a, b))
    ]
    for thread in threads:
        thread.start()
    stalled = 0
    while any(thread.is_alive() for thread in threads) and time.monotonic() < stop:
        stalled += any(since and time.monotonic() > since + STALL_S for since in began)
        time.sleep(0.01)
    assert not stalled, "a creation hung: its answer and a recall waited for one another"
    took.sort()
    assert len(took) == 2 * TRIALS
    print(f"creating in one directory: p50 {took[TRIALS] * 1e3:.1f} ms, p99 {took[-TRIALS // 50 - 1] * 1e3:.1f} ms")


def test_rule_05_no_recall_waits_for_who_waits_for_the_leader(play: Callable[..., None]) -> None:
    play(create_in_one_directory, "names_under_the_lock", under="told_what_others_want")


# --- rule 6 ---------------------------------------------------------------------------------------------------------


def test_rule_06_a_stopped_mount_shows_no_old_pages(volume: Cluster, tmp_path: Path) -> None:
    """B is stopped, with a descriptor open and its pages in the kernel. What A writes meanwhile is what a read of that
    descriptor finds, though nobody has told B: it asks, and so waits. Where the kernel believes in attributes for
    longer than their lease, it does not ask."""
    a, b = volume.mounts
    name = "rule_06"
    (a / name).write_text("old!")
    os.utime(a / name, ns=(10**18, 10**18))
    with weakened(volume, tmp_path / "w", "attributes_for_ever") as w:
        pids = [volume.mount_pid(b), volume.mount_pid(w)]
        with open(b / name, "rb", buffering=0) as on_b, open(w / name, "rb", buffering=0) as on_w:
            for file in (on_b, on_w):
                for _ in range(3):
                    assert os.pread(file.fileno(), 10, 0) == b"old!"
                    os.fstat(file.fileno())
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                (a / name).write_text("new!")
                os.utime(a / name, ns=(10**18, 10**18))
                found: list[bytes] = []
                reader = threading.Thread(target=lambda: found.append(os.pread(on_b.fileno(), 10, 0)))
                reader.start()
                assert os.pread(on_w.fileno(), 10, 0) == b"old!", "nobody misses the rule"
                reader.join(0.1)
                assert found in ([], [b"new!"]), "old pages were shown"
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            reader.join(60)
            assert found == [b"new!"]


def test_rule_06_each_change_of_data_raises_mtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the kernel compares are mtime and size, and clocks stand still or go back."""

    def scene() -> None:
        world = World()
        ino = world.make(b"f", mtime_ns=1000)
        shown = set()
        for mtime_ns in (1000, 900, 5000, 5000, 4999):
            shown.add(world.do(api.Commit(ino, (), 5, mtime_ns, 1)).attr.mtime_ns)
        assert len(shown) == 5, "two different contents look the same"

    scene()
    real = Files._write

    def write(self: Files, change: Any, size: int, mtime_ns: int, turn: Turn) -> None:
        real(self, change, size, mtime_ns, turn)
        change.inode.mtime_ns = mtime_ns
        self._inodes.save(change.inode)

    monkeypatch.setattr(Files, "_write", write)
    assert violated(scene)


# --- rule 8 ---------------------------------------------------------------------------------------------------------


def change_mapped_pages(a: Path, b: Path) -> None:
    """B is alone with a file and has changed a mapped page, and nobody knows. A looks, and sees it; A writes over it,
    and nothing of B's comes later."""
    for i in range(5):
        name = f"f{i}"
        (b / name).write_bytes(b"0" * 8192)
        with open(b / name, "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[:4] = b"BBBB"
            mapped[4096:4100] = b"BBBB"
            if i % 2:
                assert (a / name).read_bytes()[:4] == b"BBBB", "A does not see what B has stored"
            with open(a / name, "r+b", buffering=0) as other:
                other.write(b"A" * 10)
                os.fsync(other.fileno())
            seen = mapped[:10]
            assert seen == b"A" * 10, f"{name}: B sees {seen!r} of A's write, and A {(a / name).read_bytes()[:10]!r}"
            os.fsync(file.fileno())
        expected = b"A" * 10 + b"0" * 4086 + b"BBBB" + b"0" * 4092
        for top in (a, b):
            assert (top / name).read_bytes() == expected, "what B had stored came late, or not at all"


def test_rule_08_a_recall_brings_what_only_the_kernel_has(play: Callable[..., None]) -> None:
    play(change_mapped_pages, "pages_stay")


# --- rule 9 ---------------------------------------------------------------------------------------------------------


def append_from_both(a: Path, b: Path) -> None:
    """Both append to one file, with descriptors that stay open, truncating it now and then."""
    (a / "log").touch()
    flags = os.O_WRONLY | os.O_APPEND
    one, other = os.open(a / "log", flags), os.open(b / "log", flags)
    try:
        expected = b""
        for i in range(TRIALS):
            if i % 20 == 19:
                os.truncate((a, b)[i // 20 % 2] / "log", 0)
                expected = b""
            for fd, who in ((one, b"a"), (other, b"b")):
                os.write(fd, who + b"%06d\n" % i)
            for fd in (one, other):
                os.fsync(fd)
            expected += b"a%06d\nb%06d\n" % (i, i)
            found = (a / "log").read_bytes()
            assert found == (b / "log").read_bytes()
            assert sorted(found.split()) == sorted(expected.split()), "something was overwritten"
    finally:
        os.close(one)
        os.close(other)


def test_rule_09_appends_go_to_the_true_end(play: Callable[..., None]) -> None:
    play(append_from_both, "offset_of_the_kernel")


# --- rule 14 --------------------------------------------------------------------------------------------------------


def remove_what_is_open_there(a: Path, b: Path) -> None:
    """B has a file open, and no lease on it any more; A removes it; B reads."""
    files = [f"f{i}" for i in range(20)]
    for name in files:
        (a / name).write_bytes(name.encode() * 1000)
    fds = [os.open(b / name, os.O_RDONLY) for name in files]
    try:
        for name in files:
            os.chmod(a / name, 0o600)  # takes B's lease
            os.unlink(a / name)
        end = time.monotonic() + SESSION_RENEW_S + 1  # by then B has heard of it
        while time.monotonic() < end:
            time.sleep(0.2)
            for name, fd in zip(files, fds):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                try:
                    found = os.pread(fd, 1 << 16, 0)
                except OSError as error:
                    found = str(error).encode()
                assert found == name.encode() * 1000, "an open file is gone"
    finally:
        for fd in fds:
            os.close(fd)


def test_rule_14_an_open_file_stays_readable(play: Callable[..., None]) -> None:
    play(remove_what_is_open_there, "open_files_are_let_go")


# --- rule 18 --------------------------------------------------------------------------------------------------------


def open_while_it_is_replaced(a: Path, b: Path) -> None:
    """A replaces a file again and again; B finds it each time, and always with a whole content."""
    (a / "f").write_text("0")
    stop = threading.Event()
    wrong: list[str] = []
    looks = [0]

    def look() -> None:
        while not stop.is_set():
            try:
                text = (b / "f").read_text()
                if not text.isdigit():
                    wrong.append(f"content {text!r}")
            except OSError as error:
                wrong.append(str(error))
            looks[0] += 1

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for i in range(2 * TRIALS):
            (a / "tmp").write_text(str(i))
            os.replace(a / "tmp", a / "f")
            if wrong:
                break
    finally:
        stop.set()
        looker.join(60)
    print(f"{looks[0]} looks")
    assert not wrong, wrong[:3]


def test_rule_18_a_name_that_never_ceased_to_exist_is_found(play: Callable[..., None]) -> None:
    play(open_while_it_is_replaced, "gone_means_missing", "late_opens")
