"""One taxonomy of errors. The only place where an errno is chosen.

``FsError`` is what every layer raises and what travels in an error reply. Its ``code`` decides the errno that a
program on the mount sees, whether the sender may try again, and the exit code of a command.
"""

from __future__ import annotations

import enum
import errno


class Code(enum.IntEnum):
    """Why a request failed. Numbers are part of the wire protocol: append, never renumber."""

    # What POSIX asks for
    NOT_FOUND = 1
    EXISTS = 2
    NOT_DIRECTORY = 3
    IS_DIRECTORY = 4
    NOT_EMPTY = 5
    INVALID = 6
    NAME_TOO_LONG = 7
    NO_SPACE = 8
    OVER_QUOTA = 9
    STALE = 10
    NO_ATTRIBUTE = 11
    RANGE = 12
    FILE_TOO_BIG = 13
    LOOP = 14
    ACCESS = 15
    PERMISSION = 16
    BUSY = 17
    TOO_MANY_LINKS = 18
    NOT_SUPPORTED = 19
    TOO_BIG = 20
    READ_ONLY = 21
    BAD_HANDLE = 22
    INTERRUPTED = 23
    LOCKED = 24  # by somebody else
    DEADLOCK = 25
    NO_LOCKS = 26
    BEYOND_END = 27  # of the file, or of its data
    # What a distributed system adds
    IO = 40
    TIMEOUT = 41
    UNREACHABLE = 42
    NOT_LEADER = 43
    OVERLOADED = 44
    UNKNOWN_SESSION = 45
    FENCED = 46
    RETRY = 47
    VERSION_MISMATCH = 48
    STALE_SEQUENCE = 49
    SKIPPED = 50
    STALE_EPOCH = 51
    LOG_FULL = 53  # too much data waits in the log: put it on chunk servers
    LEASES_GONE = 52  # the session holds leases of an earlier leader: it must drop them, then ask again
    CORRUPT_BLOCK = 60
    MISSING_BLOCK = 61
    PROTOCOL = 70
    UNSUPPORTED_VERSION = 71
    FOREIGN_CLUSTER = 72
    UNAUTHORIZED = 73
    SHUTTING_DOWN = 74
    STATE_DIFFERS = 75  # a member's state is not that of the others: it must not serve
    NO_QUORUM = 76  # what is asked for would leave the metadata service without enough living voters


_ERRNO: dict[Code, int] = {
    Code.NOT_FOUND: errno.ENOENT,
    Code.EXISTS: errno.EEXIST,
    Code.NOT_DIRECTORY: errno.ENOTDIR,
    Code.IS_DIRECTORY: errno.EISDIR,
    Code.NOT_EMPTY: errno.ENOTEMPTY,
    Code.INVALID: errno.EINVAL,
    Code.NAME_TOO_LONG: errno.ENAMETOOLONG,
    Code.NO_SPACE: errno.ENOSPC,
    Code.OVER_QUOTA: errno.EDQUOT,
    Code.STALE: errno.ESTALE,
    Code.NO_ATTRIBUTE: errno.ENODATA,
    Code.RANGE: errno.ERANGE,
    Code.FILE_TOO_BIG: errno.EFBIG,
    Code.LOOP: errno.ELOOP,
    Code.ACCESS: errno.EACCES,
    Code.PERMISSION: errno.EPERM,
    Code.BUSY: errno.EBUSY,
    Code.TOO_MANY_LINKS: errno.EMLINK,
    Code.NOT_SUPPORTED: errno.EOPNOTSUPP,
    Code.TOO_BIG: errno.E2BIG,
    Code.READ_ONLY: errno.EROFS,
    Code.BAD_HANDLE: errno.EBADF,
    Code.INTERRUPTED: errno.EINTR,
    Code.LOCKED: errno.EAGAIN,
    Code.DEADLOCK: errno.EDEADLK,
    Code.NO_LOCKS: errno.ENOLCK,
    Code.BEYOND_END: errno.ENXIO,
    Code.TIMEOUT: errno.ETIMEDOUT,
}

_RETRYABLE = frozenset({Code.NOT_LEADER, Code.OVERLOADED, Code.RETRY, Code.UNREACHABLE, Code.SHUTTING_DOWN})


class FsError(Exception):
    """A request failed in a way that the taxonomy names. ``detail`` is one line for a person."""

    def __init__(self, code: Code, detail: str = "", *, hint: int = 0) -> None:  # noqa: B042  never pickled
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.hint = hint  # NOT_LEADER: the member to ask instead, 0 when unknown

    @property
    def errno(self) -> int:
        """The errno that a program on the mount sees. Everything unnamed is EIO."""
        return _ERRNO.get(self.code, errno.EIO)

    @property
    def retryable(self) -> bool:
        """Whether the same request (same session and sequence) may be sent again, perhaps to another member."""
        return self.code in _RETRYABLE

    def __str__(self) -> str:
        return f"{self.code.name}: {self.detail}" if self.detail else self.code.name


class ProtocolError(FsError):
    """A peer broke the protocol; it costs that peer the connection and nothing else."""

    def __init__(self, detail: str) -> None:  # noqa: B042  never pickled
        super().__init__(Code.PROTOCOL, detail)
