"""Runs the scrubber beside the service: a step at a time in a thread, at the rate that was ordered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Optional

import trio

from node.wire.limits import SCRUB_BYTES_PER_S
from storage import api
from storage.scrubbing import Scrubber

_IDLE_S = 1.0
_log = logging.getLogger(__name__)


class Scrubbing:
    """Keeps one store scrubbed. ``finished`` is called at the end of a pass, so that a heartbeat may tell of it."""

    def __init__(self, scrubber: Scrubber, *, finished: Callable[[], None]) -> None:
        self._scrubber = scrubber
        self._finished = finished
        self._bytes_per_s = SCRUB_BYTES_PER_S
        self._ordered = trio.Event()
        self._order: Optional[api.Scrub] = None
        self._told: Optional[api.ScrubReport] = None

    def take(self, order: api.Scrub) -> None:
        """Take an order; one that is known changes nothing."""
        if order == self._order:
            return
        again = self._order is not None and order.order == self._order.order
        self._order = order
        self._bytes_per_s = max(1, order.bytes_per_s) if order.bytes_per_s else SCRUB_BYTES_PER_S
        if order.restart and not again:
            _log.info("a scrub of everything is ordered, %d bytes/s", self._bytes_per_s)
            self._scrubber.restart()
        self._told = None
        self._ordered.set()

    def report(self) -> Optional[api.ScrubReport]:
        """Return how far the pass is, None where that was told."""
        state = self._scrubber.state
        report = api.ScrubReport(
            self._order.order if self._order is not None else 0, state.passes + (state.place != (0, 0)),
            state.done_bytes, self._scrubber.total_bytes, state.damaged, state.passes, self._bytes_per_s,
        )
        return report if report != self._told else None

    def acknowledged(self, report: api.ScrubReport) -> None:
        """The leader has heard this."""
        self._told = report

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Scrub until cancelled; a step that has begun is finished."""
        task_status.started()
        while True:
            passes = self._scrubber.state.passes
            read_bytes = await trio.to_thread.run_sync(self._scrubber.step)
            if self._scrubber.state.passes != passes:
                self._finished()
            with trio.move_on_after(read_bytes / self._bytes_per_s if read_bytes else _IDLE_S):
                await self._ordered.wait()
            self._ordered = trio.Event()

    def statistics(self) -> dict[str, int]:
        """Return counters since the start."""
        return self._scrubber.statistics()
