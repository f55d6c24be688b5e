"""What operators ask of the group: who belongs to it, who votes, who leads.

The rules that keep the group safe are the core's; here are those that keep an operator from hurting it: a number is
given once, a learner votes only when it is close behind, and nobody is removed whose going would leave the group
without a living majority.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Optional

import msgspec

from metadata.api import ChangeMembers, ChangeMembersReply
from metadata.raft.core import Role
from metadata.raft.messages import ConfChange, ConfChangeItem, ConfChangeKind
from metadata.raft.progress import State
from metadata.server.node import Node
from metadata.server.peers import Peers
from metadata.server.roster import MemberRecord, encode_record, members_of
from metadata.state.machine import Outcome
from node.host.cluster import Member
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.limits import PROMOTE_LAG_MAX, SESSION_TEXT_BYTES_MAX, TRANSFER_WAIT_S


class Membership:
    """Handles ChangeMembers. ``members`` are all by number; ``configured`` the highest number in cluster.toml."""

    def __init__(
        self, node: Node, peers: Peers, members: Callable[[], Mapping[int, Member]], configured: int
    ) -> None:
        self._node = node
        self._peers = peers
        self._members = members
        self._configured = configured
        self._moving: list[tuple[Call, int, float]] = []  # transfers that wait: to whom, until when
        self._actions: dict[str, Callable[[Call, ChangeMembers], None]] = {
            "add": self._add,
            "promote": self._promote,
            "remove": self._remove,
            "transfer": self._transfer,
        }

    def change(self, call: Call) -> None:
        """Take a request; it is answered when the change has taken effect."""
        node, request = self._node, call.request
        if not node.settled:
            raise node.not_leader()
        action = self._actions.get(request.action)
        if action is None or max(map(len, msgspec.structs.astuple(request))) > SESSION_TEXT_BYTES_MAX:
            raise FsError(Code.INVALID, f"cannot {request.action[:64]!r} a member")
        action(call, request)

    def _find(self, name: str) -> Member:
        for number, member in self._members().items():
            if member.name == name and number in members_of(self._node.stable.conf):
                return member
        raise FsError(Code.NOT_FOUND, f"the cluster has no metadata member {name!r}")

    # --- add, promote, remove ---------------------------------------------------------------------------------

    def _add(self, call: Call, request: ChangeMembers) -> None:
        if not request.name or not request.address or not request.peer_address:
            raise FsError(Code.INVALID, "a new member needs a name and addresses")
        wanted = (request.name, request.address, request.peer_address, request.public_key)
        for member in self._members().values():
            if (member.name, member.address, member.peer_address, member.public_key) == wanted:
                call.reply(ChangeMembersReply(member.id))
                return
            if member.name == request.name:
                raise FsError(Code.EXISTS, f"there is a member {request.name} already, at {member.address}")
            if request.address == member.address or request.peer_address == member.peer_address:
                raise FsError(Code.EXISTS, f"{member.name} answers at that address already")
        stable = self._node.stable
        number = 1 + max(stable.directory.highest, self._configured, *members_of(stable.conf))
        self._propose(call, ConfChangeKind.ADD_LEARNER, MemberRecord(number, *wanted))

    def _promote(self, call: Call, request: ChangeMembers) -> None:
        member = self._find(request.name)
        conf = self._node.stable.conf
        if member.id in conf.voters:
            call.reply(ChangeMembersReply(member.id))
            return
        if member.id in conf.learners_next:
            raise FsError(Code.RETRY, f"{member.name} is about to become a learner")
        progress = self._node.core.progress.get(member.id)
        incarnation = self._peers.pins.get(member.id)
        if progress is None or progress.state == State.SNAPSHOT or not progress.match or not incarnation:
            raise FsError(Code.BUSY, f"{member.name} has not received the state yet: let it catch up first")
        lag = self._node.core.log.last - progress.match
        if lag > PROMOTE_LAG_MAX:
            raise FsError(Code.BUSY, f"{member.name} lags {lag} entries behind: let it catch up first")
        if not self._lives(member.id):
            raise FsError(Code.BUSY, f"{member.name} does not answer: a voter must live")
        record = MemberRecord(
            member.id, member.name, member.address, member.peer_address, member.public_key, incarnation
        )
        self._propose(call, ConfChangeKind.ADD_VOTER, record)

    def _remove(self, call: Call, request: ChangeMembers) -> None:
        member = self._find(request.name)
        conf = self._node.stable.conf
        if member.id in conf.voters:
            rest = [voter for voter in conf.voters if voter != member.id]
            living = sum(map(self._lives, rest))
            if not rest:
                raise FsError(Code.NO_QUORUM, f"{member.name} is the only voter")
            if 2 * living <= len(rest):
                raise FsError(
                    Code.NO_QUORUM,
                    f"without {member.name} only {living} of {len(rest)} voters would live: no quorum; "
                    "bring others back first",
                )
        if member.id == self._node.member:
            self._hand_over()
            raise FsError(Code.RETRY, f"{member.name} leads, and hands over first")
        self._propose(call, ConfChangeKind.REMOVE, member.id)

    def _lives(self, number: int) -> bool:
        if number == self._node.member:
            return True
        peer = self._peers.peers.get(number)
        return peer is not None and peer.control.connected

    def _propose(self, call: Call, kind: ConfChangeKind, who: MemberRecord | int) -> None:
        number, context = (who, b"") if isinstance(who, int) else (who.member, encode_record(who))
        change = ConfChange((ConfChangeItem(kind, number),), context=context)
        try:
            self._node.propose_conf(change, partial(_answer, call, number))
        except FsError as error:
            if error.code is Code.BUSY:
                raise FsError(Code.RETRY, error.detail) from None
            raise

    # --- leadership -------------------------------------------------------------------------------------------

    def heir(self) -> int:
        """The living voter that knows most besides this leader, 0 where there is none."""
        node = self._node
        if node.role is not Role.LEADER:
            return 0
        progress = node.core.progress
        able = [
            (progress[voter].match, voter)
            for voter in node.stable.conf.voters
            if voter != node.member and voter in progress and self._lives(voter)
        ]
        return max(able)[1] if able else 0

    def _hand_over(self) -> None:
        heir = self.heir()
        if not heir:
            raise FsError(Code.NO_QUORUM, "no other voter lives that could lead")
        self._node.core.transfer_leader(heir)
        self._node.wake()

    def _transfer(self, call: Call, request: ChangeMembers) -> None:
        member = self._find(request.name)
        if member.id == self._node.member:
            call.reply(ChangeMembersReply(member.id))
            return
        if member.id not in self._node.stable.conf.voters:
            raise FsError(Code.INVALID, f"{member.name} is a learner: promote it first")
        if not self._lives(member.id):
            raise FsError(Code.BUSY, f"{member.name} does not answer")
        self._node.core.transfer_leader(member.id)
        self._node.wake()
        self._moving.append((call, member.id, self._node.running_s + TRANSFER_WAIT_S))

    def look_after(self) -> None:
        """Answer transfers of leadership; called every tick."""
        if not self._moving:
            return
        waiting, self._moving = self._moving, []
        for call, target, until_s in waiting:
            if self._node.leader == target:
                call.reply(ChangeMembersReply(target))
            elif self._node.running_s > until_s:
                call.fail(FsError(Code.TIMEOUT, "it did not take over in time"))
            else:
                self._moving.append((call, target, until_s))


def _answer(call: Call, number: int, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
    if error is not None:
        call.fail(error)
    else:
        call.reply(ChangeMembersReply(number))
