"""A member's directory: created completely or not at all, held by one process, told from others."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import pytest

from metadata.raft.messages import ConfState, Entry, HardState
from metadata.store import layout
from metadata.store.disk import Disk, RealDisk
from metadata.store.log import LogStore
from node.wire.errors import Code, FsError
from tests.sim.disk import FaultDisk, PowerCut

CLUSTER = bytes(range(16))
CONF = ConfState(voters=(1, 2, 3))


def create(disk: Disk, path: str = "/member") -> layout.Identity:
    return layout.create(disk, path, cluster_id=CLUSTER, member=2, incarnation=bytes(16), conf=CONF)


def test_create_and_open(tmp_path: Path) -> None:
    disk, path = RealDisk(), f"{tmp_path}/member"
    identity = create(disk, path)
    with layout.open_member(disk, path, cluster_id=CLUSTER) as member:
        assert member.identity == identity and identity.cluster_id == CLUSTER and identity.member == 2
        log = LogStore.open(disk, member.log_path, cluster_id=CLUSTER, sole_voter=False)
        assert log.initial_state() == (HardState(), CONF)
        log.close()
    with pytest.raises(FsError) as caught:
        create(disk, path)
    assert caught.value.code == Code.EXISTS


@pytest.mark.parametrize("kind", ["real", "fault"])
def test_a_second_opener_is_told_that_it_is_busy(kind: str, tmp_path: Path) -> None:
    disk: Disk = RealDisk() if kind == "real" else FaultDisk()
    path = f"{tmp_path}/member" if kind == "real" else "/member"
    create(disk, path)
    with layout.open_member(disk, path):
        with pytest.raises(FsError) as caught:
            with layout.open_member(disk, path):
                pass
        assert caught.value.code == Code.BUSY
    with layout.open_member(disk, path):
        pass


def test_an_interrupted_creation_is_completed_by_the_next() -> None:
    for cut in range(1, 40):
        disk = FaultDisk()
        disk.cut_at, disk.random = cut, Random(cut)
        try:
            create(disk)
            finished = True
        except PowerCut:
            finished = False
        disk.crash(Random(cut))
        if finished:
            break
        if not layout.exists(disk, "/member"):
            create(disk)
        disk.crash(Random(cut))
        with layout.open_member(disk, "/member") as member:
            LogStore.open(disk, member.log_path, cluster_id=CLUSTER, sole_voter=True)
    assert finished and cut > 8
    with layout.open_member(disk, "/member"):
        pass


def test_data_without_an_identity_is_not_overwritten() -> None:
    disk = FaultDisk()
    create(disk)
    with layout.open_member(disk, "/member") as member:
        log = LogStore.open(disk, member.log_path, cluster_id=CLUSTER, sole_voter=True)
        log.append(HardState(1, 2), [Entry(1, 1)])
        log.close()
    disk.remove("/member/IDENTITY")
    with pytest.raises(FsError) as caught:
        create(disk)
    assert caught.value.code == Code.EXISTS


def test_who_is_here_is_checked() -> None:
    disk = FaultDisk()
    with pytest.raises(FsError) as caught:
        with layout.open_member(disk, "/member"):
            pass
    assert caught.value.code == Code.NOT_FOUND
    create(disk)
    with pytest.raises(FsError) as caught:
        with layout.open_member(disk, "/member", cluster_id=bytes(16)):
            pass
    assert caught.value.code == Code.FOREIGN_CLUSTER


def test_a_newer_format_is_named() -> None:
    disk = FaultDisk()
    identity = create(disk)
    newer = msgspec.json.encode({**msgspec.to_builtins(identity), "format": 2, "more": [1]})
    disk.write("/member/IDENTITY", newer)
    with pytest.raises(FsError) as caught:
        layout.read_identity(disk, "/member")
    assert caught.value.code == Code.UNSUPPORTED_VERSION


def test_every_flipped_bit_of_the_identity_is_noticed() -> None:
    disk = FaultDisk()
    identity = create(disk)
    for at in range(len(disk.read("/member/IDENTITY"))):
        for bit in range(8):
            disk.flip("/member/IDENTITY", at, bit)
            try:
                assert layout.read_identity(disk, "/member") == identity  # only white space, or the case of a digit
            except FsError as error:
                assert error.code in (Code.IO, Code.UNSUPPORTED_VERSION)
            disk.flip("/member/IDENTITY", at, bit)
    assert layout.read_identity(disk, "/member") == identity
