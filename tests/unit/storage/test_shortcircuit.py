"""Reading a store's segments beside the server that writes them."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from node.host.disk import SystemDisk
from node.wire.errors import Code, FsError
from node.wire.limits import PIECE_BYTES, SHORT_CIRCUIT_FILES_MAX
from storage import api, shortcircuit
from storage.block import take
from storage.catalog import MemoryCatalog
from storage.records import SegmentHeader
from storage.segments import segment_name
from storage.shortcircuit import SegmentReader
from storage.store import BlockStore, StoreOptions
from tests.unit.storage.stores import CLUSTER, clock, commit, plain, put, randomness

SIZES = (1, 1000, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5, 1 << 20)
DATAS = [plain(seed, size) for seed in (1, 3) for size in SIZES]  # the second half compresses
NAMES = [api.name_block(data) for data in DATAS]


def open_store(path: Path) -> BlockStore:
    options = StoreOptions(segment_bytes=1 << 20, reserve_bytes=0)
    disk = SystemDisk(path / "segments")
    return BlockStore(disk, MemoryCatalog(), CLUSTER, clock=clock(), random=randomness(), options=options)


def place(store: BlockStore, block: bytes) -> api.Located:
    entry = store.locate(block)
    return api.Located(entry.segment, entry.offset, entry.stored, entry.plain)


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    made = open_store(tmp_path)
    for data in DATAS:
        assert commit(made, put(data)) == [0]
    return made


@pytest.fixture
def reader(tmp_path: Path, store: BlockStore) -> SegmentReader:
    return SegmentReader(str(tmp_path / "segments"), store.identity)


def descriptors(directory: Path) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing
        if target.startswith(f"{directory}/"):
            found.append(target)
    return found


def test_any_part_of_any_block(store: BlockStore, reader: SegmentReader) -> None:
    for data, name in zip(DATAS, NAMES):
        where, size = place(store, name), len(data)
        assert bytes(reader.read(where, name, 0, size)) == data
        for offset in {0, size // 3, size - 1}:
            for length in {1, min(PIECE_BYTES, size - offset), size - offset}:
                assert bytes(reader.read(where, name, offset, length)) == data[offset : offset + length]


def step_by_step(reader: SegmentReader, where: api.Located, name: bytes, offset: int, length: int) -> bytes:
    """As ``read``, for a caller who reads by himself."""
    found = reader.steps(where, name, offset, length)
    assert found is not None
    file, steps = found
    return bytes(take(steps, lambda count, at: file.pread(count, where.offset + at), lambda *_: None))


def test_step_by_step(store: BlockStore, reader: SegmentReader) -> None:
    assert reader.steps(place(store, NAMES[0]), NAMES[0], 0, 1) is None, "opening a file may wait"
    for data, name in zip(DATAS, NAMES):
        where, size = place(store, name), len(data)
        reader.check(where)
        for offset in {0, size // 3, size - 1}:
            for length in {1, min(PIECE_BYTES, size - offset), size - offset}:
                for _ in range(2):  # the second time it is known where the pieces are
                    assert step_by_step(reader, where, name, offset, length) == data[offset : offset + length]


def test_tables_that_are_remembered(store: BlockStore, reader: SegmentReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcircuit, "PIECE_TABLES_MAX", 2)
    for name in NAMES:
        if (one := place(store, name)).stored <= 2 * PIECE_BYTES:
            reader.read(one, name, 0, 1)
    assert reader.tables == 0, "of a small block everything is read"
    larger = [Random(seed).randbytes(1 << 20) for seed in range(3)]
    for data in larger:
        assert commit(store, put(data)) == [0]
    where = [(name, place(store, name)) for name in map(api.name_block, larger)]
    for name, one in where:
        reader.read(one, name, 0, 10)
        assert 0 < reader.tables <= 2
    name, one = where[-1]
    with pytest.raises(FsError):
        reader.read(api.Located(one.segment, one.offset, one.stored, one.length + 1), name, 0, 10)
    assert reader.tables == 1, "it was of no use"


@pytest.mark.parametrize("length", [100, 1 << 20])
def test_damaged_bytes_are_never_returned(
    tmp_path: Path, store: BlockStore, reader: SegmentReader, length: int
) -> None:
    name = NAMES[SIZES.index(1 << 20)]
    where = place(store, name)
    path = tmp_path / "segments" / segment_name(where.segment)
    with open(path, "r+b") as f:
        f.seek(where.offset + where.stored - 50)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))
    with pytest.raises(FsError) as failure:
        reader.read(where, name, (1 << 20) - length, length)
    assert failure.value.code == Code.CORRUPT_BLOCK


def test_a_place_where_another_block_lies(store: BlockStore, reader: SegmentReader) -> None:
    with pytest.raises(FsError) as failure:
        reader.read(place(store, NAMES[1]), NAMES[2], 0, 100)
    assert failure.value.code == Code.CORRUPT_BLOCK
    beyond = api.Located(1, 1 << 40, 1000, 1000)
    with pytest.raises(FsError) as failure:
        reader.read(beyond, NAMES[1], 0, 100)
    assert failure.value.code == Code.CORRUPT_BLOCK


def test_what_was_removed_is_readable_while_it_is_open_and_then_let_go(
    tmp_path: Path, store: BlockStore, reader: SegmentReader
) -> None:
    directory = tmp_path / "segments"
    where = place(store, NAMES[1])
    own = len(descriptors(directory))
    reader.check(where)
    assert len(descriptors(directory)) == own + 1
    os.unlink(directory / segment_name(where.segment))
    assert bytes(reader.read(where, NAMES[1], 0, 1000)) == DATAS[1]
    assert reader.tidy() == 0  # or the disk would not get its space back
    assert len(descriptors(directory)) == own
    with pytest.raises(FileNotFoundError):
        reader.read(where, NAMES[1], 0, 1000)


def test_what_nobody_reads_is_closed(store: BlockStore, reader: SegmentReader) -> None:
    where = place(store, NAMES[1])
    reader.check(where)
    assert (reader.tidy(), reader.tidy()) == (1, 0)
    assert bytes(reader.read(where, NAMES[1], 0, 1000)) == DATAS[1]
    assert reader.tidy() == 1


def test_open_files_are_bounded(tmp_path: Path, store: BlockStore, reader: SegmentReader) -> None:
    for number in range(100, 100 + 2 * SHORT_CIRCUIT_FILES_MAX):
        header = SegmentHeader(number, 0, CLUSTER, store.identity)
        (tmp_path / "segments" / segment_name(number)).write_bytes(header.pack())
        reader.check(api.Located(number))
    assert reader.tidy() == SHORT_CIRCUIT_FILES_MAX


@pytest.mark.parametrize("what", ["another store", "another segment", "no header", "nothing"])
def test_files_that_are_not_the_stores(tmp_path: Path, store: BlockStore, reader: SegmentReader, what: str) -> None:
    header = SegmentHeader(77, 0, CLUSTER, store.identity)
    contents = {
        "another store": header._replace(store=bytes(16)).pack(), "another segment": header._replace(number=78).pack(),
        "no header": bytes(4096), "nothing": b"",
    }
    (tmp_path / "segments" / segment_name(77)).write_bytes(contents[what])
    with pytest.raises(FsError) as failure:
        reader.check(api.Located(77))
    assert failure.value.code == Code.FOREIGN_CLUSTER


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, reader: SegmentReader) -> None:
    directory = tmp_path / "segments"
    os.mkfifo(directory / segment_name(77))
    os.symlink(directory / segment_name(1), directory / segment_name(78))
    os.mkdir(directory / segment_name(79))
    for number in (77, 78, 79, 80):
        with pytest.raises(OSError):
            reader.check(api.Located(number))


def test_a_directory_has_an_absolute_path() -> None:
    for path in ("", "segments", "../segments"):
        with pytest.raises(FsError) as failure:
            SegmentReader(path, b"")
        assert failure.value.code == Code.INVALID
