"""A new cluster in a directory: from the flags of ``up`` to cluster.toml and keys; and whether flags fit an old one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusefs.cli.layout import MEMBER_PREFIX, SERVER_PREFIX, Layout
from node.host.cluster import ChunkServer, ClusterConfig, Member, new_cluster_id, save_cluster
from node.host.exitcodes import UsageError
from node.host.keys import CLIENT_NAME, create_keys, key_path, load_keys
from node.host.paths import ipc_address, private_directory
from node.host.ports import free_ports
from node.host.units import format_size
from node.rpc.security import CurveKeys

CAPACITY_PERCENT = 95  # of the free space, by default, for all servers together
COUNT_MAX = 99  # of processes of a kind that one directory may hold
PEER_SUFFIX = "-peer"  # --address metadata-1-peer=HOST:PORT: where the other members reach this one
PEER_PORT_OFFSET = 1000


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of ``up`` that shape a cluster; None where absent."""

    members: int | None = None
    servers: int | None = None
    replicas: int | None = None
    transport: str | None = None
    capacity_bytes: int | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)  # name -> HOST:PORT


def check_flags(flags: Flags) -> None:
    """Raise UsageError for flags that no cluster can have."""
    for name, number in (("members", flags.members), ("servers", flags.servers)):
        if number is not None and not 1 <= number <= COUNT_MAX:
            raise UsageError(f"--{name} {number}: must be between 1 and {COUNT_MAX}")
    if flags.replicas is not None and flags.replicas < 1:
        raise UsageError(f"--replicas {flags.replicas}: must be at least 1")
    if flags.capacity_bytes is not None and flags.capacity_bytes < 1:
        raise UsageError("--capacity: must be above 0")


def create_cluster(layout: Layout, flags: Flags) -> ClusterConfig:
    """Write keys and cluster.toml of a new cluster, durably and in this order; nothing is started."""
    servers = flags.servers or 1
    replicas = flags.replicas or 1
    if replicas > servers:
        raise UsageError(f"--replicas {replicas} needs as many servers, not {servers}; add --servers {replicas}")
    transport = flags.transport or ("tcp" if flags.addresses else "ipc")
    if flags.addresses and transport == "ipc":
        raise UsageError("--address goes with --transport tcp; ipc sockets have none")
    layout.directory.parent.mkdir(parents=True, exist_ok=True)
    if not layout.directory.exists():
        private_directory(layout.directory)
    private_directory(layout.run)
    private_directory(layout.directory / "keys")
    members = [f"{MEMBER_PREFIX}{number}" for number in range(1, (flags.members or 1) + 1)]
    chunk_servers = [f"{SERVER_PREFIX}{number}" for number in range(1, servers + 1)]
    endpoint = _Endpoints(layout, transport, flags.addresses, members, chunk_servers)
    public = _public_keys(layout, transport, [*members, *chunk_servers, CLIENT_NAME])
    capacity = flags.capacity_bytes or _free_bytes(layout) * CAPACITY_PERCENT // 100 // servers
    config = ClusterConfig(
        cluster_id=new_cluster_id(),
        transport="tcp" if transport == "tcp" else "ipc",
        replicas=replicas,
        members=tuple(
            Member(
                id=number,
                name=name,
                address=endpoint.of(name),
                peer_address=endpoint.of(name + PEER_SUFFIX),
                public_key=public.get(name, ""),
            )
            for number, name in enumerate(members, 1)
        ),
        servers=tuple(
            ChunkServer(
                name=name, address=endpoint.of(name), capacity_bytes=capacity, public_key=public.get(name, "")
            )
            for name in chunk_servers
        ),
        clients=(public[CLIENT_NAME],) if public else (),
    )
    save_cluster(layout.config_path, config)
    return config


def _free_bytes(layout: Layout) -> int:
    status = os.statvfs(layout.directory)
    return status.f_bavail * status.f_frsize


def _public_keys(layout: Layout, transport: str, names: list[str]) -> dict[str, str]:
    """Make a key for each name; one that an earlier attempt left is taken."""
    if transport != "tcp":
        return {}
    keys: dict[str, CurveKeys] = {}
    for name in names:
        path = key_path(layout.config_path, name)
        keys[name] = load_keys(path) if path.exists() else create_keys(path)
    return {name: pair.public.decode() for name, pair in keys.items()}


class _Endpoints:
    """Where each process of a new cluster will listen."""

    def __init__(
        self, layout: Layout, transport: str, given: Mapping[str, str], members: list[str], servers: list[str]
    ) -> None:
        self._layout = layout
        self._tcp = transport == "tcp"
        self._given = dict(given)
        names = [*members, *(name + PEER_SUFFIX for name in members), *servers]
        for name in given:
            if name not in names:
                raise UsageError(f"--address {name}=...: the cluster has no {name}; it has {', '.join(names)}")
        for name in members:
            if name in given and name + PEER_SUFFIX not in given:
                self._given[name + PEER_SUFFIX] = peer_of(given[name])
        self._free = free_ports() if self._tcp else None

    def of(self, name: str) -> str:
        if not self._tcp:
            return ipc_address(self._layout.directory, name)
        if name in self._given:
            return f"tcp://{self._given[name]}"
        assert self._free is not None
        return f"tcp://127.0.0.1:{next(self._free)}"


def peer_of(address: str) -> str:
    """Return where a member that serves clients at HOST:PORT listens for other members unless told."""
    host, port = split_address(address)
    return f"{host}:{port + PEER_PORT_OFFSET if port + PEER_PORT_OFFSET < 65536 else port - PEER_PORT_OFFSET}"


def split_address(address: str) -> tuple[str, int]:
    """Cut HOST:PORT; the host may be [IPV6]. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host, int(port)


def check_same(flags: Flags, config: ClusterConfig) -> None:
    """Raise UsageError for the first flag that differs from what an existing cluster has."""
    stored = {
        "members": (flags.members, len(config.members)),
        "servers": (flags.servers, len(config.servers)),
        "replicas": (flags.replicas, config.replicas),
        "transport": (flags.transport, config.transport),
    }
    for name, (given, has) in stored.items():
        if given is not None and given != has:
            raise UsageError(_differs(name, str(given), str(has)))
    for server in config.servers:
        if flags.capacity_bytes is not None and flags.capacity_bytes != server.capacity_bytes:
            given_size, stored_size = format_size(flags.capacity_bytes), format_size(server.capacity_bytes)
            raise UsageError(_differs("capacity", given_size, f"{stored_size} ({server.name})"))
    known = {member.name: member.address for member in config.members}
    known |= {member.name + PEER_SUFFIX: member.peer_address for member in config.members}
    known |= {server.name: server.address for server in config.servers}
    for name, address in flags.addresses.items():
        if known.get(name) != f"tcp://{address}":
            raise UsageError(_differs("address", f"{name}={address}", known.get(name, f"no {name}")))


def _differs(flag: str, given: str, stored: str) -> str:
    return f"--{flag} {given} differs from what this cluster was made with, {stored}; leave it out or use another DIR"
