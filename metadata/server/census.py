"""What each chunk server holds of each group, as far as the leader has asked. Pure; forgotten with the leadership.

Members of a row that were asked while a put was under way differ for a moment. So a difference only counts when two
rounds of questions in a row got the very same answers from everybody; then it is one that nobody is about to mend.
A group that is written to all the time never gives the same answers twice. Of such a one the least difference in
CENSUS_BUSY_ROUNDS counts: what is under way comes and goes, what is missing stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from metadata.rows import View, live_copies
from metadata.state.records import Group
from node.wire.limits import CENSUS_BUSY_ROUNDS
from storage.api import GroupDigest

Contents = tuple[int, bytes, int]  # blocks, digest of their names, digest of their touches


@dataclass(slots=True)
class _Difference:
    """Of one group, over rounds without an end to it."""

    answers: tuple[tuple[int, Contents], ...]  # of the last round
    least: int  # copies that were missing, in these rounds:
    rounds: int = 1
    busy: int = 0  # what the last CENSUS_BUSY_ROUNDS came to


class Census:
    """Digests by server and group."""

    def __init__(self) -> None:
        self._held: dict[int, dict[int, GroupDigest]] = {}
        self._seen: dict[int, _Difference] = {}  # of groups whose members differed when last asked
        self.differing: set[int] = set()  # groups whose members differ, and keep so

    def asked(self, server: int, digests: Iterable[GroupDigest]) -> None:
        """Take a server's answer, which is about all groups."""
        self._held[server] = {digest.group: digest for digest in digests if digest.blocks}

    def forget(self, servers: Collection[int]) -> None:
        """These servers are gone, with what they had."""
        for server in servers:
            self._held.pop(server, None)

    def known(self, server: int) -> bool:
        """Whether the server was ever asked."""
        return server in self._held

    def blocks(self, server: int, group: int) -> int:
        """How many living blocks of a group a server had when it was asked."""
        held = self._held.get(server, {}).get(group)
        return held.blocks if held is not None else 0

    def stored_bytes(self, server: int, group: int) -> int:
        held = self._held.get(server, {}).get(group)
        return held.stored_bytes if held is not None else 0

    def sizes(self, groups: Sequence[Group]) -> list[int] | None:
        """What each group stores on whoever has the most of it; None while nobody was asked."""
        if not self._held:
            return None
        return [
            max([self.stored_bytes(server, number) for server in group.servers], default=0)
            for number, group in enumerate(groups)
        ]

    def total_bytes(self, server: int) -> int:
        """What a server stores of all groups."""
        return sum(digest.stored_bytes for digest in self._held.get(server, {}).values())

    def _contents(self, server: int, group: int) -> Contents:
        held = self._held.get(server, {}).get(group)
        return (held.blocks, held.digest, held.touches) if held is not None else (0, b"", 0)

    def compare(self, groups: Sequence[Group], view: View) -> None:
        """After a round of questions: find the groups whose members differ as they did in the round before."""
        self.differing = set()
        seen: dict[int, _Difference] = {}
        for number, group in enumerate(groups):
            members = [s for s in group.servers if s not in group.filling and view.living(s) and self.known(s)]
            answers = tuple([(server, self._contents(server, number)) for server in members])
            if len({contents for _, contents in answers}) > 1:
                now = seen[number] = _Difference(answers, self._gaps(number, group, view))
                before = self._seen.get(number)
                if before is None:
                    continue
                if before.answers == answers:
                    self.differing.add(number)
                else:
                    self._go_on(now, before)
                    if now.busy:
                        self.differing.add(number)
        self._seen = seen

    @staticmethod
    def _go_on(now: _Difference, before: _Difference) -> None:
        """A group differs in another way than in the round before."""
        if before.rounds == CENSUS_BUSY_ROUNDS:
            now.busy = before.least
        else:
            now.busy, now.rounds, now.least = before.busy, before.rounds + 1, min(now.least, before.least)

    def size(self, number: int, group: Group) -> int:
        """How many blocks a group has: what the fullest of its complete members had. 1 where nobody was ever asked."""
        complete = [server for server in group.servers if server not in group.filling]
        if not any(self.known(server) for server in group.servers):
            return 1
        return max([self.blocks(server, number) for server in complete or group.servers], default=0)

    def missing(self, number: int, group: Group, view: View) -> int:
        """How many copies of blocks a group lacks."""
        blocks = self.size(number, group)
        short = max(view.replicas - live_copies(group, view), 0) * blocks
        if number in self.differing:
            short += self._seen[number].busy or self._gaps(number, group, view)
        return short

    def _gaps(self, number: int, group: Group, view: View) -> int:
        """What the members lack, one compared with another."""
        members = [s for s in group.servers if s not in group.filling and view.living(s)]
        blocks = self.size(number, group)
        return sum(sorted(self._gap(server, number, blocks, members) for server in members)[: view.replicas])

    def _gap(self, server: int, number: int, blocks: int, members: Sequence[int]) -> int:
        """What one member lacks at least. As many blocks, but others: one each; the same, but other touches: none."""
        mine = self._contents(server, number)
        theirs = {self._contents(member, number)[1] for member in members}
        return max(blocks - mine[0], int(len(theirs) > 1 and mine[0] == blocks and not self._fullest(server, number)))

    def _fullest(self, server: int, number: int) -> bool:
        """Of those that have the most blocks, the first by number is taken as the one that has all."""
        blocks = self.blocks(server, number)
        return not any(
            self.blocks(other, number) > blocks or (self.blocks(other, number) == blocks and other < server)
            for other in self._held
        )

    def strangers(self, groups: Sequence[Group]) -> Iterable[tuple[int, int]]:
        """(server, group) where a server holds blocks of a group that it is no member of."""
        for server, held in self._held.items():
            for number in held:
                if number < len(groups) and server not in groups[number].servers:
                    yield server, number
