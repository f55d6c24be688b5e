"""What is mounted on this host, and how a mount point is checked and let go. Shared by the mount and the commands."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusefs.mount.state import find_state
from node.host.identity import is_ending
from node.host.libc import LIBC, checked, syscall
from node.host.logging import get_logger
from node.wire.errors import Code, FsError

log = get_logger(__name__)

FUSE_TYPE = "fuse.fusefs"
DEAD_LAYERS_MAX = 16  # dead mounts stacked on one mount point that are cleared

_MNT_DETACH = 2
_CONNECTIONS = "/sys/fs/fuse/connections"
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # the same on every architecture
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_OCTAL = re.compile(r"\\([0-7]{3})")
# What a source may contain unquoted: printable ASCII but the quote itself.
_PLAIN = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) != "%")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table."""

    path: str
    device: str  # "MAJOR:MINOR"
    type: str
    source: str


def source_of(cluster_path: Path) -> str:
    """Return the source that a mount of this cluster.toml shows in the mount table: its path in ASCII."""
    return urllib.parse.quote(os.fsencode(cluster_path), safe=_PLAIN)


def cluster_of(source: str) -> Path:
    """Return the cluster.toml that ``source_of`` was given."""
    return Path(os.fsdecode(urllib.parse.unquote_to_bytes(source)))


def read_table(text: str | None = None) -> list[Mount]:
    """Parse /proc/self/mountinfo, in order: of several mounts on one path the last is on top."""
    if text is None:
        text = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    return list(_parse(text))


def _parse(text: str) -> Iterator[Mount]:
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if len(fields) >= 5 and len(rest) >= 2:
            yield Mount(path=_unescape(fields[4]), device=fields[2], type=rest[0], source=_unescape(rest[1]))


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def mounted_at(path: str) -> Mount | None:
    """Return what is mounted on top at exactly this absolute path."""
    found = None
    for mount in read_table():
        if mount.path == path:
            found = mount
    return found


def mounts_of(cluster_path: Path) -> list[Mount]:
    """Return this host's mounts of one cluster.toml, by whatever path it was named."""
    real = os.path.realpath(cluster_path)
    mounts = [mount for mount in read_table() if mount.type == FUSE_TYPE]
    return [mount for mount in mounts if os.path.realpath(cluster_of(mount.source)) == real]


def holds_mounts(path: str) -> bool:
    """Whether something is mounted below this absolute path, as far as this namespace shows."""
    inside = path.rstrip("/") + "/"
    return any(mount.path.startswith(inside) for mount in read_table())


class Changes:
    """Tells whether the mount table has changed since it was asked last; True the first time."""

    def __init__(self) -> None:
        self._file = open("/proc/self/mountinfo", "rb")
        self._poll = select.poll()
        self._poll.register(self._file.fileno(), select.POLLPRI)
        self._first = True

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def any(self) -> bool:
        changed = bool(self._poll.poll(0)) or self._first
        self._first = False
        return changed


def open_abort(device: str) -> int | None:
    """Open what ends the kernel's connection of a mount when something is written to it, even after the connection has
    gone (then nothing happens, whoever has the number by then). None where it cannot be had."""
    name = f"{device.partition(':')[2]}/abort"
    try:
        return os.open(f"{_CONNECTIONS}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        pass  # the filesystem of connections is not mounted here
    try:
        directory = _connections()
        try:
            return os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        log.info("the connections to the kernel cannot be opened", device=device, error=str(error))
        return None


def _connections() -> int:
    """Open the kernel's filesystem of FUSE connections, mounted nowhere. OSError where that is not allowed."""
    context = syscall(_SYS_FSOPEN, b"fusectl", _FSOPEN_CLOEXEC)
    try:
        syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def abort(device: str) -> None:
    """End the kernel's connection of a mount: all who wait for it get an error."""
    descriptor = open_abort(device)
    if descriptor is not None:
        try:
            os.write(descriptor, b"1")
        finally:
            os.close(descriptor)


def is_dead(path: str) -> bool:
    """Whether a mount is left at ``path`` whose process has ended. Where it was killed and cannot end, because the
    kernel waits for it, the connection is ended here."""
    mount = mounted_at(path)
    if mount is not None and mount.type == FUSE_TYPE and _killed(mount):
        abort(mount.device)
    try:
        os.stat(path)
        os.statvfs(path)  # for which the kernel asks; it may know the root's attributes still, and answer by itself
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _killed(mount: Mount) -> bool:
    state = find_state(cluster_of(mount.source), mount.path)
    return state is not None and is_ending(state.holder() or 0)


def absolute(path: str | os.PathLike[str]) -> str:
    """Resolve a mount point without touching what is mounted there: it may be dead, or its process may hang."""
    full = os.path.abspath(path)
    return os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full)) if full != "/" else full


def check_mount_point(path: str) -> None:
    """Make sure that ``path`` can be mounted on; a dead mount of an earlier process is taken away first.

    Raises FsError INVALID or BUSY whose detail says what is wrong and what to do.
    """
    for _ in range(DEAD_LAYERS_MAX):
        if not is_dead(path):
            break
        unmount(path, lazy=True)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FsError(Code.INVALID, f"mount point {path} does not exist; create it with mkdir -p") from None
    except OSError as error:
        raise FsError(Code.INVALID, f"mount point {path}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise FsError(Code.INVALID, f"mount point {path} is not a directory")
    mount = mounted_at(path)
    if mount is not None and mount.type != "autofs":
        raise FsError(Code.BUSY, f"mount point {path} is in use: {mount.source} ({mount.type}) is mounted there")
    try:
        with os.scandir(path) as entries:
            if next(entries, None) is not None:
                raise FsError(Code.BUSY, f"mount point {path} is not empty; mount on an empty directory")
    except OSError as error:
        raise FsError(Code.INVALID, f"mount point {path}: {error.strerror}") from None


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount as umount(8) does; blocks until the kernel has let go. OSError EBUSY while somebody uses it.

    ``lazy`` takes it out of the tree at once; those who use it keep it until they are done.
    """
    if os.geteuid() == 0:
        checked(LIBC.umount2(os.fsencode(path), _MNT_DETACH if lazy else 0), path)
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        text = done.stderr.strip()
        busy = "busy" in text
        raise OSError(errno.EBUSY if busy else errno.EPERM, text or os.strerror(errno.EPERM), path)


def sync(path: str) -> None:
    """Have the kernel write back what it holds of the filesystem mounted at ``path``."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        checked(LIBC.syncfs(fd), path)
    finally:
        os.close(fd)


def users_of(path: str, users_max: int = 3) -> list[str]:
    """Name some processes that keep a mount busy, as ``name (pid)``; as far as we may look."""
    inside = path.rstrip("/") + "/"
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and any(link == path or link.startswith(inside) for link in _links(entry)):
            found.append(f"{_name(entry)} ({entry})")
            if len(found) == users_max:
                break
    return found


def _links(pid: str) -> Iterator[str]:
    """What a process holds: working directory, root and open files."""
    names = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    try:
        names += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        pass  # another user's, or gone
    for name in names:
        try:
            yield os.readlink(name)
        except OSError:
            continue


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
