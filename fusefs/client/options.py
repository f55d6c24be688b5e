"""What a mount is told: where the cluster is, and how this client may behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from node.wire import limits


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a process listens. ``public_key`` (z85, 40 bytes) is empty where the transport needs none (ipc)."""

    address: str
    public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster as a client needs to know it: its id, the metadata members and the keys of the chunk servers.

    Addresses of chunk servers come from the cluster map; ``server_keys`` has their public keys by name.
    """

    cluster_id: bytes
    members: Mapping[int, Peer]  # member id -> where; at least one
    server_keys: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Bounds of one mount. Seconds and bytes."""

    request_timeout_s: float = limits.REQUEST_TIMEOUT_S  # what a caller waits at most; then FsError TIMEOUT
    dirty_bytes_max: int = limits.DIRTY_BYTES_MAX  # above it writers wait
    cache_bytes_max: int = limits.BLOCK_CACHE_BYTES  # plaintext blocks kept in memory
    read_ahead_blocks: int = limits.READ_AHEAD_BLOCKS
    chain: bool = False  # large blocks pass from server to server instead of going to each from here
    flush_after_s: float = 1.0  # dirty data older than this goes out by itself
    stop_flush_s: float = limits.STOP_FLUSH_S  # what closing the volume may take to flush
    read_only: bool = False  # change nothing, not even the form in which data are stored
    leases: bool = True  # keep names, attributes and extents until they are recalled
    local_names: bool = True  # change what is leased exclusively here, and tell the service later
    write_through: bool = True  # a file that others can see: commit before write returns; False: at close and fsync
    log_data_bytes: int = limits.LOG_DATA_COMMIT_BYTES  # of one commit, that may go into the log entry; 0: none
    short_circuit: bool = False  # read blocks of chunk servers on this host from their files
    lease_bytes_max: int = limits.LEASE_CACHE_BYTES  # of memory for them
    host: str = ""  # shown by `fusefs status`
    version: str = ""
    process: str = ""  # node.host.identity of this one
