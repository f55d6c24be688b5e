"""What the leader's orders and a server's reports have to do with its heartbeats."""

from __future__ import annotations

from collections.abc import Sequence

from node.wire.limits import ORDERS_MAX, REPORTS_MAX
from storage import api
from storage.server.healing import Healing
from storage.server.scrubbing import Scrubbing


class Orders:
    """Hands orders to those who carry them out and collects their reports."""

    def __init__(self, healing: Healing, scrubbing: Scrubbing) -> None:
        self._healing = healing
        self._scrubbing = scrubbing

    def take(self, orders: Sequence[api.Order]) -> None:
        """Take what came with a reply."""
        for order in orders[:ORDERS_MAX]:
            if isinstance(order, api.Scrub):
                self._scrubbing.take(order)
            else:
                self._healing.take(order)

    def reports(self) -> tuple[api.Report, ...]:
        """Return what changed since the leader acknowledged it last."""
        scrub = self._scrubbing.report()
        return (*self._healing.reports(REPORTS_MAX - 1), *((scrub,) if scrub is not None else ()))

    def acknowledged(self, reports: Sequence[api.Report]) -> None:
        """The leader has heard these."""
        for report in reports:
            if isinstance(report, api.ScrubReport):
                self._scrubbing.acknowledged(report)
            else:
                self._healing.acknowledged(report)
