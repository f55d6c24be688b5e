"""Small helpers for tasks that fail with FsError."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from node.wire.errors import FsError


async def together(*parts: Callable[[], Awaitable[object]]) -> None:
    """Run all; the first FsError cancels the others and is raised as it is, not in a group."""
    failures: list[FsError] = []

    async with trio.open_nursery() as nursery:

        async def guarded(part: Callable[[], Awaitable[object]]) -> None:
            try:
                await part()
            except FsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        for part in parts:
            nursery.start_soon(guarded, part)
    if failures:
        raise failures[0]
