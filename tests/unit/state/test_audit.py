"""The state digest: equal states agree, a changed row is found within one round, and nothing else is."""

from __future__ import annotations

import pytest

from metadata import api
from metadata.state import keys
from metadata.state.command import Audit, AuditReply, CommandKind, encode_command
from metadata.state.machine import Machine
from metadata.store.engine_memory import MemoryEngine
from node.wire.errors import Code, FsError
from tests.unit.state.support import World


def grown() -> World:
    world = World()
    for number in range(40):
        world.do(api.Make(1, b"f%d" % number, 0o100644, 0, 0))
    return world


def everything(world: World) -> list[tuple[bytes, bytes]]:
    return world.tables.range(b"\0", b"\xff" * 8)


def twin(world: World) -> Machine:
    """A machine over a copy of the state."""
    engine = MemoryEngine()
    engine.replace(everything(world))
    return Machine(engine)


def audit(machine: Machine, rows: int, about: int = 0, digest: bytes = b"") -> AuditReply:
    data = encode_command(CommandKind.AUDIT, machine.time_ns + 1, Audit(rows, about, digest))
    reply = machine.apply(machine.applied + 1, machine.term, data).reply
    assert isinstance(reply, AuditReply)
    return reply


def test_equal_states_agree_slice_by_slice_for_many_rounds() -> None:
    world = grown()
    one, other = world.machine, twin(world)
    reply = audit(one, 16)
    assert audit(other, 16) == reply
    while reply.rounds < 3:
        following = audit(one, 16, reply.index, reply.digest)
        assert audit(other, 16, reply.index, reply.digest) == following
        reply = following
    assert one.digest() == other.digest()


@pytest.mark.parametrize("rows", [7, 16, 1000])
def test_any_row_that_differs_is_found_within_a_round(rows: int) -> None:
    world = grown()
    content = everything(world)
    cached = (keys.ROOT_KEY, keys.SHARD_KEY, keys.APPLIED_KEY, keys.SESSION, keys.SLOT)
    victims = [key for key, _ in content if not key.startswith(cached)]
    for victim in victims[:: max(len(victims) // 12, 1)]:
        healthy = twin(world)
        engine = MemoryEngine()
        engine.replace([(key, value + b"\0" if key == victim else value) for key, value in content])
        spoilt = Machine(engine)
        reply = audit(healthy, rows)
        audit(spoilt, rows)
        with pytest.raises(FsError) as caught:
            while True:
                before, reply = reply, audit(healthy, rows, reply.index, reply.digest)
                assert reply.rounds < 3, f"{victim!r} was not found"
                audit(spoilt, rows, before.index, before.digest)
        assert caught.value.code is Code.STATE_DIFFERS
        assert spoilt.applied == reply.index - 1, "something was changed"


def test_a_restart_goes_on_with_what_was_kept() -> None:
    world = grown()
    reply = audit(world.machine, 16)
    again = twin(world)
    assert again.audited == world.machine.audited
    assert audit(again, 16, reply.index, reply.digest) == audit(world.machine, 16, reply.index, reply.digest)


def test_a_verdict_about_another_entry_is_no_verdict() -> None:
    machine = grown().machine
    reply = audit(machine, 16)
    audit(machine, 16, reply.index - 1, b"x" * 16)
    audit(machine, 16, reply.index, b"x" * 16)  # the entry before it has come in between
    with pytest.raises(FsError):
        audit(machine, 16, machine.audited.index, b"x" * 16)
