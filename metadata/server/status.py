"""A member's own view of itself and, where it leads, of the cluster: what ``fusefs status`` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from metadata import api
from metadata.raft.core import Role
from metadata.raft.progress import Progress, State
from metadata.server.leader import Leader
from metadata.server.leasing import Leasing
from metadata.server.node import Node
from metadata.state.machine import Machine
from node.host.cluster import Member

_ROLES = {
    Role.LEADER: "leader",
    Role.FOLLOWER: "follower",
    Role.CANDIDATE: "candidate",
    Role.PRECANDIDATE: "candidate",
}


def role_of(node: Node) -> str:
    """leader, follower, candidate or learner."""
    return "learner" if node.member in node.stable.conf.learners else _ROLES[node.role]


class Reporter:
    """Puts the answers to GetStatus together."""

    def __init__(
        self,
        node: Node,
        machine: Machine,
        leader: Leader,
        leasing: Leasing,
        own: Member,
        members: Callable[[], Mapping[int, Member]],
    ) -> None:
        self._node = node
        self._machine = machine
        self._leader = leader
        self._leasing = leasing
        self._own = own
        self._all = members
        self.under_replicated: Callable[[], int] = lambda: 0

    def report(self, *, brief: bool = False) -> api.StatusReply:
        """A member's status; sessions, servers and volume only from a settled leader."""
        own = self._status()
        if brief or not self._node.settled:
            return api.StatusReply(own, roster=self.roster())
        machine, leader, held = self._machine, self._leader, self._leasing.held
        return api.StatusReply(
            own,
            self._members(own),
            tuple([api.SessionStatus(s.id, s.host, s.mount, held(s.id), s.process) for s in machine.sessions()]),
            leader.fleet.records(machine.servers()),
            leader.volume(),
            leader.fleet.stored_bytes(),
            machine.replicas,
            self.under_replicated(),
            self.roster(),
        )

    def roster(self) -> tuple[api.MemberAddress, ...]:
        """Where all members serve, as far as this one knows."""
        return tuple([api.MemberAddress(m.id, m.name, m.address, m.public_key) for m in self._all().values()])

    def _status(self) -> api.MemberStatus:
        status = self._node.core.status()
        return api.MemberStatus(
            status.id,
            self._own.name,
            self._own.address,
            role_of(self._node),
            status.term,
            status.leader,
            status.commit,
            self._machine.applied,
            status.last,
            status.last if self._node.role is Role.LEADER else 0,
        )

    def _members(self, own: api.MemberStatus) -> tuple[api.MemberStatus, ...]:
        """All members, the others as far as the leader knows them: by what they acknowledged."""
        status = self._node.core.status()
        learners = self._node.stable.conf.learners
        found = []
        for member in self._all().values():
            progress = status.progress.get(member.id)
            if member.id == own.member:
                found.append(own)
            elif progress is not None:
                role = "learner" if member.id in learners else "follower"
                found.append(self._other(member, role, own, progress))
        return tuple(found)

    @staticmethod
    def _other(member: Member, role: str, own: api.MemberStatus, progress: Progress) -> api.MemberStatus:
        match = progress.match
        reached = min(match, own.commit)
        return api.MemberStatus(
            member.id,
            member.name,
            member.address,
            role,
            own.term,
            own.member,
            reached,
            reached,
            match,
            match,
            State(progress.state).name.lower(),
        )
