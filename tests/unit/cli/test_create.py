"""From flags to a new cluster, and flags that do not fit an old one."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fusefs.cli.create import Flags, check_flags, check_same, create_cluster, peer_of, split_address
from fusefs.cli.layout import config_path_of, layout_of, names_of
from node.host.cluster import load_cluster
from node.host.exitcodes import UsageError
from node.host.keys import load_keys

GIB = 1 << 30


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_default_cluster(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "new" / "d")
    create_cluster(layout, Flags())
    config = load_cluster(layout.config_path)
    assert names_of(config) == ["metadata-1", "storage-1"]
    assert (config.replicas, config.transport, config.clients) == (1, "ipc", ())
    assert config.members[0].address == f"ipc://{layout.run}/metadata-1.sock"
    free = os.statvfs(tmp_path)
    assert 0.9 < config.servers[0].capacity_bytes / (free.f_bavail * free.f_frsize) < 1
    assert (mode(layout.directory), mode(layout.run), mode(layout.directory / "keys")) == (0o700, 0o700, 0o700)


def test_sockets_move_when_their_path_would_be_too_long(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / ("x" * 120))
    create_cluster(layout, Flags())
    address = load_cluster(layout.config_path).members[0].address.removeprefix("ipc://")
    assert len(address) < 108
    assert mode(Path(address).parent) == 0o700
    Path(address).parent.rmdir()


def test_tcp_makes_keys_for_everyone(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "d")
    create_cluster(layout, Flags(members=3, servers=3, replicas=3, transport="tcp", capacity_bytes=GIB))
    config = load_cluster(layout.config_path)
    addresses = [member.address for member in config.members] + [member.peer_address for member in config.members]
    addresses += [server.address for server in config.servers]
    assert len(set(addresses)) == 9
    assert all(address.startswith("tcp://127.0.0.1:") for address in addresses)
    assert {server.capacity_bytes for server in config.servers} == {GIB}
    for name in [*names_of(config), "client"]:
        path = layout.directory / "keys" / f"{name}.key"
        assert mode(path) == 0o600
        public = load_keys(path).public.decode()
        assert public in layout.config_path.read_text()
        assert load_keys(path).secret.decode() not in layout.config_path.read_text()


def test_an_interrupted_creation_is_completed_with_its_keys(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "d")
    create_cluster(layout, Flags(transport="tcp"))
    before = load_cluster(layout.config_path)
    layout.config_path.unlink()
    create_cluster(layout, Flags(transport="tcp"))
    assert load_cluster(layout.config_path).clients == before.clients


def test_given_addresses(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "d")
    flags = Flags(
        members=2,
        addresses={
            "metadata-1": "10.0.0.1:7000", "metadata-2": "10.0.0.2:7000", "metadata-2-peer": "10.0.0.2:9",
            "storage-1": "[::1]:7002",
        },
    )
    create_cluster(layout, flags)
    config = load_cluster(layout.config_path)
    assert config.transport == "tcp"
    assert [member.address for member in config.members] == ["tcp://10.0.0.1:7000", "tcp://10.0.0.2:7000"]
    assert [member.peer_address for member in config.members] == ["tcp://10.0.0.1:8000", "tcp://10.0.0.2:9"]
    assert config.servers[0].address == "tcp://[::1]:7002"
    check_same(flags, config)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (Flags(servers=1, replicas=2), "--replicas 2"),
        (Flags(transport="ipc", addresses={"metadata-1": "h:1"}), "--address"),
        (Flags(addresses={"storage-9": "h:1"}), "storage-9"),
    ],
)
def test_a_cluster_that_cannot_be_is_not_begun(flags: Flags, word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word):
        create_cluster(layout_of(tmp_path / "d"), flags)
    assert not (tmp_path / "d" / "cluster.toml").exists()


@pytest.mark.parametrize("flags", [Flags(members=0), Flags(servers=100), Flags(replicas=0), Flags(capacity_bytes=0)])
def test_senseless_numbers(flags: Flags) -> None:
    with pytest.raises(UsageError):
        check_flags(flags)


def test_flags_that_differ_are_named_with_both_values(tmp_path: Path) -> None:
    layout = layout_of(tmp_path / "d")
    same = Flags(members=1, servers=2, replicas=2, transport="ipc", capacity_bytes=GIB)
    create_cluster(layout, same)
    config = load_cluster(layout.config_path)
    check_same(same, config)
    check_same(Flags(), config)
    for different, words in (
        (replace(same, members=3), ("--members 3", "1")),
        (replace(same, servers=1), ("--servers 1", "2")),
        (replace(same, replicas=1), ("--replicas 1", "2")),
        (replace(same, transport="tcp"), ("--transport tcp", "ipc")),
        (replace(same, capacity_bytes=2 * GIB), ("--capacity 2GiB", "1GiB")),
        (replace(same, addresses={"storage-1": "h:1"}), ("--address storage-1=h:1", "storage-1.sock")),
    ):
        with pytest.raises(UsageError) as caught:
            check_same(different, config)
        assert all(word in str(caught.value) for word in words)


def test_addresses() -> None:
    assert split_address("host:7000") == ("host", 7000)
    assert split_address("[::1]:1") == ("[::1]", 1)
    assert peer_of("h:65000") == "h:64000"
    for wrong in ("host", ":1", "h:0", "h:65536", "h:x", ""):
        with pytest.raises(ValueError):
            split_address(wrong)


def test_a_cluster_is_named_by_its_file_or_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    assert config_path_of("d") == tmp_path / "d" / "cluster.toml"
    assert config_path_of("d/cluster.toml") == tmp_path / "d" / "cluster.toml"
