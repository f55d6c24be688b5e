"""What happens when leases end before their time: the kernel forgets, then the service is told.

Nothing here waits for a handler, nor for anything that waits for the leader (rule 5): the kernel is told by calls that
take no lock. Whoever asks the service meanwhile first waits until the kernel has forgotten (``forgotten``): an answer
that is newer than what the kernel still shows must not be handed out, and a new leader's term must not be named before
the kernel has forgotten what an earlier one granted.

What was changed here of inodes that were leased exclusively is then brought, and only after that the service is told.
That may take as long as chunk servers are away. Meanwhile this mount shows that it lives and answers what it can, so
that it is waited for: what programs were told is done would be lost otherwise. After ``SURRENDER_S_MAX`` it asks for
nothing more, so that its leases end and others come first. Who changes something waits for all of it (``quiet``).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional, Protocol

import trio

from fusefs.client.caller import Caller
from fusefs.client.leases import Leases, Name
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import SURRENDER_S_MAX

log = logging.getLogger(__name__)

ACKNOWLEDGE_S = 2.0
HELD_S, HELD_S_MAX = 0.001, 0.005  # while the kernel holds a page: until the service is asked again
FORGET_AGAIN_MAX = 16  # pages that are read again and again while they are recalled


class Kernel(Protocol):
    """What caches on our word."""

    async def forget(self, inos: Collection[int]) -> None:
        """Return when nothing of these inodes is cached: attributes, and the names in those that are directories. What
        programs have written into mapped pages is brought by writes meanwhile, which must not wait for this."""
        ...

    async def forget_all(self) -> None:
        """The same for all inodes."""
        ...

    def expire(self, inos: Collection[int], names: Collection[Name] = ()) -> bool:
        """These are about to be changed from here: have their attributes asked for again. Does not wait. Return
        whether the kernel asks for these names too, and shows nothing of the inodes that it has been told before."""
        ...

    def yields(self, ino: int) -> bool:
        """Whether nothing of this inode is cached. Does not wait. From then on others may change it."""
        ...


class _Task:
    """A recall or a loss of leases under way."""

    def __init__(self, inos: Collection[int]) -> None:
        self.inos = inos  # that are recalled
        self.forgotten = trio.Event()  # by the kernel
        self.done = trio.Event()
        self.patience = trio.current_time() + SURRENDER_S_MAX  # until then others wait for what is brought


@contextmanager
def _counted(counts: dict[int, int], inos: Collection[int]) -> Iterator[None]:
    """Count these inodes meanwhile."""
    for ino in inos:
        counts[ino] = counts.get(ino, 0) + 1
    try:
        yield
    finally:
        for ino in inos:
            counts[ino] -= 1
            if not counts[ino]:
                del counts[ino]


async def _happens(event: trio.Event, deadline: float) -> None:
    with trio.move_on_at(deadline):
        await event.wait()
    if not event.is_set():
        raise FsError(Code.TIMEOUT, "a recall could not be acknowledged in time")


class Recalls:
    """Recalls and losses of leases, each in a task of its own."""

    def __init__(
        self,
        leases: Leases,
        members: Mapping[int, Caller],
        nursery: trio.Nursery,
        surrender: Callable[[Collection[int]], Awaitable[None]],
    ) -> None:
        """``surrender`` brings to the service what was changed here of inodes that were leased exclusively."""
        self.kernel: Kernel | None = None
        self._leases = leases
        self._members = members
        self._nursery = nursery
        self._surrender = surrender
        self._running: dict[int, _Task] = {}
        self._serving: set[tuple[int, int]] = set()  # (session, number) of recalls
        self._giving: dict[int, int] = {}  # inode -> recalls for which the kernel still forgets it
        self._owing: dict[int, int] = {}  # inode -> recalls that are not being acknowledged yet
        self._passed: dict[int, int] = {}  # how often the kernel was shown something of it meanwhile
        self.giving_all = 0  # losses of all leases for which it does
        self._number = 0
        self._failed = 0
        leases.on_drop = self._dropped

    def pushed(self, member: int, message: object) -> None:
        """A member pushed a message."""
        if isinstance(message, api.Recall) and (message.session, message.number) not in self._serving:
            self._serving.add((message.session, message.number))
            self._leases.recall(message.inos, trio.current_time())
            self._nursery.start_soon(self._recalled, member, message, self._begin(message.inos))

    def _dropped(self) -> None:
        if self.kernel is not None:
            self._nursery.start_soon(self._forget_all, self.kernel, self._begin())

    def changing(self, inos: Collection[int], names: Collection[Name] = ()) -> bool:
        """A mutation of ours is sent now. Return whether programs are shown nothing of this that is older."""
        return self.kernel is None or self.kernel.expire(inos, names)

    def yields(self, ino: int) -> bool:
        """Whether the kernel shows nothing of this inode, so that its lease may be given back at once."""
        return self.kernel is None or self.kernel.yields(ino)

    def doubted(self, inos: Collection[int]) -> None:
        """Of a mutation of ours nobody knows whether it was executed."""
        if self.kernel is not None:
            self._nursery.start_soon(self._forget, self.kernel, inos, self._begin())

    def giving(self, ino: int) -> bool:
        """Whether the kernel is being made to forget this inode. Bytes that are written to it now are brought before
        that is acknowledged (rule 8), and nobody is shown the inode sooner, so whoever writes them does not wait.

        Not so where all is forgotten, because leases are gone: who has acknowledged a recall before has no claim."""
        return ino in self._giving

    def passes(self, held: Collection[int]) -> bool:
        """Whether an answer about what is ``held``, which no lease covers, is good enough, because a recall of it is
        not acknowledged yet, so that nobody sees anything newer: then the kernel forgets it once more before."""
        passed = [ino for ino in held if ino in self._owing]
        for ino in passed:
            self._passed[ino] = self._passed.get(ino, 0) + 1
        return bool(passed)

    async def acknowledged(self, inos: Collection[int]) -> None:
        """Wait, not for long, for what the kernel has forgotten of these to be acknowledged."""
        with trio.move_on_after(HELD_S_MAX):
            for task in list(self._running.values()):
                if task.forgotten.is_set() and any(ino in task.inos for ino in inos):
                    await task.done.wait()
            await trio.sleep(HELD_S)

    async def quiet(self, deadline: float) -> None:
        """Wait for what is under way now, and as ``forgotten``. TIMEOUT at the deadline."""
        for task in list(self._running.values()):
            await _happens(task.done, deadline)
        await self.forgotten(deadline)

    async def forgotten(self, deadline: float, held: Collection[int] = ()) -> None:
        """Return when the kernel has nothing left to forget, not of recalls that came meanwhile either: whoever asks
        next may name a new term, and be told what is newer. For what is still brought it waits only where that has
        taken longer than others have to wait for it. TIMEOUT at the deadline.

        A recall of what is ``held`` is not waited for: it waits for a page that the kernel does not give back before it
        has the answer. Of others' changes that page may show a part, for a moment, before the rest of the file does."""
        while (event := self._holds_up(held)) is not None:
            await _happens(event, deadline)

    async def lapsed(self, now_s: float, deadline: float) -> None:
        """Return when the kernel has forgotten what leases covered that have ended, as while a mount is stopped.
        TIMEOUT at the deadline."""
        self._leases.held(now_s)
        for task in list(self._running.values()):
            if not task.inos:
                await _happens(task.forgotten, deadline)

    def _holds_up(self, held: Collection[int]) -> Optional[trio.Event]:
        now_s = trio.current_time()
        for task in self._running.values():
            if not task.forgotten.is_set():
                if not any(ino in task.inos for ino in held):
                    return task.forgotten
            elif now_s >= task.patience:
                return task.done
        return None

    def _begin(self, recalled: Collection[int] = ()) -> int:
        self._number += 1
        self._running[self._number] = _Task(recalled)
        return self._number

    def _end(self, number: int) -> None:
        task = self._running.pop(number)
        task.forgotten.set()
        task.done.set()

    async def _forget_all(self, kernel: Kernel, number: int) -> None:
        self.giving_all += 1
        try:
            await kernel.forget_all()
        finally:
            self.giving_all -= 1
            self._end(number)

    async def _forget(self, kernel: Kernel, inos: Collection[int], number: int) -> None:
        try:
            await kernel.forget(inos)
        finally:
            self._end(number)

    async def _recalled(self, member: int, message: api.Recall, number: int) -> None:
        try:
            with _counted(self._owing, message.inos):
                with _counted(self._giving, message.inos):
                    seen = await self._forget_recalled(message.inos)
                self._running[number].forgotten.set()
                await self._surrender(message.inos)
                await self._forget_recalled(message.inos, seen)
            for ino in message.inos:
                if ino not in self._owing:
                    self._passed.pop(ino, None)
            caller = self._members.get(member)
            if caller is not None:  # else it is a member no more, and cannot lead
                await self._acknowledge(caller, message)
        finally:
            self._serving.discard((message.session, message.number))
            self._end(number)

    async def _forget_recalled(self, inos: Collection[int], seen: Optional[list[int]] = None) -> Optional[list[int]]:
        """Have the kernel forget, until it was shown nothing meanwhile. Returns what of ``_passed`` it has forgotten;
        ``seen``: that of before, so that it need not where nothing has changed."""
        for _ in range(FORGET_AGAIN_MAX):
            passed = [self._passed.get(ino, 0) for ino in inos]
            if seen == passed or self.kernel is None:
                break
            seen = passed
            await self.kernel.forget(inos)
        return seen

    async def _acknowledge(self, caller: Caller, message: api.Recall) -> None:
        """Tell whoever recalled, once: it recalls again where it does not hear of it. Trying on would hold up all that
        is asked here, also of its successor."""
        try:
            await caller.call(api.Recalled(message.session, message.number), timeout_s=ACKNOWLEDGE_S)
        except FsError as error:
            self._failed += 1
            log.info("recall %d could not be acknowledged: %s", message.number, error)

    def statistics(self) -> dict[str, Any]:
        return {"recalls_under_way": len(self._running), "recalls_unacknowledged": self._failed}
