"""The leader's part in comparing states: who got which digest, and what most members got.

A slice is digested by every member when it applies the AUDIT entry (``metadata.state.audit``). The others tell the
leader what they got; the next AUDIT entry carries what a majority of the voters got, so that a leader whose own state
is the odd one stops like anybody else. Where no majority agrees nobody is judged, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from metadata.raft.messages import ConfState
from metadata.server.node import Node
from metadata.state.command import Audit
from metadata.state.machine import Machine
from node.host.logging import get_logger
from node.wire.limits import AUDIT_IDLE_S, AUDIT_ROWS, AUDIT_S

log = get_logger(__name__)

Tell = Callable[[int, int, bytes], None]
"""(member, index, digest): tell a member what this one got."""


class Audits:
    """Digests of one member, and of all of them while it leads."""

    def __init__(
        self,
        node: Node,
        machine: Machine,
        tell: Tell,
        *,
        every_s: float = AUDIT_S,
        idle_s: float = AUDIT_IDLE_S,
        rows: int = AUDIT_ROWS,
    ) -> None:
        self._node = node
        self._machine = machine
        self._tell = tell
        self._every_s = every_s
        self._idle_s = idle_s
        self._rows = rows
        self._about = 0  # the entry that digests are gathered for, 0: none
        self._got: dict[int, bytes] = {}
        self._last_s = 0.0
        self.compared = 0  # slices that a majority agreed on
        self.disputed = 0  # slices on which members differed

    def begin(self, now_s: float) -> None:
        """This member leads now. Who got what for an earlier leader's entry is not known."""
        self._about = 0
        self._got.clear()
        self._last_s = now_s

    def applied(self) -> None:
        """This member has digested a slice: keep it where it leads, else tell the leader."""
        last = self._machine.audited
        if self._node.settled:
            self._about = last.index
            self._got = {self._node.member: last.digest}
        elif self._node.leader:
            self._tell(self._node.leader, last.index, last.digest)

    def heard(self, sender: int, index: int, digest: bytes) -> None:
        """Another member tells what it got."""
        if index == self._about:
            self._got[sender] = digest

    def due(self, now_s: float) -> Optional[Audit]:
        """The next AUDIT to put into the log, None while it is not time. A member alone has nobody to differ from."""
        conf = self._node.stable.conf
        if len(conf.voters) + len(conf.outgoing) + len(conf.learners) < 2:
            return None
        idle = self._machine.applied == self._about
        unsettled = len(set(self._got.values())) > 1
        if now_s - self._last_s < (self._idle_s if idle and not unsettled else self._every_s):
            return None
        self._last_s = now_s
        verdict = majority(self._got, conf)
        if unsettled:
            self.disputed += 1
            odd = {member: digest.hex() for member, digest in sorted(self._got.items()) if digest != verdict}
            known = "" if verdict else ", and no majority says who is right"
            log.error(f"members hold different states{known}", index=self._about, differ=odd)
        elif verdict:
            self.compared += 1
        return Audit(self._rows, self._about if verdict else 0, verdict)

    def statistics(self) -> dict[str, float]:
        return {"audits_compared": self.compared, "audits_disputed": self.disputed}


def majority(got: dict[int, bytes], conf: ConfState) -> bytes:
    """The digest that a majority of the voters got, in a joint configuration of both halves; empty where none did."""
    for digest in sorted(set(got.values())):
        agree = {member for member, other in got.items() if other == digest}
        halves = [set(half) for half in (conf.voters, conf.outgoing) if half]
        if halves and all(2 * len(agree & half) > len(half) for half in halves):
            return digest
    return b""
