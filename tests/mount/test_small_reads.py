"""Small files that are read one after the other come before they are asked for, into the kernel's pages."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from tests.harness import Cluster, profile

FILES = 200


def content(number: int, turn: int = 0) -> bytes:
    return b"%d %d\n" % (number, turn) * (1 + number % 900)


def requests(mount: Path, kind: str) -> int:
    operations = profile(mount)["operations"]
    return int(operations[kind]["count"]) if kind in operations else 0


def write(top: Path, turn: int = 0) -> None:
    for number in range(FILES):
        (top / f"{number:04}").write_bytes(content(number, turn))


def check(top: Path, turn: int = 0) -> None:
    for number in range(FILES):
        assert (top / f"{number:04}").read_bytes() == content(number, turn), number


def test_reading_a_directory_asks_for_few_of_its_files(volume: Cluster, work: Path, second_mount: Path) -> None:
    there = second_mount / work.name
    write(work)
    before = requests(second_mount, "read")
    check(there)
    assert requests(second_mount, "read") - before < FILES // 5
    before = requests(second_mount, "read")
    check(there)
    assert requests(second_mount, "read") == before, "the kernel has them"


def test_what_changes_meanwhile_is_never_shown_as_it_was(volume: Cluster, work: Path, second_mount: Path) -> None:
    """Opened by one mount while another writes: the pages that come along are not of before."""
    there = second_mount / work.name
    write(work)
    for turn in range(1, 3):
        check(there, turn - 1)
        os.listdir(there)
        write(work, turn)
        check(there, turn)
        (work / "0000").write_bytes(content(0, turn + 100))
        assert (there / "0000").read_bytes() == content(0, turn + 100)
        (work / "0000").write_bytes(content(0, turn))


def test_a_file_that_grows_right_after_it_was_opened(volume: Cluster, work: Path, second_mount: Path) -> None:
    there = second_mount / work.name
    write(work)
    check(there)
    for number in range(FILES - 30, FILES):
        name = f"new {number}"
        (work / name).write_bytes(b"a" * 3000)
        with open(there / name, "rb", buffering=0) as file:
            with open(work / name, "ab") as more:
                more.write(b"b" * 3000)
            assert file.readall() == b"a" * 3000 + b"b" * 3000
            assert os.fstat(file.fileno()).st_size == 6000


def mapped(path: Path) -> bytes:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return view[:]


def test_what_nobody_has_open_is_read_anew_when_others_have_changed_it(work: Path, second_mount: Path) -> None:
    """Its pages are left alone until then, though nothing about them tells that they are old."""
    there = second_mount / work.name
    write(work)
    for turn in range(1, 5):
        check(there, turn - 1)
        for number in range(FILES):
            path = work / f"{number:04}"
            before = path.stat()
            with open(path, "r+b") as file:
                file.write(content(number, turn))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            seen = mapped(there / path.name) if turn % 2 else (there / path.name).read_bytes()
            assert seen == content(number, turn)


def test_who_lists_what_another_mount_has_made_does_not_wait_for_its_pages(
    volume: Cluster, work: Path, second_mount: Path
) -> None:
    write(work)
    check(work)
    before = dropped(volume.mounts[0])
    assert len([entry.stat() for entry in os.scandir(second_mount / work.name)]) == FILES
    assert dropped(volume.mounts[0]) == before
    check(second_mount / work.name)


def dropped(mount: Path) -> int:
    """How often the kernel was told to drop pages."""
    return int(profile(mount)["statistics"]["mount.cache.forgotten_pages"])
