"""A client follows the members as they come and go."""

from __future__ import annotations

from typing import Any

from fusefs.client.options import Peer
from fusefs.client.roster import Roster
from fusefs.client.leader import Leader
from metadata.api import GetStatus, MemberAddress, MemberStatus, StatusReply
from node.wire.errors import Code, FsError


class Reply:
    def __init__(self, body: Any) -> None:
        self.body = body
        self.data: list[memoryview] = []


class Member:
    """A connection to a member that answers as it is told."""

    def __init__(self, ident: int, role: str = "follower", names: tuple[int, ...] = (), hint: int = 0) -> None:
        self.ident, self.role, self.names, self.hint = ident, role, names, hint
        self.connected = True
        self.closed = False

    async def call(self, request: Any, data: Any = (), *, timeout_s: float) -> Any:
        if not self.connected:
            raise FsError(Code.UNREACHABLE)
        if isinstance(request, GetStatus):
            assert request.brief
            status = MemberStatus(self.ident, "", "", self.role, 1, 0, 0, 0, 0)
            roster = tuple(MemberAddress(number, f"m{number}", f"ipc://m{number}") for number in self.names)
            return Reply(StatusReply(status, roster=roster))
        if self.role != "leader":
            raise FsError(Code.NOT_LEADER, hint=self.hint)
        return Reply(self.ident)

    def close(self) -> None:
        self.closed = True


def world(*members: Member) -> tuple[dict[int, Any], Roster]:
    connections: dict[int, Any] = {member.ident: member for member in members}

    async def dial(ident: int, peer: Peer) -> Any:  # noqa: ASYNC124  as the real one
        assert peer.address == f"ipc://m{ident}"
        return Member(ident, "leader", (2, 3, 4))

    return connections, Roster(connections, {m.ident: Peer(f"ipc://m{m.ident}") for m in members}, dial)


async def test_a_new_leader_is_found_that_nobody_told_the_mount_of(autojump_clock: Any) -> None:
    members, roster = world(Member(1, names=(1, 2, 3, 4), hint=4), Member(2, names=(1, 2, 3, 4), hint=4))
    leader = Leader(members)
    await roster.refresh()
    assert set(members) == {1, 2, 3, 4}
    assert (await leader.call(object(), 1e9)).body in (3, 4)  # type: ignore[arg-type]


async def test_only_a_leader_makes_it_forget_a_member(autojump_clock: Any) -> None:
    stale, leading = Member(1, names=(1, 5)), Member(2, "leader", (2, 5))
    stale.names = (1,)
    members, roster = world(stale, leading)
    leading.connected = False
    await roster.refresh()
    assert set(members) == {1, 2} and not stale.closed
    leading.connected = True
    await roster.refresh()
    assert set(members) == {2, 5} and stale.closed


async def test_a_removed_member_is_not_asked_any_more(autojump_clock: Any) -> None:
    first, second = Member(1, "leader", (1, 2)), Member(2, "leader", (2,))
    members, roster = world(first, second)
    leader = Leader(members)
    assert (await leader.call(object(), 1e9)).body == 1  # type: ignore[arg-type]
    first.connected = False
    await roster.refresh()
    assert set(members) == {2} and not Leader(members).retries
    assert leader.connected is False
    assert (await leader.call(object(), 1e9)).body == 2  # type: ignore[arg-type]
