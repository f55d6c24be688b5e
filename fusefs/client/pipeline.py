"""A stream of groups of one file: put side by side, committed in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Optional

import trio

from fusefs.client.commit import Committer, Group
from fusefs.client.files import File
from metadata.api import Op, Result
from node.wire.errors import FsError
from node.wire.limits import COMMIT_EXTENTS_MAX

WINDOW_GROUPS = 4  # on their way to the chunk servers, or there and not yet committed


class Pipeline:
    """Runs once. ``take`` hands out the next group in file order, None where there is none (now). ``deadline`` is
    asked for when a step begins: much data may take long, as long as it moves.

    ``on_commit`` is told the groups still under way after each commit, before anything else happens.
    """

    def __init__(
        self,
        committer: Committer,
        file: File,
        take: Callable[[], Optional[Group]],
        deadline: Callable[[], float],
        on_commit: Callable[[Iterable[Group]], None],
    ) -> None:
        self._committer = committer
        self._file = file
        self._take = take
        self._deadline = deadline
        self._on_commit = on_commit
        self._flying: deque[Group] = deque()

    async def run(self, first: Iterable[Group], ops: tuple[Op, ...]) -> tuple[Result, ...]:
        """Put and commit all groups; ``ops`` go with the last commit, and their results are returned.

        The first error ends it; what was committed before stays committed.
        """
        taken = deque(first)
        results: tuple[Result, ...] = ()
        failure: Optional[FsError] = None
        async with trio.open_nursery() as nursery:
            self._refill(nursery, taken)
            while self._flying:
                await self._flying[0].done.wait()
                try:
                    batch = self._finished()
                    self._refill(nursery, taken)
                    last = not self._flying
                    results = await self._committer.commit(self._file, batch, ops if last else (), self._deadline())
                except FsError as error:
                    failure = error
                    nursery.cancel_scope.cancel()
                    break
                self._on_commit(self._flying)
                if not ops:
                    self._refill(nursery, taken)
        if failure is not None:
            raise failure
        return results

    def _refill(self, nursery: trio.Nursery, taken: deque[Group]) -> None:
        while len(self._flying) < WINDOW_GROUPS:
            group = taken.popleft() if taken else self._take()
            if group is None:
                return
            self._flying.append(group)
            nursery.start_soon(self._put, group)

    def _finished(self) -> list[Group]:
        """Take the groups at the head that are durable; raises the error of the first one."""
        batch: list[Group] = []
        extents = 0
        while self._flying and self._flying[0].done.is_set():
            group = self._flying[0]
            extents += 2 * len(group.runs)
            if batch and (group.error is not None or extents > COMMIT_EXTENTS_MAX):
                break
            if group.error is not None:
                raise group.error
            batch.append(self._flying.popleft())
        return batch

    async def _put(self, group: Group) -> None:
        try:
            await self._committer.put(self._file, group, self._deadline())
        except FsError as error:
            group.error = error
        finally:
            group.done.set()
