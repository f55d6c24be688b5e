"""Inode numbers that a journal gives out belong to its session."""

from __future__ import annotations

import trio
import trio.testing

from fusefs.client.journal import Journal
from metadata import api


class Channel:
    """Gives numbers when it is told to, each time others."""

    def __init__(self) -> None:
        self.go_on = trio.Event()
        self.asked = 0

    async def more_inos(self, count: int) -> api.InoRange:
        self.asked += 1
        first = 1000 * self.asked
        await self.go_on.wait()
        return api.InoRange(first, 10)


async def test_numbers_of_a_session_that_has_ended_are_not_given_out(autojump_clock: object) -> None:
    channel = Channel()
    journal = Journal(channel)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        assert journal.take_ino() == 0
        await trio.testing.wait_all_tasks_blocked()
        assert channel.asked == 1
        channel.go_on.set()
        journal.clear()  # the answer is on its way to whoever asked for the session that ends here
        await trio.testing.wait_all_tasks_blocked()
        assert journal.take_ino() == 0, "the new session was not given those"
        await trio.testing.wait_all_tasks_blocked()
        assert journal.take_ino() == 2000
        nursery.cancel_scope.cancel()
