"""Programs that held locks when the session of their mount ended, and have not heard of it.

What they have open answers EIO from then on. But what they change by name, as a database that removes its journal,
comes from the belief that they still hold their locks, while somebody else may have taken them. So the first such
change is answered EIO as well, unless the program has heard of it before, or has closed what it had locked.

A process stands for its descendants: a shell may hold the lock under which others work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from node.wire.errors import Code, FsError

if TYPE_CHECKING:
    from fusefs.client.handles import Handle

DEPTH_MAX = 32  # of processes above each other


def process_of(thread: int) -> tuple[int, int]:
    """The process of a thread, and its parent; (0, 0): there is none."""
    try:
        lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines if line.startswith(("Tgid:", "PPid:")))
    return int(found.get("Tgid", 0)), int(found.get("PPid", 0))


class Misled:
    """All such processes of a mount. Bounded by the locks that were held."""

    def __init__(self, process: Callable[[int], tuple[int, int]] = process_of) -> None:
        self._process = process
        self._held: dict[int, set[Handle]] = {}  # process -> what it had locked

    def lost(self, threads: Collection[int], handles: Collection[Handle]) -> None:
        """Locks that these had through ``handles`` have ended."""
        for thread in threads:
            process, _ = self._process(thread)
            if process:
                self._held.setdefault(process, set()).update(handles)

    def changes(self, thread: int) -> None:
        """A thread asks for a change by name. Raises IO once where it may believe in locks that it has not any more."""
        if not self._held:
            return
        for process, handles in list(self._held.items()):
            if all(handle.closed for handle in handles) or any(handle.file.told for handle in handles):
                del self._held[process]
        process, above = self._process(thread)
        for _ in range(DEPTH_MAX):
            if not process:
                return
            if self._held.pop(process, None) is not None:
                raise FsError(Code.IO, f"locks of process {process} have ended with the session")
            process, above = self._process(above)
