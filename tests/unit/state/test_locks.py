"""Locks of files: against a model with one cell for each byte, who waits, deadlocks, and what ends them."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from metadata import api
from metadata.state import locks as locks_module
from metadata.state.command import CommandKind, ExpireSession, FenceSession
from metadata.lockset import END
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code
from tests.harness import LONG, seed
from tests.unit.state.support import World, replay

BYTES = 12


@pytest.fixture
def world() -> World:
    return World(sessions=3)


def lock(ino: int, owner: int, low: int = 0, high: int = END, **more: object) -> api.Lock:
    options = {"flock": False, "exclusive": True, "pid": owner, **more}
    return api.Lock(ino, owner, low=low, high=high, **options)  # type: ignore[arg-type]


def unlock(ino: int, owner: int, low: int = 0, high: int = END, *, flock: bool = False) -> api.Unlock:
    return api.Unlock(ino, owner, flock, low, high)


class Bytes:
    """What each owner holds of each byte: the truth that ranges must agree with."""

    def __init__(self) -> None:
        self.held: dict[int, dict[tuple[int, int], bool]] = defaultdict(dict)  # byte -> owner -> exclusive

    def free_for(self, owner: tuple[int, int], low: int, high: int, exclusive: bool) -> bool:
        return not any(
            other != owner and (exclusive or theirs)
            for byte in range(low, high + 1)
            for other, theirs in self.held[byte].items()
        )

    def lock(self, owner: tuple[int, int], low: int, high: int, exclusive: bool) -> bool:
        if not self.free_for(owner, low, high, exclusive):
            return False
        for byte in range(low, high + 1):
            self.held[byte][owner] = exclusive
        return True

    def unlock(self, owner: tuple[int, int], low: int, high: int) -> None:
        for byte in range(low, high + 1):
            self.held[byte].pop(owner, None)

    def end(self, session: int) -> None:
        for holders in self.held.values():
            for owner in [owner for owner in holders if owner[0] == session]:
                del holders[owner]


@pytest.mark.parametrize("number", range(60 if LONG else 12))
def test_random_ranges_are_what_single_bytes_are(number: int) -> None:
    rng = random.Random(seed("locks") + number)
    world = World(sessions=2)
    ino, truth = world.make(b"f"), Bytes()
    for _ in range(120):
        session, number_of_owner = rng.choice((1, 2)), rng.choice((7, 8))
        low = rng.randrange(BYTES)
        high = rng.randrange(low, BYTES)
        exclusive = rng.random() < 0.5
        owner = (session, number_of_owner)
        if rng.random() < 0.4:
            world.do(unlock(ino, number_of_owner, low, high), session)
            truth.unlock(owner, low, high)
        else:
            got = world.do(lock(ino, number_of_owner, low, high, exclusive=exclusive), session)
            assert got.granted == truth.lock(owner, low, high, exclusive)
        probe = rng.randrange(BYTES)
        for asking in (1, 2):
            for strong in (False, True):
                state = world.ask(api.GetLock(asking, ino, 7, False, probe, probe, strong))
                assert state.taken != truth.free_for((asking, 7), probe, probe, strong)
                mine = truth.held[probe].get((asking, 7))
                assert state.held == (mine is not None and (mine or not strong) and not state.taken)
        if rng.random() < 0.05:
            world.sound()
    copy = MemoryEngine()
    assert replay(world.log, copy).digest() == world.machine.digest()


def test_an_owner_replaces_splits_and_joins(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1, 0, 99))
    world.do(unlock(ino, 1, 40, 59))
    assert world.do(lock(ino, 2, 40, 59), 2).granted
    assert not world.do(lock(ino, 2, 30, 59), 2).granted
    world.do(lock(ino, 1, 60, 99, exclusive=False))
    assert world.do(lock(ino, 2, 60, 99, exclusive=False), 2).granted
    state = world.ask(api.GetLock(3, ino, 9, False, 0, END, True))
    assert (state.taken, state.exclusive, state.low, state.high, state.session, state.pid) == (True, True, 0, 39, 1, 1)
    world.sound()


def test_kinds_do_not_see_each_other_and_owners_of_sessions_differ(world: World) -> None:
    ino = world.make(b"f")
    assert world.do(lock(ino, 1)).granted
    assert world.do(lock(ino, 1, flock=True), 2).granted
    assert not world.do(lock(ino, 1), 2).granted  # the same number, another mount


def test_waiters_come_to_their_turn_in_order(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1))
    assert not world.do(lock(ino, 2, ticket=5), 2).granted
    assert not world.do(lock(ino, 3, ticket=5), 3).granted
    world.do(unlock(ino, 1))
    assert world.last is not None and world.last.granted == [(2, 5)]
    first, second = (world.ask(api.GetLock(who, ino, who, False, 0, END, True, 5)) for who in (2, 3))
    assert (first.waiting, first.held) == (False, True) and (second.waiting, second.held) == (True, False)
    world.do(unlock(ino, 2), 2)
    assert world.last.granted == [(3, 5)]
    world.sound()


def test_readers_are_granted_together_and_a_weakened_lock_lets_in(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1))
    for session in (2, 3):
        world.do(lock(ino, 1, ticket=1, exclusive=False), session)
    world.do(lock(ino, 1, exclusive=False))
    assert world.last is not None and world.last.granted == [(2, 1), (3, 1)]
    world.sound()


def test_a_cancelled_wait_never_comes(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1))
    world.do(lock(ino, 2, ticket=4), 2)
    assert not world.do(api.CancelLock(ino, 4), 2).granted
    world.do(unlock(ino, 1))
    assert world.last is not None and world.last.granted == []
    assert world.do(lock(ino, 3)).granted
    assert world.do(api.CancelLock(ino, 4), 2).granted  # as if its turn had come: the client knows which it was


def test_a_conversion_of_a_flock_gives_up_the_old_one_first(world: World) -> None:
    ino = world.make(b"f")
    for session in (1, 2):
        assert world.do(lock(ino, 1, flock=True, exclusive=False), session).granted
    world.do(lock(ino, 9, flock=True, ticket=1), 3)
    assert not world.do(lock(ino, 1, flock=True), 1).granted  # and has lost its shared one, as on Linux
    world.do(unlock(ino, 1, flock=True), 2)
    assert world.last is not None and world.last.granted == [(3, 1)]
    world.sound()


@pytest.mark.parametrize("ending", [CommandKind.CLOSE_SESSION, CommandKind.EXPIRE_SESSION, CommandKind.FENCE_SESSION])
def test_locks_and_waits_end_with_the_session_and_with_its_fence(world: World, ending: CommandKind) -> None:
    body = {
        CommandKind.CLOSE_SESSION: api.CloseSession,
        CommandKind.EXPIRE_SESSION: ExpireSession,
        CommandKind.FENCE_SESSION: FenceSession,
    }[ending]
    first, second = world.make(b"f"), world.make(b"g")
    world.do(lock(first, 1))
    world.do(lock(second, 1), 3)
    world.do(lock(second, 1, ticket=1))
    world.do(lock(first, 2, ticket=9), 2)
    world.run(ending, body(1))
    assert world.last is not None and world.last.granted == [(2, 9)]
    state = world.ask(api.GetLock(1, second, 1, False, 0, END, True, 1))
    assert not state.waiting and not state.held
    world.do(unlock(second, 1), 3)
    assert world.last.granted == []
    world.sound()


def test_a_circle_of_owners_is_a_deadlock(world: World) -> None:
    inos = [world.make(b"%d" % number) for number in range(3)]
    for session, ino in enumerate(inos, 1):
        world.do(lock(ino, 1), session)
    assert not world.do(lock(inos[1], 1, ticket=1), 1).granted
    assert not world.do(lock(inos[2], 1, ticket=1), 2).granted
    assert world.fail(lock(inos[0], 1, ticket=1), 3) is Code.DEADLOCK
    assert not world.do(lock(inos[0], 2, ticket=2), 3).granted  # another owner closes no circle
    world.do(unlock(inos[2], 1), 3)
    assert world.last is not None and world.last.granted == [(2, 1)]
    world.sound()


def test_two_that_strengthen_shared_locks_are_a_deadlock(world: World) -> None:
    ino = world.make(b"f")
    for session in (1, 2):
        world.do(lock(ino, 1, exclusive=False), session)
    assert not world.do(lock(ino, 1, ticket=1), 1).granted
    assert world.fail(lock(ino, 1, ticket=1), 2) is Code.DEADLOCK


def test_a_restart_knows_holders_and_waiters(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1))
    world.do(lock(ino, 1, ticket=3), 2)
    world.machine.reload()
    world.do(unlock(ino, 1))
    assert world.last is not None and world.last.granted == [(2, 3)]


def test_a_removed_file_takes_its_locks_along(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1))
    world.do(api.Remove(1, b"f"))
    for session in (1, 2, 3):
        world.do(api.Release((ino,)), session)
    world.sound()
    assert world.fail(lock(ino, 1)) is Code.STALE


def test_bounds_and_nonsense_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ino, other = world.make(b"f"), world.make(b"g")
    assert world.fail(lock(ino, 1, 5, 4)) is Code.INVALID
    assert world.fail(lock(ino, 1, -1, 4)) is Code.INVALID
    assert world.fail(lock(ino, -1)) is Code.INVALID
    assert world.fail(lock(ino, 1, pid=1 << 40)) is Code.INVALID
    assert world.fail(lock(999, 1)) is Code.STALE
    monkeypatch.setattr(locks_module, "LOCKS_PER_INODE_MAX", 3)
    monkeypatch.setattr(locks_module, "LOCKS_PER_SESSION_MAX", 1)
    for low in (0, 10, 20):
        world.do(lock(ino, 1, low, low))
    assert world.fail(lock(ino, 1, 30, 30)) is Code.NO_LOCKS
    assert world.fail(lock(other, 1)) is Code.NO_LOCKS
    assert world.do(lock(other, 1), 2).granted


def test_locks_that_a_session_decided_about_replace_what_it_had(world: World) -> None:
    ino = world.make(b"f")
    assert world.do(lock(ino, 9, 50, 60)).granted
    held = [lock(ino, 1, 0, 9), lock(ino, 2, 20, 29, exclusive=False), lock(ino, 7, flock=True)]
    waiting = [lock(ino, 3, 0, 5, ticket=4), lock(ino, 4, 8, 8, ticket=5)]
    world.do(api.PutLocks(ino, (*held, *waiting)))
    world.sound()
    assert world.do(lock(ino, 9, 50, 60), 2).granted, "what it does not name it has given up"
    assert not world.do(lock(ino, 1, 0, 0), 2).granted
    assert not world.do(lock(ino, 1, flock=True), 2).granted
    assert world.do(lock(ino, 1, 20, 20, exclusive=False), 2).granted
    world.do(unlock(ino, 1))
    assert world.last is not None and sorted(world.last.granted) == [(1, 4), (1, 5)], "who waits gets its turn"
    world.do(api.PutLocks(ino, ()))
    assert world.do(lock(ino, 5), 3).granted is False
    world.do(unlock(ino, 1), 2)
    world.do(unlock(ino, 9), 2)
    assert world.do(lock(ino, 5), 3).granted


def test_locks_that_cannot_be_are_not_put(world: World) -> None:
    ino = world.make(b"f")
    world.do(lock(ino, 1, 0, 9), 2)
    assert world.fail(api.PutLocks(ino, (lock(ino, 1, 5, 5),))) is Code.LOCKED
    assert world.fail(api.PutLocks(ino, (lock(ino, 1, 20, 25), lock(ino, 2, 25, 30)))) is Code.LOCKED
    assert world.fail(api.PutLocks(ino, (lock(ino, 1, 5, 4),))) is Code.INVALID
    many = tuple(lock(ino, 1, low, low) for low in range(100, 2 * locks_module.LOCAL_LOCKS_MAX + 102, 2))
    assert world.fail(api.PutLocks(ino, many)) is Code.TOO_BIG
    world.do(api.PutLocks(999, (lock(999, 1),)))
    world.sound()
    assert world.do(lock(ino, 1, 20, 30)).granted, "nothing is left of what was refused"
