"""Which files programs have mapped, as /proc tells.

The kernel tells a file system nothing of mappings. A mapping is made by who has the file open, so it is enough to look
at those who have opened it; what they have handed on to others, who map it, is not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def device_of(number: str) -> str:
    """As in a process's list of mappings, of what the list of mounts calls ``MAJOR:MINOR``."""
    major, minor = map(int, number.split(":"))
    return f"{major:02x}:{minor:02x}"


def mapped_by(thread: int, device: str) -> frozenset[int] | None:
    """The inodes of a device that a thread's process has mapped. None: nobody knows, it has gone or cannot be seen."""
    found = set()
    try:
        with open(f"/proc/{thread}/maps", "rb") as file:
            for line in file:
                fields = line.split(None, 5)
                if fields[3] == device.encode():
                    found.add(int(fields[4]))
    except (OSError, ValueError, IndexError):
        return None
    return frozenset(found)


def mapped(openers: Mapping[int, Collection[int]], device: str) -> list[int]:
    """Those of some inodes that are mapped by one of the threads that have opened them, as far as that can be told."""
    seen = {thread: mapped_by(thread, device) for threads in openers.values() for thread in threads}
    return [
        ino for ino, threads in openers.items()
        if any((inos := seen[thread]) is None or ino in inos for thread in threads)
    ]  # fmt: skip
