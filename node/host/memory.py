"""How the allocator treats large buffers.

glibc maps each large buffer anew and unmaps it when it is freed, or gives the end of its heap back at once; the next
buffer of a megabyte then costs 256 page faults and as many cleared pages, more than copying its content. A process
through which data streams keeps what it freed, up to a bound, and uses it again.
"""

from __future__ import annotations

import ctypes
import logging

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

log = logging.getLogger(__name__)


def keep_freed_buffers(*, buffer_bytes_max: int, kept_bytes_max: int) -> bool:
    """From now on buffers of up to ``buffer_bytes_max`` come from memory that was used before, and up to
    ``kept_bytes_max`` of it stay with the process when they are free. Where the C library is not glibc nothing
    changes; returns whether it did."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, buffer_bytes_max),
        (_M_TRIM_THRESHOLD, kept_bytes_max),
        (_M_TOP_PAD, buffer_bytes_max),
        (_M_ARENA_MAX, 1),  # what one thread frees, another can use
    )
    done = all([mallopt(ctypes.c_int(what), ctypes.c_int(size_bytes)) == 1 for what, size_bytes in settings])
    if not done:
        log.info("the allocator did not take its settings")
    return done
