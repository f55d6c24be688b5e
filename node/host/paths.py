"""Files and directories done durably and privately."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from node.wire.errors import Code, FsError
from node.wire.limits import SOCKET_PATH_BYTES_MAX


def fsync_directory(path: Path) -> None:
    """Make creations, renames and removals in a directory durable. OSError ends the caller's work."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that after a crash either the old or the new one is there; durable on return."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def private_directory(path: Path) -> Path:
    """Create a directory that only its owner enters (0700), parents included; durable. An existing one is closed to
    others, one of another user is refused with FsError PERMISSION."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(path.parent)
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
        raise FsError(Code.PERMISSION, f"{path} is not a directory of this user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def ipc_address(directory: Path, name: str) -> str:
    """Where a process of the cluster in ``directory`` serves: ``ipc://run/NAME.sock``, relative to cluster.toml.

    Where the whole path would not fit a socket address, the socket moves to a runtime directory of its own. Makes the
    directory, private.
    """
    path = directory.resolve() / "run" / f"{name}.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        private_directory(path.parent)
        return f"ipc://run/{name}.sock"
    digest = hashlib.blake2b(os.fsencode(directory.resolve()), digest_size=8).hexdigest()
    return f"ipc://{private_directory(_runtime_base() / f'fusefs-{os.geteuid()}-{digest}') / name}.sock"


def _runtime_base() -> Path:
    """A directory with a short name in which others cannot replace ours: /run for root, the user's own, or /tmp."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    for candidate in (given, "/run" if os.geteuid() == 0 else "", "/tmp"):
        if candidate and len(candidate) < 40 and os.access(candidate, os.W_OK | os.X_OK):
            return Path(candidate)
    raise FsError(Code.PERMISSION, "no place for sockets: set XDG_RUNTIME_DIR")
