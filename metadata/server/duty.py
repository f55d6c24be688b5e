"""How a leader's recurring duties run: what cannot be had now comes again, and a bug costs a turn, not the member."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from node.host.logging import get_logger
from node.wire.errors import FsError

log = get_logger(__name__)


async def repeat(name: str, every_s: float, due: Callable[[], bool], turn: Callable[[], Awaitable[object]]) -> None:
    """Take a ``turn`` of the duty called ``name`` every ``every_s``, where it is ``due``, until cancelled.

    What it raises is logged: FsError as a reason to wait, anything else as a bug."""
    while True:
        await trio.sleep(every_s)
        if not due():
            continue
        try:
            await turn()
        except FsError as error:
            log.info(f"{name} waits", reason=str(error))
        except Exception:  # a bug here must not take the metadata service along
            log.exception(f"{name} failed")
