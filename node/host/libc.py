"""Calls of the C library that Python does not have."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int, path: str | None = None) -> int:
    """What a call of ``LIBC`` has returned. OSError where it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def syscall(number: int, *arguments: object) -> int:
    """A call of the kernel by its number; ``arguments`` as ctypes takes them. OSError where it failed."""
    return checked(LIBC.syscall(ctypes.c_long(number), *arguments))
