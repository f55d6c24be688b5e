"""Whatever a client sends is answered: no exception leaves apply, no count is wrong, a refusal leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from metadata import api
from metadata.state.command import CommandKind, Reclaim, encode_command
from tests.unit.state.support import DIR, FILE, LNK, World, block

NUMBERS = [
    *[-(1 << 63), -(1 << 62), -(1 << 32), -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 255, 256, 4095, 4096],
    *[1 << 16, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 32) - 1, 1 << 32, 1 << 44, (1 << 63) - (1 << 20)],
    *[(1 << 63) - 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1],
]
NAMES = [b"", b".", b"..", b"a", b"b", b"c", b"a/b", b"\0", b"\xff" * 255, b"x" * 256, b"x" * 5000]
MODES = [FILE, FILE, DIR, DIR, LNK, 0o20644, 0, 0o177777, 1 << 63]


class Fuzz:
    """Random operations out of nasty parts."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def number(self) -> int:
        return self.random.choice(NUMBERS)

    def small(self) -> int:
        return self.random.randrange(12) if self.random.random() < 0.8 else self.number()

    def name(self) -> bytes:
        return self.random.choice(NAMES[3:6]) if self.random.random() < 0.8 else self.random.choice(NAMES)

    def maybe(self) -> int | None:
        return self.number() if self.random.random() < 0.3 else None

    def numbers(self) -> tuple[int, ...]:
        return tuple(self.small() for _ in range(self.random.randrange(5)))

    def extents(self) -> tuple[api.Extent, ...]:
        if self.random.random() < 0.3:
            return tuple(
                api.Extent(self.number(), self.number(), self.random.choice([block(1), b"", b"x" * 33]), *self.pair())
                for _ in range(self.random.randrange(3))
            )
        start = self.random.choice([0, 1, 4096, 1 << 20, (1 << 63) - (1 << 20)])
        return tuple(api.Extent(start + 8 * at, 8, block(at), 0, 8) for at in range(self.random.randrange(20)))

    def pair(self) -> tuple[int, int]:
        return self.number(), self.number()

    def op(self) -> Any:
        small, number, name = self.small, self.number, self.name
        flag = self.random.random() < 0.5
        nasty = self.maybe
        zero_or = self.zero_or
        choices: list[Callable[[], Any]] = [
            lambda: api.Make(
                small(),
                name(),
                self.random.choice(MODES),
                small(),
                small(),
                small(),
                target=self.random.choice([b"", b"t", b"x" * 5000]),
                exclusive=flag,
                ino=zero_or(small()),
                size=zero_or(number()),
                extents=self.extents() if flag else (),
                touch_epoch=1,
                mtime_ns=number(),
            ),
            lambda: api.Make(small(), name(), self.random.choice(MODES[:4]), 0, 0),
            lambda: api.Link(small(), small(), name()),
            lambda: api.Remove(small(), name(), flag, self.numbers()),
            lambda: api.Rename(small(), name(), small(), name(), zero_or(number()), self.numbers()),
            lambda: api.Rename(small(), name(), small(), name(), self.random.choice([0, 1, 2])),
            lambda: api.SetAttr(small(), nasty(), nasty(), nasty(), nasty(), nasty(), nasty(), nasty()),
            lambda: api.Commit(
                small(),
                self.extents(),
                number(),
                number(),
                self.random.choice([1, 1, 1, number()]),
                append=flag,
                expected_size=zero_or(number()),
                base_version=zero_or(number()),
                pg_epoch=zero_or(number()),
                merge=flag,
            ),
            lambda: api.SetXattr(small(), name(), b"x" * self.random.choice([0, 9, 70_000]), small()),
            lambda: api.RemoveXattr(small(), name()),
            lambda: api.Release(self.numbers()),
            lambda: api.AllocateInos(small()),
            lambda: api.PunchHole(small(), number(), number()),
            lambda: api.CloneRange(small(), number(), small(), number(), number()),
        ]
        return self.random.choice(choices)()

    def zero_or(self, number: int) -> int:
        return self.random.choice([0, 0, number])

    def query(self) -> Any:
        small, number = self.small, self.number
        choices: list[Callable[[], Any]] = [
            lambda: api.Lookup(small(), self.name()),
            lambda: api.GetAttr(small()),
            lambda: api.ReadDir(small(), self.random.choice(NAMES), number(), self.random.random() < 0.5),
            lambda: api.ReadLink(small()),
            lambda: api.GetXattr(small(), self.name()),
            lambda: api.ListXattr(small()),
            lambda: api.GetExtents(small(), number(), number()),
            lambda: api.Walk(small(), tuple(self.name() for _ in range(self.random.randrange(4)))),
        ]
        return self.random.choice(choices)()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_hostile_stops_the_machine(seed: int) -> None:
    fuzz = Fuzz(seed)
    world = World(sessions=2)
    for step in range(700):
        world.try_(fuzz.op(), 1 + step % 2)
        results = world.machine.query([fuzz.query() for _ in range(4)])
        msgspec.msgpack.encode(api.ReadReply(results))
        if step % 50 == 0:
            world.run(CommandKind.RECLAIM, Reclaim(fuzz.number()))
            world.sound()
    world.reclaim()
    world.sound()
    assert len(world.names()) > 0


@pytest.mark.parametrize("seed", range(2))
def test_submits_with_random_numbers(seed: int) -> None:
    fuzz = Fuzz(seed)
    world = World()
    for _ in range(300):
        ops = tuple(fuzz.op() for _ in range(fuzz.random.randrange(4)))
        session, stop = fuzz.random.choice([1, 1, 1, fuzz.number()]), fuzz.random.random() < 0.5
        submit = api.Submit(session, fuzz.small(), fuzz.small(), ops, fuzz.small(), stop, fuzz.zero_or(fuzz.number()))
        world.run(CommandKind.SUBMIT, submit)
    world.sound()


def test_flipped_bytes_in_bodies(seed: int = 5) -> None:
    fuzz = Fuzz(seed)
    world = World()
    for sequence in range(1, 600):
        body = bytearray(msgspec.msgpack.encode(api.Submit(1, sequence, sequence, (fuzz.op(), fuzz.op()))))
        for _ in range(fuzz.random.randrange(4)):
            body[fuzz.random.randrange(len(body))] ^= 1 << fuzz.random.randrange(8)
        world.apply(encode_command(CommandKind.SUBMIT, sequence, bytes(body)))
    world.sound()
