"""Watch the leader's healing until something is reached: a progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusefs.cli.leading import asking_leader
from metadata.api import GetHealing, HealingReply
from node.host.cluster import ClusterConfig
from node.rpc.security import CurveKeys
from node.wire.errors import Code, FsError

CALL_TIMEOUT_S = 10.0
LOOK_S = 0.5


class Step(NamedTuple):
    """How far it is: ``left`` of what there was, in whatever unit; ``text`` for a person."""

    left: float
    text: str
    done: bool


async def watch(
    config: ClusterConfig, keys: CurveKeys | None, step: Callable[[HealingReply], Step], what: str,
    first: msgspec.Struct | None = None, timeout_s: float | None = None,
) -> HealingReply:
    """Ask the leader every LOOK_S until ``step`` says that it is done. FsError TIMEOUT after ``timeout_s``.

    ``first`` is asked once before; requests that start something must be repeatable."""
    began_s = time.monotonic()
    most = 0.0
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        async with asking_leader(config, keys) as ask:
            if first is not None:
                await ask(first, CALL_TIMEOUT_S)
            while True:
                reply: HealingReply = await ask(GetHealing(), CALL_TIMEOUT_S)
                now = step(reply)
                most = max(most, now.left)
                bar.update(task, total=most or 1, completed=most - now.left, description=f"{what}: {now.text}")
                if now.done:
                    return reply
                if timeout_s is not None and time.monotonic() - began_s > timeout_s:
                    raise FsError(Code.TIMEOUT, f"{what}: still {now.text} after {timeout_s:g} s; it goes on")
                await trio.sleep(LOOK_S)


def _bar() -> Progress:
    times = TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()
    columns = TextColumn("{task.description}"), BarColumn(), *times
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
