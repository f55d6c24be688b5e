"""Locks that mounts decide about by themselves, against the truth: two mounts, the real service, messages late, answers
lost, leaders that come and go, mounts that are cut off.

Each program notes what it believes to hold. No two believe in locks that exclude each other, unless the session of one
was fenced or has ended before; whoever asks what is in the way is told the truth; a counter that is only changed under
a lock is never seen as it was before; and who waits gets its turn.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Optional

import pytest
import trio
import trio.testing
from msgspec.structs import replace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusefs.client.handles import Handle
from fusefs.client.leases import Leases
from fusefs.client.locking import END, Locking, _Owner
from fusefs.client.options import ClientOptions
from fusefs.client.volume import Volume
from metadata import api
from metadata.lockset import Held, blockers, conflict, put, take_out
from metadata.server import service
from metadata.server.locking import LockNotices
from metadata.state.machine import Machine, Outcome
from node.wire.errors import Code, FsError
from node.wire.types import ROOT_INO
from tests.harness import LONG

from .test_leases import Truth
from .world import contents

FILES = 2
BYTES = 4
FENCES = 100
PROGRAMS = 3  # of each mount
STEPS = 20
PATIENCE_S = 3000.0  # of the clock that jumps

_LOST = (Code.IO, Code.UNKNOWN_SESSION, Code.TIMEOUT, Code.FENCED, Code.STALE)


def identity(session: int, fence: int) -> int:
    """A session that had no locks goes on when it is fenced, as another one."""
    return session * FENCES + fence


class Locks(Truth):
    """What programs believe, and what sessions have ended."""

    def __init__(self, rng: random.Random, nursery: trio.Nursery, loss: float) -> None:
        super().__init__(rng, nursery, loss)
        self.notices = LockNotices(self.leasing.push)
        self.believed: dict[int, list[Held]] = {}  # inode -> what is held
        self.ended: set[int] = set()
        self.under_way: Counter[int] = Counter()  # inode -> programs that may change something
        self.changes = 0
        self.value: dict[int, int] = {}
        self.seen_kinds: Counter[str] = Counter()

    def apply(self, data: bytes) -> Outcome:
        machine = self.world.machine
        outcome = machine.apply(machine.applied + 1, 1, data)
        self.leasing.applied(outcome)
        self.notices.applied(outcome)
        for session in (*outcome.fenced, *outcome.ended):
            known = machine.session(session)
            self.ended.update(identity(session, fence) for fence in range(FENCES if known is None else known.fence))
        if outcome.journal and not isinstance(outcome.reply, FsError):
            failed = [result for result in outcome.reply.results if isinstance(result, api.Failed)]  # type: ignore
            assert not failed, failed
        return outcome

    def _notify(self, peer: bytes, message: Any) -> bool:
        link = self.links[int(peer) % 2]
        if link.peer != peer:
            return False
        self.nursery.start_soon(link.push, message, link.arrival_s())
        return True

    def living(self, ino: int) -> list[Held]:
        return [one for one in self.believed.get(ino, ()) if one.session not in self.ended]

    def grant(self, ino: int, want: Held) -> None:
        if want.session in self.ended:
            return
        others = blockers(self.living(ino), want)
        assert not others, f"inode {ino}: {want} was granted beside {others}"
        self.changes += 1
        self.believed[ino] = put(self.living(ino), want)

    def give_up(self, ino: int, want: Held) -> list[Held]:
        """Return what was believed in that range."""
        self.changes += 1
        before = self.living(ino)
        self.believed[ino] = take_out(before, want)
        return [one for one in before if one.session == want.session and one.owner == want.owner]


class Program:
    """One program of a mount, with descriptors of its own."""

    def __init__(self, truth: Locks, volume: Volume, owner: int, inos: list[int]) -> None:
        self.truth, self.volume, self.owner, self.inos = truth, volume, owner, inos
        self.rng = truth.rng
        self.handles: dict[int, Handle] = {}
        self.holds: set[tuple[int, bool]] = set()  # inode, flock

    async def handle(self, ino: int) -> Handle:
        if ino not in self.handles:
            self.handles[ino] = await self.volume.open(ino, os.O_RDWR)
        return self.handles[ino]

    def identity(self) -> int:
        return identity(self.volume._session.id, self.volume._session._fence)

    def held(self, flock: bool, low: int, high: int, exclusive: bool) -> Held:
        session = self.identity()
        low, high = (0, END) if flock else (low, high)
        return Held(flock, session, self.owner + 1000 * flock, low, high, exclusive, 7)

    async def live(self) -> None:
        rng = self.rng
        for _ in range(STEPS):
            if rng.random() < 0.6:
                await trio.sleep(rng.expovariate(rng.choice((0.5, 5.0, 50.0))))
            ino = rng.choice(self.inos)
            act = rng.choice([self.lock, self.lock, self.lock, self.unlock, self.count, self.ask, self.close])
            try:
                await act(ino)
            except FsError as error:
                if error.code not in _LOST:
                    raise
                await self.forget()
        for ino in list(self.handles):
            try:
                await self.close(ino)
            except FsError as error:
                if error.code not in _LOST:
                    raise

    async def forget(self) -> None:
        """Something ended in a way that leaves open what is held: let go of everything."""
        for ino, handle in list(self.handles.items()):
            self.drop(ino)
            del self.handles[ino]
            await self.volume.release(handle)

    def drop(self, ino: int) -> None:
        for flock in (False, True):
            self.truth.give_up(ino, self.held(flock, 0, END, False))
            self.holds.discard((ino, flock))

    async def lock(self, ino: int, *, whole: bool = False) -> bool:
        truth, rng = self.truth, self.rng
        flock = whole or rng.random() < 0.3
        exclusive = whole or rng.random() < 0.5
        low = rng.randrange(BYTES)
        high = rng.randrange(low, BYTES)
        handle = await self.handle(ino)
        waits = rng.random() < 0.5 and not (flock and self.holds)
        scope = trio.CancelScope() if waits else None
        want = self.held(flock, low, high, exclusive)
        before = truth.give_up(ino, want)
        kept = [one for one in before if one.low <= want.high and want.low <= one.high and not flock]
        truth.under_way[ino] += 1
        was_dead = want.session in truth.ended
        code: Optional[Code] = None
        try:
            if scope is not None and rng.random() < 0.5:
                scope.deadline = trio.current_time() + rng.expovariate(1.0)
            await self.volume.locking.lock(
                handle, want.owner, flock=flock, low=want.low, high=want.high, exclusive=exclusive, pid=7, wait=scope
            )
        except FsError as error:
            code = error.code
        finally:
            truth.under_way[ino] -= 1
        if code is None:
            want = replace(want, session=self.identity())
            assert not was_dead or want.session not in truth.ended, "a session that was fenced got a lock"
            truth.seen_kinds["granted"] += 1
            self.holds.add((ino, flock))
            truth.grant(ino, want)
            return True
        truth.seen_kinds[code.name] += 1
        if code not in (Code.LOCKED, Code.INTERRUPTED, Code.DEADLOCK):
            raise FsError(code, "")
        for one in kept:  # what it had stays as it was
            truth.grant(ino, replace(one, low=max(one.low, want.low), high=min(one.high, want.high)))
        return False

    async def unlock(self, ino: int) -> None:
        flock = self.rng.random() < 0.4
        low = self.rng.randrange(BYTES)
        want = self.held(flock, low, self.rng.choice((low, BYTES, END)), False)
        handle = await self.handle(ino)
        self.truth.give_up(ino, want)
        self.truth.under_way[ino] += 1
        try:
            await self.volume.locking.unlock(handle, want.owner, flock=flock, low=want.low, high=want.high)
        finally:
            self.truth.under_way[ino] -= 1
        if flock:
            self.holds.discard((ino, flock))

    async def close(self, ino: int) -> None:
        handle = self.handles.pop(ino, None)
        if handle is None:
            return
        self.drop(ino)
        self.truth.under_way[ino] += 1
        failed: Optional[FsError] = None
        try:
            await self.volume.flush(handle, self.owner)
        except FsError as error:
            failed = error
        await self.volume.release(handle)
        self.truth.under_way[ino] -= 1
        if failed is not None:
            raise failed

    async def count(self, ino: int) -> None:
        """Raise the number in the file, under a lock."""
        truth = self.truth
        if not await self.lock(ino, whole=True):
            return
        handle = self.handles[ino]
        was_dead = self.identity() in truth.ended
        value = int(bytes(await self.volume.read(handle, 0, 10)) or b"0")
        assert not was_dead, "a session that was fenced was shown something"
        if not truth.ended:
            assert value == truth.value[ino], f"inode {ino}: {value} was read, it is {truth.value[ino]}"
        if self.rng.random() < 0.5:
            await trio.sleep(self.rng.expovariate(20.0))
        truth.value[ino] = value + 1
        await self.volume.write(handle, 0, b"%010d" % (value + 1))
        want = self.held(True, 0, END, False)
        truth.give_up(ino, want)
        self.holds.discard((ino, True))
        truth.under_way[ino] += 1
        try:
            await self.volume.locking.unlock(handle, want.owner, flock=True, low=0, high=END)
        finally:
            truth.under_way[ino] -= 1

    async def ask(self, ino: int) -> None:
        """Whoever is in the way all the time is told of; and nobody is, where nobody is."""
        truth, low = self.truth, self.rng.randrange(BYTES)
        flock = self.rng.random() < 0.3
        want = self.held(flock, low, self.rng.randrange(low, BYTES), self.rng.random() < 0.7)
        handle = await self.handle(ino)
        before = [one for one in truth.living(ino) if conflict(one, want)]
        changes, quiet = truth.changes, not truth.under_way[ino] and not truth.ended and not truth.living(ino)
        state = await self.volume.locking.get(
            handle, want.owner, flock=flock, low=want.low, high=want.high, exclusive=want.exclusive
        )
        truth.seen_kinds["asked"] += 1
        if not state.taken:
            through = [one for one in before if any(one is other for other in truth.living(ino))]
            assert not through, f"inode {ino}: {through} were in the way of {want}, and nobody was told"
        elif quiet and changes == truth.changes and not truth.loss:
            raise AssertionError(f"inode {ino}: {state} is in the way of {want}, and nobody has it")


async def start(truth: Locks) -> list[Volume]:
    """Both mounts."""
    volumes = []
    for link in truth.links:
        link.volume = Volume(
            truth.nursery,
            {1: link},
            truth.world.dial,
            mount="/m",
            options=ClientOptions(request_timeout_s=100.0),  # an unlock that is not answered leaves the lock
            now_ns=truth.world.clock,
            random_bytes=truth.world.random_bytes,
        )
        await link.volume.start()
        volumes.append(link.volume)
    return volumes


async def play(
    seed: int, *, elections: int = 0, loss: float = 0.0, cuts: int = 0, cool_s: Optional[float] = None
) -> Counter[str]:
    rng = random.Random(seed)
    async with trio.open_nursery() as nursery:
        truth = Locks(rng, nursery, loss)
        truth.leasing.table._cool_s = rng.choice((0.0, 0.1, 1.0)) if cool_s is None else cool_s
        volumes = await start(truth)
        for volume in volumes:
            volume._session.journal.delay_s = rng.choice((0.001, 0.01, 0.5, 5.0))
        inos = []
        for number in range(FILES):
            attr = await volumes[0].mknod(ROOT_INO, b"%d" % number, 0o100644, 0, 0, 0)
            inos.append(attr.ino)
            truth.value[attr.ino] = 0
        await volumes[0].syncfs()
        with trio.move_on_after(PATIENCE_S) as patience:
            async with trio.open_nursery() as workers:
                for volume in volumes:
                    for owner in range(PROGRAMS):
                        workers.start_soon(Program(truth, volume, owner + 1, inos).live)
                for _ in range(elections):
                    await trio.sleep(rng.uniform(0.1, 2.0))
                    truth.elect()
                for _ in range(cuts):
                    await trio.sleep(rng.uniform(0.1, 3.0))
                    link = rng.choice(truth.links)
                    link.connected = False
                    await trio.sleep(rng.choice((1.0, 12.0, 25.0)) * rng.random())
                    link.connected = True
                    link.peer = b"%d" % (int(link.peer) + 2)  # another connection: what the last one carried is lost
                    if elections:
                        truth.elect()
        assert not patience.cancelled_caught, "somebody waits for ever"
        counts = Counter(truth.seen_kinds)
        for volume in volumes:
            await trio.sleep(3.0)
            await volume.syncfs()
            for key in ("here", "handed_over", "locks", "waits"):
                counts[key] += volume.locking.statistics()[key]
            assert not volume.locking.statistics()["files_here"] or loss or cuts  # else a close was not answered
        counts["ended"] = len(truth.ended)
        assert cuts or loss or not truth.ended, "a mount that was there was fenced"
        if not truth.ended:
            for volume in volumes:
                for ino in inos:
                    assert int(await contents(volume, ino) or b"0") == truth.value[ino]
            if not loss and not cuts:
                assert not truth.world.machine.locked(inos)
        truth.world.check()
        nursery.cancel_scope.cancel()
    return counts


def run(seed: int, **options: Any) -> Counter[str]:
    trio._core._run._r.seed(seed)  # in which order tasks go on
    return trio.run(lambda: play(seed, **options), clock=trio.testing.MockClock(autojump_threshold=0))


def fails(seed: int, **options: Any) -> bool:
    """Whether something goes wrong."""
    wrong = False
    try:
        run(seed, **options)
    except* (AssertionError, FsError):
        wrong = True
    return wrong


SETTINGS = settings(max_examples=200 if LONG else 40, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(st.integers(0, 1 << 32))
def test_no_two_hold_what_excludes_each_other(seed: int) -> None:
    run(seed)


@SETTINGS
@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.1]))
def test_also_while_leaders_come_and_go(seed: int, loss: float) -> None:
    run(seed, elections=3, loss=loss)


@SETTINGS
@given(st.integers(0, 1 << 32), st.integers(0, 1))
def test_also_while_mounts_are_cut_off(seed: int, elections: int) -> None:
    run(seed, cuts=2, elections=elections)


def test_locks_are_decided_here() -> None:
    counts = sum((run(seed) for seed in range(10)), Counter())
    assert counts["here"] > 50 and counts["handed_over"] > 5 and counts["DEADLOCK"] and counts["waits"]


def keep(self: Locking, inos: Optional[Collection[int]] = None) -> None:
    """Hand nothing over."""


def spoken_of_without_locks(queries: Any, results: Any) -> list[int]:
    kept = [pair for pair in zip(queries, results) if not isinstance(pair[0], api.GetLock)]
    return service_spoken_of([query for query, _ in kept], [result for _, result in kept])


service_spoken_of = service.spoken_of

WEAKENINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hand over": (lambda patch: patch.setattr(Locking, "hand_over", keep), {}),
    "know that nobody has locks": (lambda patch: patch.setattr(Machine, "locked", lambda self, inos: ()), {}),
    "take no older word": (lambda patch: patch.setattr(Leases, "_lock_word", lambda self, ticket, ino: True), {}),
    "ask who decides": (lambda patch: patch.setattr(service, "spoken_of", spoken_of_without_locks), {}),
    "only while it is ours": (
        lambda patch: patch.setattr(Leases, "alone", lambda self, ino, now_s: self.facts.peek(ino) is not None), {}
    ),
    "locks end with a fence": (
        lambda patch: patch.setattr(Locking, "_owner", _owner_unnoted), {"cuts": 2, "elections": 1}
    ),
}


def _owner_unnoted(self: Locking, ino: int, key: tuple[bool, int]) -> Any:
    known = self._owners.setdefault(ino, {}).setdefault(key, _Owner())
    self._session.holds_locks = lambda: False
    return known


FIRST = {"take no older word": 175, "locks end with a fence": 160}  # where it does not take long; one run of 200 does


@pytest.mark.parametrize("without", WEAKENINGS)
def test_each_ingredient_is_needed(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weaken, options = WEAKENINGS[without]
    weaken(monkeypatch)
    first = FIRST.get(without, 0)
    assert any(fails(seed, **options) for seed in range(first, first + 1000))


# --- scenes ---------------------------------------------------------------------------------------------------------


def scene(play: Callable[[Locks, Volume, Volume], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            truth = Locks(random.Random(1), nursery, 0.0)
            truth.leasing.table._cool_s = 0.0
            await play(truth, *await start(truth))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def flock(volume: Volume, handle: Handle, owner: int = 1, *, wait: bool = False) -> None:
    scope = trio.CancelScope() if wait else None
    await volume.locking.lock(handle, owner, flock=True, low=0, high=END, exclusive=True, pid=7, wait=scope)


async def one_file(first: Volume, second: Volume) -> tuple[Handle, Handle]:
    """A file that both have open, and that the first one has alone, but for that."""
    handle, attr = await first.create(ROOT_INO, b"f", 0o644, os.O_RDWR, 0, 0)
    await first.write(handle, 0, b"first")
    await first.fsync(handle)
    return handle, await second.open(attr.ino, os.O_RDWR)


def test_what_was_locked_here_is_lost_with_the_session_that_is_fenced() -> None:
    async def play(truth: Locks, first: Volume, second: Volume) -> None:
        one, two = await one_file(first, second)
        await first.getattr(one.ino)
        await flock(first, one)
        assert first.locking.statistics()["files_here"] == 1
        truth.links[0].connected = False
        begin = trio.current_time()
        await flock(second, two)
        assert identity(first._session.id, 0) in truth.ended and trio.current_time() - begin > 9.0
        truth.links[0].connected = True
        for wrong in (lambda: first.read(one, 0, 10), lambda: flock(first, one, 2)):
            with pytest.raises(FsError) as caught:
                await wrong()
            assert caught.value.code is Code.IO
        again = await first.open(one.ino, os.O_RDWR)
        with pytest.raises(FsError) as caught:
            await flock(first, again)
        assert caught.value.code is Code.LOCKED

    scene(play)


@pytest.mark.parametrize("checked", [True, False])
def test_who_was_fenced_is_not_shown_what_others_did_under_the_lock(
    checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is kept by the service, and the mount has changed nothing by itself: only its next question tells."""
    if not checked:
        monkeypatch.setattr(service.Service, "_check_fence", lambda *_: None)

    async def play(truth: Locks, first: Volume, second: Volume) -> None:
        one, two = await one_file(first, second)
        truth.leasing.table._cool_s = 1000.0
        truth.elect()  # nothing that was changed before counts any more
        for volume, handle in ((first, one), (second, two)):
            await volume.read(handle, 0, 5)
        await flock(first, one)
        assert not first.locking.statistics()["files_here"]
        truth.links[0].connected = False
        truth.elect()
        await flock(second, two, wait=True)
        await second.write(two, 0, b"other")
        await second.fsync(two)
        truth.links[0].connected = True
        if checked:
            with pytest.raises(FsError) as caught:
                await first.read(one, 0, 5)
            assert caught.value.code is Code.IO
        else:
            assert bytes(await first.read(one, 0, 5)) == b"other"

    scene(play)
