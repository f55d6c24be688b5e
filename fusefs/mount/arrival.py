"""Whether threads have looked at what they were answered.

The kernel acts on a reply in the time of the thread that asked. The reply wakes it, and on a busy machine it may take
many milliseconds until it runs. What is done about the inode before is as if it had been done before the reply.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Optional

import trio

LOOK_S = 0.001
LOOKS_MAX = 50


def run_ns(thread: int) -> Optional[int]:
    """How long a thread has run that wants to run at this moment. None: it sleeps, so it has looked at all that has
    woken it before, or it cannot be seen."""
    try:
        state = Path(f"/proc/{thread}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        return int(Path(f"/proc/{thread}/schedstat").read_text().split()[0]) if state == "R" else None
    except (OSError, ValueError, IndexError):
        return None


async def looked(threads: Collection[int], running_ns: Callable[[int], Optional[int]] = run_ns) -> None:
    """Return when each of these has run since it was answered, or does not want to; not for ever."""
    waiting = {thread: ran for thread in threads if (ran := running_ns(thread)) is not None}
    for _ in range(LOOKS_MAX):
        if not waiting:
            return
        await trio.sleep(LOOK_S)
        waiting = {thread: ran for thread, ran in waiting.items() if running_ns(thread) == ran}
