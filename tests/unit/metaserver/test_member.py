"""One member: what a client sees of log, state and restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from metadata import api
from metadata.store import layout
from metadata.store.disk import FatalDiskError, File, RealDisk
from node.host.identity import own_identity
from node.wire.errors import Code, FsError
from node.wire.limits import SESSION_EXPIRY_S
from node.wire.types import Buffer
from storage.api import Heartbeat, ServerStatus
from tests.unit.metaserver.world import Session, make, world


async def test_a_new_volume_is_formatted_and_serves(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        session = await Session.open(made)
        (result,) = await session.do(make(b"a"))
        assert isinstance(result, api.Made) and not result.existed
        found = await session.look(b"a")
        assert found.attr.ino == result.attr.ino
        assert (await session.look(b"b")).code == Code.NOT_FOUND


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_restart_recovers_everything_acknowledged(tmp_path: Path, orderly: bool) -> None:
    async with world(tmp_path) as made:
        session = await Session.open(made)
        for number in range(50):
            await session.do(make(b"%d" % number))
        await (made.running[1].stop() if orderly else made.running[1].crash())
        await made.start(1)
        for number in range(50):
            assert isinstance(await session.look(b"%d" % number), api.AttrResult)
        await session.do(make(b"more"))


async def test_a_repeated_request_is_answered_and_not_executed_again(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        session = await Session.open(made)
        request = session.request(make(b"a"))
        first = await made.ask(request)
        await made.running[1].crash()
        await made.start(1)
        assert await made.ask(request) == first


async def test_many_requests_share_a_sync(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        session = await Session.open(made)
        node = made[1].node
        assert node is not None
        before = node.stable.store.statistics()["syncs"]
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(session.do, make(b"%d" % number))
        assert node.stable.store.statistics()["syncs"] - before <= 8


async def test_a_sole_voter_answers_reads_without_a_turn_of_the_loop(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        session = await Session.open(made)
        node = made[1].node
        assert node is not None
        rounds = node.statistics()["read_rounds"]
        await session.look(b"a")
        assert node.statistics()["read_rounds"] == rounds


async def test_status_tells_the_role(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        session = await Session.open(made)
        report: api.StatusReply = await made.call(1, api.GetStatus())
        assert report.status.role == "leader" and report.status.leader == 1
        assert report.status.commit == report.status.applied == report.status.last
        assert [s.id for s in report.sessions] == [session.ident]
        assert report.volume is not None and report.volume.files == 1


async def test_sessions_expire_by_the_leaders_own_time(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with world(tmp_path) as made:
        silent, lively = await Session.open(made), await Session.open(made)
        end = trio.current_time() + SESSION_EXPIRY_S + 5
        while trio.current_time() < end:
            renewed = await made.ask(api.RenewSession(lively.ident))
            assert renewed.orphans == ()
            await trio.sleep(2)
        with pytest.raises(FsError) as caught:
            await made.ask(api.RenewSession(silent.ident))
        assert caught.value.code is Code.UNKNOWN_SESSION
        with pytest.raises(FsError) as caught:
            await silent.do(make(b"late"))
        assert caught.value.code is Code.UNKNOWN_SESSION
        await lively.do(make(b"alive"))


async def test_a_session_ends_with_its_process(tmp_path: Path) -> None:
    """At once, also when nobody remembers how long ago it was heard of: after a restart nobody waits for the dead."""
    *front, started = own_identity().split("/")
    dead = "/".join([*front, str(int(started) - 1)])
    async with world(tmp_path) as made:
        living = await made.ask(api.OpenSession(b"l" * 16, "host", "/l", "test", own_identity()))
        unknown = await made.ask(api.OpenSession(b"u" * 16, "host", "/u", "test"))
        gone = await made.ask(api.OpenSession(b"g" * 16, "host", "/g", "test", dead))
        await made.running[1].crash()
        await made.start(1)

        async def sessions() -> list[int]:
            report: api.StatusReply = await made.call(1, api.GetStatus())
            return [status.id for status in report.sessions]

        with trio.fail_after(30):
            while await sessions() != [living.session, unknown.session]:  # noqa: ASYNC110  nothing tells
                await trio.sleep(0.02)
        with pytest.raises(FsError) as caught:
            await made.ask(api.RenewSession(gone.session))
        assert caught.value.code is Code.UNKNOWN_SESSION
        await made.ask(api.RenewSession(living.session))


async def test_closing_a_session_frees_its_orphans(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        holder, other = await Session.open(made), await Session.open(made)
        (made_file,) = await holder.do(make(b"a"))
        await other.do(api.Remove(1, b"a", not_held=(made_file.attr.ino,)))
        renewed = await made.ask(api.RenewSession(holder.ident))
        assert renewed.orphans == (made_file.attr.ino,)
        await made.ask(api.CloseSession(holder.ident))
        machine = made[1].leader is not None and made[1].node is not None and made[1].node.machine
        assert machine
        await made.until(lambda: not machine.reclaim_pending())
        assert machine.files == 1


def beat(number: int, *, used: int = 0, blocks: int = 0, uuid: bytes = b"") -> Heartbeat:
    return Heartbeat(
        ServerStatus(
            0, uuid or b"%016d" % number, f"ipc://s{number}", used, 1 << 30, blocks, name=f"storage-{number}"
        )
    )


async def test_chunk_servers_register_and_get_groups(tmp_path: Path) -> None:
    async with world(tmp_path, servers=2, replicas=2) as made:
        first = await made.ask(beat(1))
        second = await made.ask(beat(2))
        assert {first.server, second.server} == {1, 2}
        assert [s.server for s in second.servers] == [1, 2]
        machine = made[1].node is not None and made[1].node.machine
        assert machine
        await made.until(lambda: machine.table)
        mapped: api.ClusterMap = await made.ask(api.GetClusterMap())
        assert len(mapped.table) == 64 and all(sorted(row) == [1, 2] for row in mapped.table)
        assert [(s.name, s.alive) for s in mapped.servers] == [("storage-1", True), ("storage-2", True)]
        again: api.ClusterMap = await made.ask(api.GetClusterMap(mapped.pg_epoch))
        assert again.table == () and again.pg_epoch == mapped.pg_epoch
        (stat,) = (await made.ask(api.Read(1, (api.StatVolume(),)))).results
        assert (stat.total_bytes, stat.free_bytes) == (1 << 30, 1 << 30)
        await made.ask(beat(1, used=1 << 29, blocks=1))
        (stat,) = (await made.ask(api.Read(1, (api.StatVolume(),)))).results
        assert stat.free_bytes == (1 << 30) - (1 << 28)


async def test_a_wiped_chunk_server_is_a_new_one(tmp_path: Path) -> None:
    async with world(tmp_path, servers=1) as made:
        old = await made.ask(beat(1))
        new = await made.ask(beat(1, uuid=b"x" * 16))
        assert new.server != old.server
        machine = made[1].node is not None and made[1].node.machine
        assert machine
        await made.until(lambda: {s.server: s.state for s in machine.servers()}[old.server] == "out")
        await made.until(lambda: machine.table and all(row == (new.server,) for row in machine.table))


async def test_data_of_another_cluster_or_member_is_refused(tmp_path: Path) -> None:
    disk, path = RealDisk(), str(tmp_path / "metadata-1")
    layout.create(disk, path, cluster_id=b"f" * 16, member=1, incarnation=b"i" * 16)
    async with world(tmp_path, start=False) as made:
        with pytest.raises(FsError, match="belongs to cluster 6666") as caught:
            await made.make(1).run(trio.Event())
        assert caught.value.code is Code.FOREIGN_CLUSTER
    other = tmp_path / "other"
    other.mkdir()
    layout.create(
        disk, str(other / "metadata-1"), cluster_id=made.config.cluster_id_bytes, member=7, incarnation=b"i" * 16
    )
    async with world(other, start=False) as made:
        with pytest.raises(FsError, match="data of member 7") as caught:
            await made.make(1).run(trio.Event())
        assert caught.value.code is Code.FOREIGN_CLUSTER


class FaultyFile:
    def __init__(self, file: File, disk: FaultyDisk) -> None:
        self._file = file
        self._disk = disk

    def pwrite(self, data: Buffer, offset: int) -> None:
        if self._disk.full:
            raise FsError(Code.NO_SPACE, "the test says so")
        self._file.pwrite(data, offset)

    def datasync(self) -> None:
        if self._disk.broken:
            raise FatalDiskError("fdatasync: the test says so")
        self._file.datasync()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class FaultyDisk(RealDisk):
    def __init__(self) -> None:
        self.full = self.broken = False

    def open(self, path: str, *, create: bool = False) -> File:
        return FaultyFile(super().open(path, create=create), self)  # type: ignore[return-value]

    def free_bytes(self, path: str) -> int:
        return 0 if self.full else super().free_bytes(path)


async def test_a_failed_sync_ends_the_member_and_nobody_is_told(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with world(tmp_path, start=False) as made:
        made.disks[1] = disk
        await made.start(1)
        session = await Session.open(made)
        disk.broken = True
        with pytest.raises(FsError) as caught:
            await made.call(1, session.request(make(b"a")))
        assert caught.value.code is Code.UNREACHABLE
        await made.running[1].ended.wait()
        assert made.running[1].disk_error is not None


async def test_a_full_disk_waits_and_goes_on(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with world(tmp_path, start=False) as made:
        made.disks[1] = disk
        await made.start(1)
        session = await Session.open(made)
        await session.do(make(b"before"))
        disk.full = True
        with pytest.raises(FsError) as caught:
            while True:
                await made.call(1, session.request(make(b"%d" % session.sequence)), 0.3)
        assert caught.value.code in (Code.NO_SPACE, Code.TIMEOUT)
        with pytest.raises(FsError) as caught:
            await made.call(1, session.request(make(b"second")), 0.3)
        assert caught.value.code is Code.NO_SPACE
        disk.full = False
        node = made[1].node
        assert node is not None
        await made.until(lambda: not node.full)
        await session.do(make(b"after"))
        assert isinstance(await session.look(b"before"), api.AttrResult)
