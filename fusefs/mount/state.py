"""The files by which others on this host find a living mount: its lock, its pid, its mount point, its last word.

They lie in ``run`` beside cluster.toml where there is one that we may write, else in a private runtime directory.
The lock alone says whether the mount lives; the other files only tell about it.
"""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from node.host.lock import LivenessLock, lock_holder
from node.host.paths import private_directory, replace_file
from node.wire.limits import SOCKET_PATH_BYTES_MAX

LABEL_MAX = 150
_PLAIN = frozenset(string.ascii_letters + string.digits + "_.")


class MountInfo(msgspec.Struct, frozen=True):
    """What the state of one mount tells."""

    mount: str
    cluster: str
    log: str = ""


def label_of(mount: str) -> str:
    """Return a file name for a mount point: readable, and different for different mount points."""
    plain = "".join(c if c in _PLAIN else "-" for c in mount.strip("/"))
    if plain.replace("-", "/") == mount.strip("/") and len(plain) <= LABEL_MAX:
        return f"mount-{plain}"
    digest = hashlib.sha256(os.fsencode(mount)).hexdigest()[:12]
    return f"mount-{plain[:LABEL_MAX]}-{digest}"


def runtime_directory() -> Path:
    """Return where state goes when there is no writable ``run`` beside cluster.toml; made private to this user."""
    if os.geteuid() == 0:
        return private_directory(Path("/run/fusefs"))
    base = os.environ.get("XDG_RUNTIME_DIR")
    return private_directory(Path(base, "fusefs") if base else Path(f"/tmp/fusefs-{os.geteuid()}"))


def state_directories(cluster_path: Path) -> list[Path]:
    """Return where mounts of this cluster.toml may have left their state, the first writable one being the place."""
    return [cluster_path.parent / "run", runtime_directory()]


@dataclass(frozen=True, slots=True)
class MountState:
    """The state files of one mount point in one directory."""

    directory: Path
    label: str

    @property
    def lock_path(self) -> Path:
        return self.directory / f"{self.label}.lock"

    @property
    def pid_path(self) -> Path:
        return self.directory / f"{self.label}.pid"

    @property
    def info_path(self) -> Path:
        return self.directory / f"{self.label}.json"

    @property
    def socket_path(self) -> Path:
        """Where the process gives its profile."""
        path = self.directory / f"{self.label}.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return runtime_directory() / f"{digest}.sock"

    @property
    def failure_path(self) -> Path:
        return self.directory / f"{self.label}.failed"

    def holder(self) -> int | None:
        """Return the pid of the living mount process (0: alive, pid unknown), None when there is none."""
        return lock_holder(self.lock_path)

    def info(self) -> MountInfo | None:
        try:
            return msgspec.json.decode(self.info_path.read_bytes(), type=MountInfo)
        except (OSError, msgspec.MsgspecError):
            return None

    def take_failure(self) -> str | None:
        """Return and remove what the process wrote when it could not keep its promises to the end."""
        try:
            text = self.failure_path.read_text(errors="replace").strip()
            self.failure_path.unlink()
        except OSError:
            return None
        return text

    def clear(self) -> None:
        """Remove what told about the mount. The lock file stays: removing it would let two processes hold it."""
        for path in (self.pid_path, self.info_path):
            path.unlink(missing_ok=True)


def claim(cluster_path: Path, mount: str, log: str) -> tuple[MountState, LivenessLock]:
    """Register this process as the one that serves ``mount``; the lock is held. BUSY when another process does."""
    directory = cluster_path.parent / "run"
    if not (directory.is_dir() and os.access(directory, os.W_OK)):
        directory = runtime_directory()
    state = MountState(directory, label_of(mount))
    lock = LivenessLock(state.lock_path, f"mount point {mount}")
    lock.acquire()
    state.failure_path.unlink(missing_ok=True)
    info = MountInfo(mount=mount, cluster=str(cluster_path), log=log)
    replace_file(state.info_path, msgspec.json.encode(info))
    replace_file(state.pid_path, f"{os.getpid()}\n".encode())
    return state, lock


def find_state(cluster_path: Path, mount: str) -> MountState | None:
    """Return the state that the process of this mount left, living or not."""
    for directory in state_directories(cluster_path):
        state = MountState(directory, label_of(mount))
        if state.info_path.exists() or state.lock_path.exists():
            return state
    return None


def states_of(cluster_path: Path) -> Iterator[tuple[MountState, MountInfo]]:
    """Yield the state of this host's mounts of one cluster.toml, living or not."""
    real = os.path.realpath(cluster_path)
    for directory in state_directories(cluster_path):
        for path in sorted(directory.glob("mount-*.json")):
            state = MountState(directory, path.stem)
            info = state.info()
            if info is not None and os.path.realpath(info.cluster) == real:
                yield state, info
