"""cluster.toml: who belongs to the cluster, where each process serves, and the tunables.

Sizes and times may be written as numbers or as text (``dirty_bytes = "64MiB"``, ``request_timeout = "30s"``).
A key that is not known here is an error that names its path, because a misspelt tunable would otherwise be silent.
"""

from __future__ import annotations

import os
import tomllib
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from node.host.exitcodes import ConfigError
from node.host.paths import replace_file
from node.host.tomlwriter import dumps
from node.host.units import parse_duration, parse_size
from node.wire import limits
from node.wire.errors import Code, FsError

FORMAT = 1

Size = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "size"})]
Seconds = Annotated[float, msgspec.Meta(gt=0, extra={"unit": "time"})]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A member of the metadata group. Clients use ``address``, members among themselves ``peer_address``."""

    id: Positive
    name: str
    address: str
    peer_address: str
    public_key: str = ""


class ChunkServer(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk server. ``capacity_bytes`` 0: what the disk has, less a reserve."""

    name: str
    address: str
    capacity_bytes: Size = 0
    public_key: str = ""
    host: str = ""
    rack: str = ""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class MetadataOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``commit_entries`` and ``commit_interval``: how much of the log a restart may have to apply again.
    ``gc_interval``: how often the leader collects blocks that nothing references. ``silent``: a chunk server without a
    heartbeat for so long is suspect; ``noout``: and after so long it is given up, and its groups get a substitute for
    good. ``compare``: how often the leader compares what the chunk servers hold. ``placement``: how servers are chosen
    for data (``metadata.placement``)."""

    map_bytes: Size = limits.STATE_MAP_BYTES
    commit_entries: Positive = limits.STATE_COMMIT_ENTRIES
    commit_interval: Seconds = limits.STATE_COMMIT_S
    gc_interval: Seconds = limits.GC_INTERVAL_S
    silent: Seconds = limits.SERVER_SILENT_S
    noout: Seconds = limits.NOOUT_S
    compare: Seconds = limits.HEAL_ASK_S
    placement: Literal["weighted", "round-robin", "random"] = "weighted"
    http: str = ""  # HOST:PORT of /metrics and /healthz, empty: none


class StorageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``heartbeat_interval``: how often a chunk server tells the leader about itself. ``quarantine``: how long deleted
    blocks can be brought back, when there is room for them."""

    segment_bytes: Size = limits.SEGMENT_BYTES_MAX
    heartbeat_interval: Seconds = 2.0
    quarantine: Seconds = limits.QUARANTINE_S
    http: str = ""


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults of every mount. ``lease_cache_bytes``: for what a mount remembers of inodes and names;
    ``kernel_names_bytes``, ``kernel_inodes_bytes``: for its lists of what the kernel was told and may name.
    ``log_data_bytes``: a synced write that is not larger goes into the log entry, and to the chunk servers later."""

    dirty_bytes: Size = limits.DIRTY_BYTES_MAX
    block_cache_bytes: Size = limits.BLOCK_CACHE_BYTES
    lease_cache_bytes: Size = limits.LEASE_CACHE_BYTES
    kernel_names_bytes: Size = limits.KERNEL_NAMES_BYTES
    kernel_inodes_bytes: Size = limits.KERNEL_INODES_BYTES
    read_ahead_blocks: Annotated[int, msgspec.Meta(ge=0)] = limits.READ_AHEAD_BLOCKS
    log_data_bytes: Annotated[int, msgspec.Meta(ge=0, le=limits.LOG_DATA_COMMIT_BYTES)] = limits.LOG_DATA_COMMIT_BYTES
    chain: bool = False  # large blocks pass from chunk server to chunk server instead of going to each from the mount
    short_circuit: bool = True  # read blocks of chunk servers on the mount's host from their files, where it may
    request_timeout: Seconds = limits.REQUEST_TIMEOUT_S
    leases: bool = True  # cache names, attributes and extents until they are recalled


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What goes to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    json: bool = False


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A whole cluster.toml. Addresses are ZeroMQ endpoints, keys z85 text (empty with ipc)."""

    format: Positive = FORMAT
    cluster_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    transport: Literal["ipc", "tcp"]
    replicas: Positive = 1
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1)]
    servers: tuple[ChunkServer, ...] = ()
    clients: tuple[str, ...] = ()  # public keys that may mount and ask
    metadata: MetadataOptions = MetadataOptions()
    storage: StorageOptions = StorageOptions()
    client: ClientOptions = ClientOptions()
    log: LogOptions = LogOptions()

    @property
    def cluster_id_bytes(self) -> bytes:
        """The 16 bytes that stand in each frame."""
        return bytes.fromhex(self.cluster_id)

    @property
    def processes(self) -> tuple[Member | ChunkServer, ...]:
        """Every member and chunk server."""
        return (*self.members, *self.servers)

    def member(self, name_or_id: str | int) -> Member:
        """A member by name or number. FsError NOT_FOUND."""
        for member in self.members:
            if name_or_id in (member.name, member.id):
                return member
        raise FsError(Code.NOT_FOUND, f"the cluster has no metadata member {name_or_id!r}")

    def server(self, name: str) -> ChunkServer:
        """A chunk server by name. FsError NOT_FOUND."""
        for server in self.servers:
            if server.name == name:
                return server
        raise FsError(Code.NOT_FOUND, f"the cluster has no chunk server {name!r}")


def new_cluster_id() -> str:
    """A random identity for a new cluster."""
    return uuid.uuid4().hex


def load_cluster(path: Path) -> ClusterConfig:
    """Read a cluster.toml.

    ConfigError where its text is wrong (with the path of the key), FsError NOT_FOUND where there is none,
    UNSUPPORTED_VERSION where a newer release wrote it. Relative ipc paths become absolute.
    """
    try:
        text = path.read_bytes().decode()
        raw = tomllib.loads(text)
    except FileNotFoundError:
        raise FsError(Code.NOT_FOUND, f"{path}: no such cluster") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory, name the cluster.toml in it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    written = raw.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise FsError(
            Code.UNSUPPORTED_VERSION,
            f"{path}: format {written} was written by a newer fusefs, this one reads up to {FORMAT}: upgrade it",
        )
    try:
        config = msgspec.convert(_prepare(raw, ClusterConfig, ""), ClusterConfig)
        _check(config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path.name}: {_readable(str(error))}") from None
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None
    return _absolute(config, path.resolve().parent)


def save_cluster(path: Path, config: ClusterConfig) -> None:
    """Write a cluster.toml, atomically and durably. Tunables that have their default are left out."""
    tree = msgspec.to_builtins(config)
    for name in ("metadata", "storage", "client", "log"):
        section: msgspec.Struct = getattr(config, name)
        tree[name] = {key: value for key, value in tree[name].items() if value != getattr(type(section)(), key)}
        if not tree[name]:
            del tree[name]
    replace_file(path, dumps(tree).encode())


def _prepare(raw: Any, kind: Any, where: str) -> Any:
    """Refuse unknown keys and turn sizes and times into numbers, following the types."""
    base, unit = _unannotate(kind)
    if isinstance(base, type) and issubclass(base, msgspec.Struct):
        return _prepare_table(raw, base, where) if isinstance(raw, dict) else raw
    if get_origin(base) is tuple and isinstance(raw, list):
        return [_prepare(item, get_args(base)[0], f"{where}[{number}]") for number, item in enumerate(raw)]
    if unit is not None and isinstance(raw, str):
        try:
            return parse_size(raw) if unit == "size" else parse_duration(raw)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
    return raw


def _prepare_table(raw: dict[str, Any], struct: type[msgspec.Struct], where: str) -> dict[str, Any]:
    kinds = get_type_hints(struct, include_extras=True)
    prepared = {}
    for key, value in raw.items():
        path = f"{where}.{key}" if where else key
        if key not in kinds:
            raise ConfigError(f"{path}: unknown key")
        prepared[key] = _prepare(value, kinds[key], path)
    return prepared


def _unannotate(kind: Any) -> tuple[Any, Union[str, None]]:
    if get_origin(kind) is not Annotated:
        return kind, None
    base, *extras = get_args(kind)
    units = [meta.extra["unit"] for meta in extras if isinstance(meta, msgspec.Meta) and meta.extra]
    return base, units[0] if units else None


def _readable(message: str) -> str:
    """msgspec says ``Expected `int`, got `str` - at `$.client.dirty_bytes` ``; put the path first."""
    text, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    text = text.replace("`", "")
    return f"{place}: {text}" if place else text


def _check(config: ClusterConfig) -> None:
    """What types cannot say."""
    names: list[str | int] = [entry.name for entry in config.processes]
    numbers: list[str | int] = [member.id for member in config.members]
    for seen, what in ((names, "name"), (numbers, "id")):
        for value in seen:
            if seen.count(value) > 1:
                raise ConfigError(f"the {what} {value!r} is given twice")
    for entry in config.processes:
        addresses = [entry.address, entry.peer_address] if isinstance(entry, Member) else [entry.address]
        for address in addresses:
            if not address.startswith(f"{config.transport}://"):
                raise ConfigError(f"{entry.name}: address {address!r} does not begin with {config.transport}://")
        if config.transport == "tcp" and not entry.public_key:
            raise ConfigError(f"{entry.name}: tcp needs a public_key")
    for key in (*(entry.public_key for entry in config.processes), *config.clients):
        if len(key) not in (0, 40):
            raise ConfigError(f"{key!r} is not a public key: 40 characters of z85 text")


def _absolute(config: ClusterConfig, base: Path) -> ClusterConfig:
    def address(given: str) -> str:
        return f"ipc://{os.path.join(base, given[6:])}" if given.startswith("ipc://") else given

    replace = msgspec.structs.replace
    return replace(
        config,
        members=tuple(
            replace(member, address=address(member.address), peer_address=address(member.peer_address))
            for member in config.members
        ),
        servers=tuple(replace(server, address=address(server.address)) for server in config.servers),
    )
