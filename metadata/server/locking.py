"""Tells sessions that the turn of a lock has come. The rules are in ``metadata.state.locks``; losing a message is no
matter, because whoever waits asks now and then."""

from __future__ import annotations

from collections.abc import Callable

from metadata import api
from metadata.state.machine import Outcome

Notify = Callable[[int, api.LocksGranted], bool]


class LockNotices:
    """Pushes to the sessions that this leader serves."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._counts = {"locks_granted": 0, "lock_notices_lost": 0}

    def applied(self, outcome: Outcome) -> None:
        """An entry was applied; on the leader."""
        if not outcome.granted:
            return
        tickets: dict[int, list[int]] = {}
        for session, ticket in outcome.granted:
            tickets.setdefault(session, []).append(ticket)
        for session, numbers in tickets.items():
            self._counts["locks_granted"] += len(numbers)
            if not self._notify(session, api.LocksGranted(session, tuple(numbers))):
                self._counts["lock_notices_lost"] += 1

    def statistics(self) -> dict[str, float]:
        return dict(self._counts)
