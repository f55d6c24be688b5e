"""Bytes that travel in log entries (Commit.data): when that is worth while, and how they come back from there.

A small file that is synced costs one round of durability then, not two in series. But the log is for that only: its
bytes are written once more when the leader moves them to chunk servers. So only what somebody waits for goes that way,
and only while the service has room for it, and chunk servers for what it moves: else who writes would not hear that
they are full.
"""

from __future__ import annotations

from typing import Any, Optional

from fusefs.client.session import Session
from metadata.api import GetBlock, Value


class LogData:
    """What one mount does about it. ``bytes_max`` of one commit; 0: nothing goes that way."""

    def __init__(self, session: Session, bytes_max: int) -> None:
        self._session = session
        self._bytes_max = bytes_max
        self.commits = 0
        self.refusals = 0

    def takes(self, size: int) -> bool:
        """Whether so many bytes may travel with a commit now."""
        return size <= self._bytes_max and size < self._session.log_room_bytes

    def refused(self) -> None:
        """The service has no room after all; it will tell when it has again."""
        self.refusals += 1
        self._session.log_room_bytes = min(self._session.log_room_bytes, 0)

    async def block(self, block: bytes, deadline: float) -> Optional[bytes]:
        """The bytes of a block, where the service still has them itself. Waits for nothing else."""
        if self._session.log_room_bytes < 0:
            return None  # it does not know the question
        (result,) = await self._session.read(GetBlock(block), deadline=deadline, journal=True)
        return result.value if isinstance(result, Value) else None

    def statistics(self) -> dict[str, Any]:
        return {"commits": self.commits, "refusals": self.refusals, "room_bytes": self._session.log_room_bytes}
