"""Reads of files that take no thread: io_uring(7), by its system calls.

A read in a thread costs two hand-overs of the interpreter, which take as long as a disk does. Here the kernel is told
what to read, and tells when that is done by a descriptor that is watched like any other.

Where the kernel has no io_uring, or does not let this process have one, ``open_ring`` returns None and the caller uses
threads. So it is on machines other than x86-64: what the kernel has written to the shared memory is read here without
barriers, which only there is certain to be read in order.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple, Optional

from node.host.disk import SystemFile
from node.host.libc import syscall

_SETUP, _ENTER = 425, 426  # the same numbers on every architecture
_OFFSET_RINGS, _OFFSET_ENTRIES = 0, 0x1000_0000
_SINGLE_MMAP, _NODROP, _FAST_POLL = 1 << 0, 1 << 1, 1 << 5
_NEEDED = _SINGLE_MMAP | _NODROP | _FAST_POLL  # the last came with Linux 5.7, plain reads with 5.6
_READ = 22  # the operation
_ASYNC = 1 << 4  # by a thread of the kernel from the beginning
_ENTRY = struct.Struct("<BBHiQQIIQ24x")  # operation, flags, priority, descriptor, offset, address, length, flags, token
_DONE = struct.Struct("<QiI")  # token, result, flags

# io_uring_params: what is asked for and what comes back, then where the fields of both rings lie.
_PARAMS = struct.Struct("<7I12x" + "8IQ" + "8IQ")
_WORD, _WORD_MAX = 4, 0xFFFF_FFFF


class Done(NamedTuple):
    """A read that has ended: ``result`` bytes of ``data`` were read, or it is -errno."""

    token: int
    result: int
    data: bytearray


class _Under(NamedTuple):
    """A read under way. The kernel writes to ``data``, whose address ``pinned`` keeps."""

    began_s: float
    data: bytearray
    pinned: object


_unfinished: list[Ring] = []  # closed with reads under way: the kernel may still write to their memory


def open_ring(reads_max: int, slow_s: float) -> Optional[Ring]:
    """Return a Ring, or None where there cannot be one."""
    if platform.machine() != "x86_64":
        return None
    try:
        return Ring(reads_max, slow_s)
    except OSError:
        return None


class Ring:
    """Reads that one thread begins and hears of. ``fileno`` is readable for epoll(7) while ``done`` has something.

    Beginning a read may keep the caller waiting where the disk does not answer at all: for what the kernel reads to
    find out where the file lies, and for room in the disk's queue. So while one of them takes longer than ``slow_s``,
    what is begun is left to a thread of the kernel, which costs more and never waits.
    """

    def __init__(self, reads_max: int, slow_s: float) -> None:
        """For so many reads at a time, a power of two. Raises OSError where the kernel does not let us."""
        params = bytearray(_PARAMS.size)
        self._fd = self._call(_SETUP, reads_max, _address(params)[0])
        self._slow_s = slow_s
        self._reads_max = reads_max
        self._under: dict[int, _Under] = {}  # the oldest first
        self._token = 0
        try:
            sq_entries, cq_entries, _, _, _, features, _, *offsets = _PARAMS.unpack(params)
            if features & _NEEDED != _NEEDED:
                raise OSError(errno.ENOSYS, "io_uring is too old")
            _, sq_tail, sq_mask, _, _, _, sq_array, _, _, cq_head, cq_tail, cq_mask, _, _, done, _, _, _ = offsets
            access = mmap.PROT_READ | mmap.PROT_WRITE
            size = max(sq_array + _WORD * sq_entries, done + _DONE.size * cq_entries)
            self._rings = mmap.mmap(self._fd, size, mmap.MAP_SHARED, access, offset=_OFFSET_RINGS)
            size = _ENTRY.size * sq_entries
            self._entries = mmap.mmap(self._fd, size, mmap.MAP_SHARED, access, offset=_OFFSET_ENTRIES)
        except BaseException:
            os.close(self._fd)
            raise
        self._words = memoryview(self._rings).cast("I")
        self._sq_tail, self._cq_head, self._cq_tail = sq_tail // _WORD, cq_head // _WORD, cq_tail // _WORD
        self._sq_mask, self._cq_mask = self._words[sq_mask // _WORD], self._words[cq_mask // _WORD]
        self._done = done
        for index in range(sq_entries):  # entry n always lies in place n
            self._words[sq_array // _WORD + index] = index

    @staticmethod
    def _call(number: int, *args: int) -> int:
        return syscall(number, *map(ctypes.c_ulong, args))

    def fileno(self) -> int:
        return self._fd

    @property
    def under_way(self) -> int:
        """Reads that were begun and are not ``done`` yet, whether anybody still waits for them or not."""
        return len(self._under)

    def begin(self, file: SystemFile, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """Begin to read these (length, offset) side by side; return the token of each. OSError where that cannot be."""
        if len(self._under) + len(ranges) > self._reads_max:
            raise OSError(errno.EBUSY, "too many reads are under way")
        now_s = time.monotonic()
        slow = bool(self._under) and now_s - next(iter(self._under.values())).began_s > self._slow_s
        tail = self._words[self._sq_tail]
        tokens: list[int] = []
        for length, offset in ranges:
            self._token += 1
            data = bytearray(length)
            address, pinned = _address(data)
            _ENTRY.pack_into(
                self._entries, _ENTRY.size * ((tail + len(tokens)) & self._sq_mask), _READ, _ASYNC if slow else 0, 0,
                file.fileno(), offset, address, length, 0, self._token,
            )
            self._under[self._token] = _Under(now_s, data, pinned)
            tokens.append(self._token)
        self._words[self._sq_tail] = (tail + len(tokens)) & _WORD_MAX
        begun = 0
        try:
            while begun < len(tokens):
                begun += self._call(_ENTER, self._fd, len(tokens) - begun, 0, 0, 0, 0)
        except OSError:
            self._words[self._sq_tail] = (tail + begun) & _WORD_MAX  # what the kernel has not taken it never will
            for token in tokens[begun:]:
                del self._under[token]
            raise
        return tokens

    def done(self) -> list[Done]:
        """Return the reads that have ended since the last call."""
        ended: list[Done] = []
        head, tail = self._words[self._cq_head], self._words[self._cq_tail]
        while head != tail:
            token, result, _ = _DONE.unpack_from(self._rings, self._done + _DONE.size * (head & self._cq_mask))
            ended.append(Done(token, result, self._under.pop(token).data))
            head = (head + 1) & _WORD_MAX
        self._words[self._cq_head] = head
        return ended

    def close(self) -> None:
        """Give the descriptor back. What is under way ends some time, and nobody hears of it."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._under:
            _unfinished.append(self)


def _address(data: bytearray) -> tuple[int, object]:
    """Where bytes lie, and what keeps them there."""
    pinned = (ctypes.c_char * len(data)).from_buffer(data)
    return ctypes.addressof(pinned), pinned
