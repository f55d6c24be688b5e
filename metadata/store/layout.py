"""The data directory of a metadata member.

::

    LOCK        held while a process serves this directory; the lock is what counts, not the file
    IDENTITY    who this is; written last, so its presence means that the rest was created completely
    log/        the Raft log (``log.py``)
    state/      the applied state (``engine_lmdb.py``)
    incoming    a snapshot on its way in (``snapshot.py``)

A member's number is never given twice. A member whose directory was lost comes back under a new number, as a learner:
under its old one it would have forgotten its votes and acknowledgements.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from xxhash import xxh3_64_hexdigest

from metadata.raft.messages import ConfState
from metadata.store.disk import Disk, read_file, write_file
from metadata.store.log import LogStore
from metadata.store.scan import segment_numbers
from node.wire.errors import Code, FsError

FORMAT_VERSION = 1
_IDENTITY = "IDENTITY"


class Identity(msgspec.Struct, frozen=True):
    """``cluster`` and ``incarnation`` are 32 hexadecimal digits; an incarnation is one life of a directory."""

    format: int
    cluster: str
    member: int
    incarnation: str
    checksum: str = ""

    @property
    def cluster_id(self) -> bytes:
        """The cluster's 16 bytes."""
        return bytes.fromhex(self.cluster)


@dataclass(frozen=True)
class MemberDirectory:
    """An open data directory: its lock is held."""

    path: str
    identity: Identity

    @property
    def log_path(self) -> str:
        """Where the log is."""
        return f"{self.path}/log"

    @property
    def state_path(self) -> str:
        """Where the applied state is."""
        return f"{self.path}/state"

    @property
    def spool_path(self) -> str:
        """Where a snapshot on its way in is kept."""
        return f"{self.path}/incoming"


def _sealed(identity: Identity) -> Identity:
    plain = msgspec.structs.replace(identity, checksum="")
    return msgspec.structs.replace(plain, checksum=xxh3_64_hexdigest(msgspec.json.encode(plain)))


def exists(disk: Disk, path: str) -> bool:
    """Return whether a member was created here, completely."""
    return disk.exists(f"{path}/{_IDENTITY}")


def create(
    disk: Disk, path: str, *, cluster_id: bytes, member: int, incarnation: bytes, conf: ConfState | None = None
) -> Identity:
    """Create a member's directory, durably. ``conf``: the first membership, the same at every founding member; none
    for one that joins later.

    EXISTS where a member is, or data that only a member can have left; BUSY where another process is at it. What an
    interrupted creation left is completed.
    """
    assert len(cluster_id) == 16 and len(incarnation) == 16 and member > 0
    disk.make_directory(path)
    disk.sync_directory(path.rpartition("/")[0])
    with disk.lock(f"{path}/LOCK"):
        log_path = f"{path}/log"
        if exists(disk, path):
            raise FsError(Code.EXISTS, f"{path}: a member is here already")
        if disk.exists(log_path) and segment_numbers(disk, log_path) not in ([], [1]) or disk.exists(f"{path}/state"):
            raise FsError(Code.EXISTS, f"{path}: holds data, but no {_IDENTITY}")
        disk.remove_directory(log_path)
        LogStore.create(disk, log_path, cluster_id=cluster_id, conf=conf)
        identity = _sealed(Identity(FORMAT_VERSION, cluster_id.hex(), member, incarnation.hex()))
        write_file(disk, f"{path}/{_IDENTITY}", msgspec.json.format(msgspec.json.encode(identity)) + b"\n")
        return identity


def read_identity(disk: Disk, path: str) -> Identity:
    """Return who is here. NOT_FOUND, UNSUPPORTED_VERSION, or IO where the file is damaged."""
    file = f"{path}/{_IDENTITY}"
    content = read_file(disk, file)
    try:
        version = msgspec.json.decode(content, type=dict[str, object]).get("format")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FsError(
                Code.UNSUPPORTED_VERSION, f"{path}: member format {version}; this release reads up to {FORMAT_VERSION}"
            )
        identity = msgspec.json.decode(content, type=Identity)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FsError(Code.IO, f"{file}: damaged: {error}") from error
    if _sealed(identity) != identity:
        raise FsError(Code.IO, f"{file}: damaged: its checksum does not match")
    return identity


@contextmanager
def open_member(disk: Disk, path: str, *, cluster_id: bytes | None = None) -> Iterator[MemberDirectory]:
    """Hold a member's directory. NOT_FOUND where none was created, BUSY where another process holds it,
    FOREIGN_CLUSTER where it is of another cluster than asked for."""
    if not exists(disk, path):
        raise FsError(Code.NOT_FOUND, f"{path}: no member was created here")
    with disk.lock(f"{path}/LOCK"):
        disk.sync_directory(path)  # the creation may have died between naming the file and making that durable
        identity = read_identity(disk, path)
        if cluster_id is not None and identity.cluster_id != cluster_id:
            raise FsError(
                Code.FOREIGN_CLUSTER, f"{path}: belongs to cluster {identity.cluster}, not {cluster_id.hex()}"
            )
        yield MemberDirectory(path, identity)
