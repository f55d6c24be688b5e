"""CURVE key files: one secret a file, mode 0600, in a directory of mode 0700. Never printed, never logged.

Under systemd a server's key may come as a credential (LoadCredential=NAME.key:FILE), so that the service's user need
not be able to read the directory of keys.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from node.host.cluster import ClusterConfig
from node.host.paths import fsync_directory, private_directory
from node.rpc.security import CurveKeys, Security
from node.wire.errors import Code, FsError

CLIENT_NAME = "client"  # the key that the mounts of a cluster share unless they are given one


def key_path(cluster_path: Path, name: str) -> Path:
    """Where the key NAME of a cluster lies: keys/NAME.key beside its cluster.toml."""
    return cluster_path.parent / "keys" / f"{name}.key"


def create_keys(path: Path) -> CurveKeys:
    """Make a pair and store it durably. Never overwrites: FsError EXISTS."""
    private_directory(path.parent)
    keys = CurveKeys.generate()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FsError(Code.EXISTS, f"{path}: there is a key already") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(keys.secret + b"\n")
        file.flush()
        os.fsync(descriptor)
    fsync_directory(path.parent)
    return keys


def load_keys(path: Path, *, private: bool = True) -> CurveKeys:
    """Read a key file. FsError NOT_FOUND, UNAUTHORIZED (others can read it), INVALID (not a key).

    ``private`` false: whoever made the file guards it by other means than its mode.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(256)
    except FileNotFoundError:
        raise FsError(Code.NOT_FOUND, f"{path}: no such key") from None
    except PermissionError:
        raise FsError(Code.UNAUTHORIZED, f"{path}: this user may not read the key") from None
    if private and mode & 0o077:
        raise FsError(Code.UNAUTHORIZED, f"{path}: others can read this key: chmod 600 it, and better make a new one")
    try:
        return CurveKeys.from_secret(text.strip())
    except ValueError:
        raise FsError(Code.INVALID, f"{path}: not a key") from None


def process_keys(config: ClusterConfig, cluster_path: Path, name: str) -> CurveKeys | None:
    """The keys of process NAME, None where ipc needs none. A systemd credential goes before the key file."""
    if config.transport != "tcp":
        return None
    given = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if given and (credential := Path(given) / f"{name}.key").exists():
        return load_keys(credential, private=False)  # guarded by an access list, which shows in the mode
    return load_keys(key_path(cluster_path, name))


def server_security(config: ClusterConfig, cluster_path: Path, name: str, *, members_only: bool = False) -> Security:
    """How process NAME serves: every process and every client of the cluster may come in, nobody else.

    ``members_only``: for what members say among themselves, which no client may forge.
    """
    keys = process_keys(config, cluster_path, name)
    if keys is None:
        return Security.plain()
    if members_only:
        known = [member.public_key for member in config.members]
    else:
        known = [*(entry.public_key for entry in config.processes), *config.clients]
    return Security.curve_server(keys, [key.encode() for key in known if key])


def client_security(config: ClusterConfig, keys: CurveKeys | None, server_public: str) -> Security:
    """How to reach the process that owns ``server_public``. ``keys`` may be None only with ipc."""
    if config.transport != "tcp":
        return Security.plain()
    if keys is None:
        raise FsError(Code.UNAUTHORIZED, "tcp needs a key")
    return Security.curve_client(keys, server_public.encode())
