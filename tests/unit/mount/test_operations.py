"""The adapter over a fake volume: what is translated, what is counted, and that no exception escapes."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import structlog.testing
import trio

from fusefs.mount.attributes import permitted
from fusefs.mount.errors import COMPLAINTS_MAX, REPEAT_S, Complaints
from fusefs.mount.handles import HandleTable
from fusefs.mount.operations import END, Operations
from metadata.api import RENAME_EXCHANGE, RENAME_NOREPLACE, Attr, VolumeStat
from node.wire.errors import Code, FsError
from node.wire.limits import STORED_BYTES_MAX
from tests.unit.mount.attrs import Opened, attr

CTX = SimpleNamespace(uid=1000, gid=100, pid=os.getpid(), umask=0o22)


class FakeVolume:
    """Answers what a test put into ``answers`` and notes every call."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []

    def forgotten(self, ino: int) -> None:
        self.calls.append(("forgotten", ino))

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any, **kwargs: Any) -> Any:
            await trio.lowlevel.checkpoint()
            self.calls.append((name, *args, kwargs) if kwargs else (name, *args))
            answer = self.answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args) if callable(answer) else answer

        return method


def handle(ino: int) -> Any:
    made = Opened(ino=ino, flags=os.O_RDONLY, append=False, direct=False, uid=0, whole=False, kept=False)
    made.ends = lambda offset: False
    return made


class FakeDropper:
    def __init__(self) -> None:
        self.now: list[int] = []
        self.soon: list[int] = []

    def drop(self, ino: int) -> None:
        self.soon.append(ino)

    async def drop_now(self, ino: int) -> None:
        await trio.lowlevel.checkpoint()
        self.now.append(ino)


def mounted(**answers: Any) -> tuple[Operations, FakeVolume]:
    volume = FakeVolume(**answers)
    return Operations(volume, FakeDropper()), volume  # type: ignore[arg-type]


async def test_lookup_translates_and_counts() -> None:
    found = attr(5, mode=stat.S_IFREG | 0o640, size=1000, stored=4097, rdev=3, nlink=2)
    operations, volume = mounted(lookup=found)
    entry = await operations.lookup(1, b"name", CTX)
    assert volume.calls == [("lookup", 1, b"name")]
    assert (entry.st_ino, entry.st_mode, entry.st_size, entry.st_nlink, entry.st_rdev) == (
        5, stat.S_IFREG | 0o640, 1000, 2, 3
    )
    assert (entry.st_uid, entry.st_gid) == (1000, 1000)
    assert (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns) == (1, 2, 3)
    assert entry.st_blocks == 9, "holes are not counted, part of a sector is"
    assert entry.entry_timeout == entry.attr_timeout == 0, "another mount may change it at any moment"
    await operations.forget([(5, 1)])
    assert volume.calls[-1] == ("forgotten", 5)


async def test_forget_waits_for_the_last_reference() -> None:
    operations, volume = mounted(lookup=attr(5), mkdir=attr(5), link=attr(5))
    await operations.lookup(1, b"a", CTX)
    await operations.mkdir(1, b"b", 0o755, CTX)
    await operations.link(5, 1, b"c", CTX)
    await operations.forget([(5, 2)])
    assert ("forgotten", 5) not in volume.calls
    await operations.forget([(5, 1)])
    assert volume.calls[-1] == ("forgotten", 5)


async def test_a_failed_lookup_counts_nothing() -> None:
    operations, _ = mounted(lookup=FsError(Code.NOT_FOUND))
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.lookup(1, b"name", CTX)
    assert caught.value.errno == errno.ENOENT
    assert operations.kernel.statistics()["inodes"] == 0


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (FsError(Code.NO_SPACE), errno.ENOSPC),
        (FsError(Code.STALE), errno.ESTALE),
        (FsError(Code.TIMEOUT), errno.ETIMEDOUT),
        (FsError(Code.CORRUPT_BLOCK, "block 12ab"), errno.EIO),
        (pyfuse3.FUSEError(errno.EPERM), errno.EPERM),
        (KeyError("a bug"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ExceptionGroup("bugs", [ValueError()]), errno.EIO),
    ],
)
async def test_no_exception_escapes(raised: Exception, expected: int) -> None:
    operations, _ = mounted(getattr=raised)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.getattr(1, CTX)
    assert caught.value.errno == expected


async def test_cancellation_passes() -> None:
    operations, _ = mounted(getattr=attr(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await operations.getattr(1, CTX)
    assert scope.cancelled_caught


async def test_a_damaged_block_is_logged_with_its_name() -> None:
    operations, _ = mounted(open=handle(5), read=FsError(Code.CORRUPT_BLOCK, "block 12ab"))
    info = await operations.open(5, os.O_RDONLY, CTX)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            with pytest.raises(pyfuse3.FUSEError):
                await operations.read(info.fh, 0, 10)
    assert len(logged) == 1, "the same complaint is not repeated at once"
    assert "block 12ab" in logged[0]["error"] and logged[0]["operation"] == "read"


async def test_what_posix_knows_is_not_logged_and_what_nobody_foresaw_is() -> None:
    operations, volume = mounted(getattr=FsError(Code.NOT_FOUND))
    with structlog.testing.capture_logs() as logged, pytest.raises(pyfuse3.FUSEError):
        await operations.getattr(1, CTX)
    assert logged == []
    volume.answers["getattr"] = KeyError("a bug")
    with structlog.testing.capture_logs() as logged, pytest.raises(pyfuse3.FUSEError):
        await operations.getattr(1, CTX)
    assert logged[0]["exc_info"] and logged[0]["log_level"] == "error"


def test_complaints_come_again_after_a_while() -> None:
    now = 0.0
    complaints = Complaints(lambda: now)
    error = FsError(Code.IO, "x")
    with structlog.testing.capture_logs() as logged:
        for now in (0.0, 1.0, 2.0, REPEAT_S + 0.1):
            complaints.make("read", error)
        for i in range(2 * COMPLAINTS_MAX):
            complaints.make("read", FsError(Code.IO, str(i)))
    assert [entry["repeated"] for entry in logged[:2]] == [0, 2]
    assert len(logged) == 2 + 2 * COMPLAINTS_MAX


def fields(*names: str) -> Any:
    every = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
    return SimpleNamespace(**{f"update_{name}": name in names for name in every})


async def test_setattr_passes_only_what_changes() -> None:
    operations, volume = mounted(setattr=attr(5), open=handle(5))
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_size, wanted.st_mtime_ns, wanted.st_uid = stat.S_IFREG | 0o4755, 12, -5, 77
    info = await operations.open(5, os.O_RDWR, CTX)
    await operations.setattr(5, wanted, fields("mode", "mtime"), None, CTX)
    changed = volume.calls[-1][-1]
    assert changed == dict(
        mode=0o4755, uid=None, gid=None, size=None, atime_ns=None, mtime_ns=-5, ctime_ns=None, handle=None
    )
    await operations.setattr(5, wanted, fields("size", "uid"), info.fh, CTX)
    changed = volume.calls[-1][-1]
    assert (changed["size"], changed["uid"], changed["mode"]) == (12, 77, None)
    assert changed["handle"].ino == 5
    wanted.st_mtime_ns, wanted.st_atime_ns = 253402300799 * 10**9, -(1 << 80)
    await operations.setattr(5, wanted, fields("mtime", "atime"), None, CTX)
    changed = volume.calls[-1][-1]
    assert (changed["mtime_ns"], changed["atime_ns"]) == ((1 << 63) - 1, 1 - (1 << 63)), "more than the wire can carry"


async def test_new_inodes_belong_to_the_caller() -> None:
    operations, volume = mounted(mkdir=attr(2), mknod=attr(3), symlink=attr(4), create=(handle(5), attr(5)))
    await operations.mkdir(1, b"d", 0o750, CTX)
    await operations.mknod(1, b"n", stat.S_IFIFO | 0o600, 0, CTX)
    await operations.symlink(1, b"s", b"target", CTX)
    await operations.create(1, b"f", 0o600, os.O_WRONLY, CTX)
    assert volume.calls == [
        ("mkdir", 1, b"d", 0o750, 1000, 100, 0),
        ("mknod", 1, b"n", stat.S_IFIFO | 0o600, 0, 1000, 100, 0),
        ("symlink", 1, b"s", b"target", 1000, 100),
        ("create", 1, b"f", 0o600, os.O_WRONLY, 1000, 100, 0),
    ]
    operations.unmasked = lambda: True  # the kernel leaves the umask to us
    await operations.mkdir(1, b"e", 0o777, CTX)
    assert volume.calls[-1] == ("mkdir", 1, b"e", 0o777, 1000, 100, 0o22)
    assert operations.kernel.statistics()["references"] == 5


async def test_rename_flags() -> None:
    operations, volume = mounted()
    await operations.rename(1, b"a", 2, b"b", pyfuse3.RENAME_NOREPLACE, CTX)
    await operations.rename(1, b"a", 2, b"b", pyfuse3.RENAME_EXCHANGE, CTX)
    assert [call[-1] for call in volume.calls] == [RENAME_NOREPLACE, RENAME_EXCHANGE]
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.rename(1, b"a", 2, b"b", 4, CTX)  # RENAME_WHITEOUT
    assert caught.value.errno == errno.EINVAL


async def test_files_are_known_by_number_until_released() -> None:
    data = memoryview(b"data")
    operations, volume = mounted(open=handle(5), read=data, write=4)
    info = await operations.open(5, os.O_RDWR, CTX)
    assert (info.direct_io, info.keep_cache) == (False, False)
    assert await operations.read(info.fh, 0, 4) is data, "no copy on the way"
    assert await operations.write(info.fh, 8, b"data") == 4
    await operations.flush(info.fh)
    await operations.fsync(info.fh, True)
    await operations.release(info.fh)
    assert [call[0] for call in volume.calls] == ["open", "read", "write", "flush", "fsync", "release"]
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.read(info.fh, 0, 4)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("paged", [True, False])
async def test_nothing_is_asked_while_a_mapped_page_is_written_back(paged: bool, told: bool) -> None:
    """A recall waits for the page, and whoever asks waits for the recall. Of direct writes the kernel leaves it to us
    to take setuid away, also where nobody tells what a write is."""
    opened = handle(5)
    opened.flags, opened.direct = os.O_RDWR, True
    opened.placed = lambda: opened
    operations, volume = mounted(write=3)
    operations.paged = (lambda: paged) if told else None
    number = operations.files.add(opened)
    assert await operations.write(number, 0, b"abc") == 3
    asked = [call[0] for call in volume.calls]
    assert asked == (["write"] if paged and told else ["write", "strip"])
    assert volume.calls[0][-1] == {"paged": paged if told else None}


@pytest.mark.parametrize(
    ("paged", "direct", "held"),
    [(True, False, True), (True, True, True), (False, True, False), (None, False, True), (None, True, False)],
)
async def test_a_read_that_fills_pages_says_so(paged: bool | None, direct: bool, held: bool) -> None:
    """Also through a handle that goes past them, where the file is mapped."""
    opened = handle(5)
    opened.direct = direct
    operations, volume = mounted(read=b"abcd")
    operations.paged = None if paged is None else lambda: bool(paged)
    assert await operations.read(operations.files.add(opened), 0, 4) == b"abcd"
    assert volume.calls == [("read", opened, 0, 4, {"held": True}) if held else ("read", opened, 0, 4)]


async def test_pages_that_others_have_changed_meanwhile_are_read_anew() -> None:
    operations, volume = mounted()
    taken: list[bytes] = []
    overtaken = 1

    def read(*_: Any) -> bytes:
        if len(taken) < overtaken:
            assert len(operations.mappable.overtake(5)) > 1
        taken.append(b"%04d" % len(taken))
        return taken[-1]

    volume.answers["read"] = read
    number = operations.files.add(handle(5))
    assert await operations.read(number, 0, 4) == b"0001"
    assert len(operations.mappable.overtake(5)) == 1, "nothing is held any more"
    overtaken = 1000
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.read(number, 0, 4)
    assert caught.value.errno == errno.ETIMEDOUT and len(operations.mappable.overtake(5)) == 1


@pytest.mark.parametrize("reader", [True, False])
async def test_a_reader_that_asks_for_the_size_is_noted(reader: bool) -> None:
    """Not who calls stat(2), whose answer nothing makes void."""
    operations, volume = mounted(open=handle(5))
    operations.of_reader = lambda: reader
    operations.cache = SimpleNamespace(  # type: ignore[assignment]
        contended=lambda ino: False, proven=lambda thread: None,
        asked_s=lambda attr, thread: 2.0 if thread == CTX.pid else 0.0, attr_s=lambda attr: 1.0,
    )  # fmt: skip
    await operations.open(5, os.O_RDONLY, CTX)

    def getattr_(*_: Any) -> Attr:
        assert operations.mappable.asks(5, 7.0) is reader
        return attr(5)

    volume.answers["getattr"] = getattr_
    assert (await operations.getattr(5, CTX)).attr_timeout == (2.0 if reader else 1.0)
    volume.answers["getattr"] = FsError(Code.TIMEOUT)
    with pytest.raises(pyfuse3.FUSEError):
        await operations.getattr(5, CTX)
    assert not operations.mappable.asks(5, 7.0)
    operations.mappable.asked(5, 7.0)
    operations.mappable.asked(6, 7.0)
    assert operations.mappable.asks(5, 7.9) and not operations.mappable.asks(5, 8.1)
    assert not operations.mappable.asks(6, 7.1), "it is not open"


async def test_pages_survive_a_reopen_of_unchanged_data() -> None:
    operations, volume = mounted(lookup=attr(5, version=1), open=handle(5))
    keeps = []
    for version in (1, 1, 2, 2):
        volume.answers["lookup"] = attr(5, version=version)
        await operations.lookup(1, b"f", CTX)
        keeps.append((await operations.open(5, os.O_RDONLY, CTX)).keep_cache)
    assert keeps == [False, True, False, True]


async def test_pages_that_the_kernel_would_keep_wrongly_are_dropped() -> None:
    volume = FakeVolume(lookup=attr(5, version=1), open=handle(5))
    dropper = FakeDropper()
    operations = Operations(volume, dropper)  # type: ignore[arg-type]
    await operations.lookup(1, b"f", CTX)
    await operations.open(5, os.O_RDONLY, CTX)
    volume.answers["getattr"] = attr(5, version=2)
    await operations.getattr(5, CTX)
    assert (dropper.now, dropper.soon) == ([5], []), "before the reply"
    await operations.open(5, os.O_RDONLY, CTX)
    volume.answers["lookup"] = attr(5, version=3)
    await operations.lookup(1, b"f", CTX)
    assert (dropper.now, dropper.soon) == ([5, 5], [])
    await operations.open(5, os.O_RDONLY, CTX)
    volume.answers["setattr"] = attr(5, version=4, mtime_ns=99)
    await operations.setattr(5, pyfuse3.EntryAttributes(), fields("mode"), None, CTX)
    assert (dropper.now, dropper.soon) == ([5, 5], [5]), "a setattr does not wait"


class Directory:
    """Entries of a fake directory in pages, and a kernel with room for a few entries a request."""

    def __init__(self, names: list[bytes], room: int, page: int = 4) -> None:
        self.names = names
        self.room = room
        self.page = page
        self.fails_at: int | None = None

    def readdir(self, _handle: Any, offset: int) -> list[tuple[bytes, Attr, int]]:
        if offset == self.fails_at:
            raise FsError(Code.UNREACHABLE)
        numbered = list(enumerate(self.names))[offset : offset + self.page]
        return [(name, attr(100 + i), i + 1) for i, name in numbered]

    def reply(self, token: list[tuple[bytes, int]], name: bytes, entry: Any, next_id: int) -> bool:
        if len(token) == self.room:
            return False
        token.append((name, next_id))
        return True


async def list_all(operations: Operations, fh: int) -> list[bytes]:
    names: list[bytes] = []
    at = 0
    while True:
        token: list[tuple[bytes, int]] = []
        await operations.readdir(fh, at, token)  # type: ignore[arg-type]
        if not token:
            return names
        names += [name for name, _ in token]
        at = token[-1][1]


@pytest.mark.parametrize("room", [1, 2, 3, 100])
async def test_a_directory_is_listed_whole_whatever_fits(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory([b"n%d" % i for i in range(11)], room)
    monkeypatch.setattr(pyfuse3, "readdir_reply", directory.reply)
    operations, _ = mounted(opendir=handle(1), readdir=directory.readdir)
    fh = await operations.opendir(1, CTX)
    assert await list_all(operations, fh) == [b".", b"..", *directory.names]
    assert operations.kernel.statistics()["references"] == 11, "neither dot counts, and nothing that did not fit"
    token: list[tuple[bytes, int]] = []
    await operations.readdir(fh, 5, token)  # type: ignore[arg-type]
    assert token[0] == (b"n3", 6), "seekdir"
    await operations.releasedir(fh)


async def test_the_last_entry_says_that_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory([b"n%d" % i for i in range(5)], room=100)
    monkeypatch.setattr(pyfuse3, "readdir_reply", directory.reply)
    opened = handle(1)
    opened.ends = lambda offset: offset == 5
    operations, _ = mounted(opendir=opened, readdir=directory.readdir)
    fh = await operations.opendir(1, CTX)
    token: list[tuple[bytes, int]] = []
    await operations.readdir(fh, 0, token)  # type: ignore[arg-type]
    assert [position for _, position in token] == [1, 2, 3, 4, 5, 6, 7 | END]
    assert END < 1 << 31, "programs of 32 bits take no more"
    again: list[tuple[bytes, int]] = []
    await operations.readdir(fh, 7 | END, again)  # type: ignore[arg-type]
    assert again == [], "where the extension does not answer it"


async def test_more_entries_than_positions_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)

    def page(_handle: Any, at: int) -> list[tuple[bytes, Attr, int]]:
        return [(b"n", attr(100), at + 1), (b"o", attr(101), at + 2)]

    operations, _ = mounted(opendir=handle(1), readdir=page)
    fh = await operations.opendir(1, CTX)
    await operations.readdir(fh, END - 2, [])  # type: ignore[arg-type]
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.readdir(fh, END - 1, [])  # type: ignore[arg-type]
    assert caught.value.errno == errno.EFBIG


async def test_an_error_behind_delivered_entries_waits_for_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory([b"n%d" % i for i in range(8)], room=100)
    directory.fails_at = 4
    monkeypatch.setattr(pyfuse3, "readdir_reply", directory.reply)
    operations, _ = mounted(opendir=handle(1), readdir=directory.readdir)
    fh = await operations.opendir(1, CTX)
    token: list[tuple[bytes, int]] = []
    await operations.readdir(fh, 0, token)  # type: ignore[arg-type]
    assert [name for name, _ in token][2:] == directory.names[:4]
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.readdir(fh, token[-1][1], token)  # type: ignore[arg-type]
    assert caught.value.errno == errno.EIO


async def test_setgid_goes_with_a_list_that_a_stranger_sets() -> None:
    operations, volume = mounted(getattr=attr(5, mode=stat.S_IFREG | 0o2775, gid=7))
    member, root = SimpleNamespace(uid=1000, gid=7, pid=os.getpid()), SimpleNamespace(uid=0, gid=0, pid=os.getpid())
    stranger = SimpleNamespace(uid=1000, gid=4_000_000, pid=os.getpid())
    for ctx in (member, root, stranger):
        await operations.setxattr(5, b"system.posix_acl_access", b"", ctx)
    assert [call[-1]["drop_setgid"] for call in volume.calls if call[0] == "setxattr"] == [False, False, True]


async def test_unknown_attributes_are_refused_rather_than_ignored() -> None:
    operations, volume = mounted(getxattr=b"v", listxattr=[b"trusted.a", b"user.a"])
    assert await operations.getxattr(5, b"user.a", CTX) == b"v"
    assert await operations.listxattr(5, CTX) == [b"user.a"], "the others are root's"
    assert b"trusted.a" in await operations.listxattr(5, SimpleNamespace(uid=0))
    for call in (
        operations.getxattr(5, b"system.nfs4_acl", CTX),
        operations.setxattr(5, b"system.nfs4_acl", b"", CTX),
        operations.removexattr(5, b"system.", CTX),
    ):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await call  # type: ignore[misc]
        assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.setxattr(5, b"foo.bar", b"", CTX)
    assert caught.value.errno == errno.EOPNOTSUPP, "no such namespace"
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.setxattr(5, b"user.", b"", CTX)
    assert caught.value.errno == errno.EINVAL
    assert [call[0] for call in volume.calls] == ["getxattr", "listxattr", "listxattr"]


async def test_statfs() -> None:
    operations, _ = mounted(statfs=VolumeStat(total_bytes=1 << 30, free_bytes=1 << 20, files=10, bytes=5))
    data = await operations.statfs(CTX)
    assert data.f_frsize * data.f_blocks == 1 << 30
    assert data.f_frsize * data.f_bavail == data.f_frsize * data.f_bfree == 1 << 20
    assert data.f_files - data.f_ffree == 10
    assert data.f_namemax == 255


async def test_the_end_forgets_everything() -> None:
    operations, volume = mounted(lookup=attr(5))
    await operations.lookup(1, b"a", CTX)
    operations.unmounted()
    assert volume.calls[-1] == ("forgotten", 5)
    assert operations.statistics()["kernel"]["inodes"] == 0


async def test_access_follows_the_permission_bits() -> None:
    operations, _ = mounted(getattr=attr(5, mode=stat.S_IFREG | 0o640))
    assert await operations.access(5, os.R_OK | os.W_OK, CTX)
    assert not await operations.access(5, os.X_OK, CTX)


def test_permitted() -> None:
    one = attr(5, mode=stat.S_IFREG | 0o754, uid=1, gid=2)
    assert permitted(one, 7, 1, set())
    assert permitted(one, 5, 9, {2}) and not permitted(one, 2, 9, {2})
    assert permitted(one, 4, 9, {3}) and not permitted(one, 1, 9, {3})
    assert permitted(one, 7, 0, set())
    assert not permitted(attr(5, mode=stat.S_IFREG | 0o600), 1, 0, set()), "root may not execute what nobody may"


def test_the_table_of_handles_is_bounded_and_never_reuses() -> None:
    table: HandleTable[str] = HandleTable(handles_max=2)
    first = table.add("a")
    assert table.remove(first) == "a"
    second = table.add("b")
    assert second != first
    table.add("c")
    with pytest.raises(FsError):
        table.check_room()
    with pytest.raises(FsError) as caught:
        table[first]
    assert caught.value.code is Code.BAD_HANDLE


async def test_only_of_new_inodes_a_change_may_tell_attributes() -> None:
    """The kernel does not compare them with what was recalled since it asked."""
    proven: list[int] = []
    shown: list[int] = []
    operations = Operations(FakeVolume(mkdir=attr(5), link=attr(5)), FakeDropper())  # type: ignore[arg-type]
    operations.cache = SimpleNamespace(  # type: ignore[assignment]
        creating=lambda *_: None, made_s=lambda *_, new: (5.0 if new else 0.0, 4.0), proven=proven.append,
        show=shown.append,
    )  # fmt: skip
    entry = await operations.mkdir(1, b"d", 0o755, CTX)
    assert proven == [CTX.pid], "whatever this thread was answered before has arrived"
    assert (entry.attr_timeout, entry.entry_timeout) == (5.0, 4.0)
    entry = await operations.link(5, 1, b"e", CTX)
    assert (entry.attr_timeout, entry.entry_timeout) == (0.0, 4.0)
    assert shown == [1, 1], "of the directory it will ask for next"


async def test_a_short_read_that_crossed_an_invalidation_is_made_again() -> None:
    opened = handle(5)
    operations, volume = mounted(lookup=attr(5, size=1000), open=opened, read=b"x" * 10)
    await operations.lookup(1, b"f", CTX)
    number = (await operations.open(5, os.O_RDONLY, CTX)).fh
    assert await operations.read(number, 0, 4096) == b"x" * 10, "nothing was invalidated"
    with operations._crossings.invalidating(5):
        pass
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.read(number, 0, 4096)
    assert refused.value.errno == errno.EINTR
    assert await operations.read(number, 0, 4096) == b"x" * 10
    opened.direct = True
    assert await operations.read(number, 8192, 4096) == b"x" * 10, "nothing fills this up"


async def test_a_read_of_what_a_program_here_has_cut_is_answered() -> None:
    """The kernel takes the size that it has set itself, whatever was invalidated."""
    operations, _ = mounted(lookup=attr(5, size=9000), open=handle(5), read=b"x" * 10, setattr=attr(5, size=10))
    await operations.lookup(1, b"f", CTX)
    number = (await operations.open(5, os.O_RDWR, CTX)).fh
    with operations._crossings.invalidating(5):
        pass
    await operations.setattr(5, pyfuse3.EntryAttributes(), fields("mode"), None, CTX)
    with pytest.raises(pyfuse3.FUSEError):
        await operations.read(number, 0, 4096)
    await operations.setattr(5, pyfuse3.EntryAttributes(), fields("size"), None, CTX)
    assert await operations.read(number, 0, 8192) == b"x" * 10


class Pages:
    """Stands in for the kernel that takes pages; ``takes`` False: it does not."""

    def __init__(self, operations: Operations, takes: bool = True) -> None:
        self.stored: list[tuple[int, bytes]] = []
        self._takes = takes
        operations.store = self.take

    def take(self, ino: int, data: Any) -> bool:
        self.stored.append((ino, bytes(data)))
        return self._takes


def at_hand(data: bytes | None) -> dict[str, Any]:
    """A volume with one file, of which it has this."""
    found = attr(5, size=4, version=3)
    return {"lookup": found, "getattr": found, "open": lambda ino, flags, uid: handle_of(flags), "at_hand": data}


def handle_of(flags: int) -> Any:
    made = handle(5)
    made.flags = flags
    return made


class QuickVolume(FakeVolume):
    """Says at once what is at hand."""

    def at_hand(self, *args: Any) -> Any:
        self.calls.append(("at_hand", *args[1:]))
        return self.answers["at_hand"]


async def test_the_first_open_brings_a_small_file_along() -> None:
    volume = QuickVolume(**at_hand(b"data"))
    operations = Operations(volume, FakeDropper())  # type: ignore[arg-type]
    pages = Pages(operations)
    await operations.lookup(1, b"f", CTX)
    info = await operations.open(5, os.O_RDONLY, CTX)
    assert pages.stored == [(5, b"data")] and info.keep_cache, "else the kernel would drop what it was given"
    assert volume.calls[-1] == ("at_hand", 3, 4), "of the version and size that the kernel was told"
    info = await operations.open(5, os.O_RDONLY, CTX)
    assert len(pages.stored) == 1 and info.keep_cache
    await operations.forget([(5, 1)])
    await operations.lookup(1, b"f", CTX)
    await operations.open(5, os.O_RDONLY, CTX)
    assert len(pages.stored) == 2, "it has forgotten them with the inode"


@pytest.mark.parametrize("why", ["not at hand", "for writing", "direct", "opened before", "not taken", "large", "off"])
async def test_what_is_not_brought_along(why: str) -> None:
    volume = QuickVolume(**at_hand(None if why == "not at hand" else b"data"))
    if why == "large":
        volume.answers["lookup"] = attr(5, size=STORED_BYTES_MAX + 1, version=3)
    operations = Operations(volume, FakeDropper())  # type: ignore[arg-type]
    pages = Pages(operations, takes=why != "not taken")
    if why == "off":
        operations.store = None
    await operations.lookup(1, b"f", CTX)
    if why == "opened before":
        await operations.open(5, os.O_RDWR, CTX)
        await operations.lookup(1, b"f", CTX)
    flags = {"for writing": os.O_RDWR, "direct": os.O_RDONLY | os.O_DIRECT}.get(why, os.O_RDONLY)
    info = await operations.open(5, flags, CTX)
    assert len(pages.stored) == (why == "not taken")
    assert info.keep_cache == (why == "opened before")
