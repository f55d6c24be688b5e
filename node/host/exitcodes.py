"""How a process ends: one table from what went wrong to the exit code, and the one line that says it."""

from __future__ import annotations

import enum
import os

from node.wire.errors import Code, FsError


class Exit(enum.IntEnum):
    """Exit codes of every command and process. Scripts rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    FINDINGS = 3
    UNREACHABLE = 4
    UNAUTHORIZED = 5
    NOT_FOUND = 6
    INTEGRITY = 7


class UsageError(Exception):
    """The command was called, or configured, in a way that cannot work. One line for a person."""


class ConfigError(UsageError):
    """A configuration file is wrong; the line names the file and the key."""


_BY_CODE = {
    Code.NOT_FOUND: Exit.NOT_FOUND,
    Code.MISSING_BLOCK: Exit.NOT_FOUND,
    Code.TIMEOUT: Exit.UNREACHABLE,
    Code.UNREACHABLE: Exit.UNREACHABLE,
    Code.NOT_LEADER: Exit.UNREACHABLE,
    Code.SHUTTING_DOWN: Exit.UNREACHABLE,
    Code.UNAUTHORIZED: Exit.UNAUTHORIZED,
    Code.CORRUPT_BLOCK: Exit.INTEGRITY,
    Code.FOREIGN_CLUSTER: Exit.INTEGRITY,
    Code.UNSUPPORTED_VERSION: Exit.INTEGRITY,
    Code.STATE_DIFFERS: Exit.INTEGRITY,
    Code.NO_QUORUM: Exit.UNREACHABLE,
}


def exit_code(error: BaseException) -> Exit:
    """The exit code for an error. Of a group, the first leaf decides."""
    error = _leaf(error)
    if isinstance(error, FsError):
        return _BY_CODE.get(error.code, Exit.FAILED)
    if isinstance(error, UsageError):
        return Exit.USAGE
    return Exit.FAILED


def describe(error: BaseException) -> str | None:
    """One line for a person, or None when the error is not one that can be expected: then show the traceback."""
    if isinstance(error, BaseExceptionGroup):
        lines = [describe(inner) for inner in error.exceptions]
        return None if None in lines else "; ".join(dict.fromkeys(line for line in lines if line))
    if isinstance(error, FsError):
        return error.detail or error.code.name.lower().replace("_", " ")
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or os.strerror(error.errno)
        return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
    return None


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
