"""Changes of membership as pure functions from one configuration to the next.

A change takes effect when its entry is applied. ``voters`` decide; while ``outgoing`` is not empty the configuration
is joint and both halves must agree. ``learners_next`` are voters of the outgoing half that become learners when it
is left: a member cannot be voter and learner at once.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from metadata.raft.messages import ConfChange, ConfChangeItem, ConfChangeKind, ConfState, ConfTransition

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ConfChange)


class ConfChangeInvalid(Exception):
    """The change is impossible in the configuration it was applied to."""


def encode_change(change: ConfChange) -> bytes:
    """Data of a CONF entry. Leaving a joint configuration is the empty string, so it can never be too large."""
    if not change.items and not change.context:
        return b""
    return _encoder.encode(change)


def decode_change(data: bytes) -> ConfChange:
    """The inverse of ``encode_change``. Raises msgspec.DecodeError."""
    return _decoder.decode(data) if data else ConfChange()


class Configuration(NamedTuple):
    """Who decides and who listens. Invariants are checked by ``check``."""

    voters: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    def members(self) -> frozenset[int]:
        return self.voters | self.outgoing | self.learners

    def deciders(self) -> frozenset[int]:
        return self.voters | self.outgoing

    def state(self) -> ConfState:
        return ConfState(
            tuple(sorted(self.voters)),
            tuple(sorted(self.learners)),
            tuple(sorted(self.outgoing)),
            tuple(sorted(self.learners_next)),
            self.auto_leave,
        )


def restore(state: ConfState) -> Configuration:
    """The configuration that a snapshot or the storage names."""
    return check(
        Configuration(
            frozenset(state.voters),
            frozenset(state.outgoing),
            frozenset(state.learners),
            frozenset(state.learners_next),
            state.auto_leave,
        )
    )


def change(current: Configuration, wanted: ConfChange) -> Configuration:
    """Apply a committed change. Raises ConfChangeInvalid, in the same way on every member."""
    if not wanted.items:
        return leave_joint(current)
    if wanted.transition != ConfTransition.AUTO or len(wanted.items) > 1:
        return enter_joint(current, wanted.items, wanted.transition != ConfTransition.JOINT_EXPLICIT)
    return simple(current, wanted.items)


def simple(current: Configuration, items: tuple[ConfChangeItem, ...]) -> Configuration:
    """A change of at most one voter: old and new majorities overlap by themselves."""
    if current.joint:
        raise ConfChangeInvalid("a simple change while the configuration is joint")
    changed = _apply(current, items)
    if len(current.voters ^ changed.voters) > 1:
        raise ConfChangeInvalid("more than one voter changes without a joint configuration")
    return check(changed)


def enter_joint(current: Configuration, items: tuple[ConfChangeItem, ...], auto_leave: bool) -> Configuration:
    """Both the old voters and the new ones decide until the joint configuration is left."""
    if current.joint:
        raise ConfChangeInvalid("the configuration is joint already")
    if not current.voters:
        raise ConfChangeInvalid("a configuration without voters cannot become joint")
    changed = _apply(current._replace(outgoing=current.voters), items)
    return check(changed._replace(auto_leave=auto_leave))


def leave_joint(current: Configuration) -> Configuration:
    """The new voters decide alone."""
    if not current.joint:
        raise ConfChangeInvalid("not in a joint configuration")
    return check(Configuration(current.voters, frozenset(), current.learners | current.learners_next))


def _apply(current: Configuration, items: tuple[ConfChangeItem, ...]) -> Configuration:
    voters, learners, following = set(current.voters), set(current.learners), set(current.learners_next)
    for item in items:
        member = item.member
        if member <= 0:
            raise ConfChangeInvalid(f"{member} names no member")
        voters.discard(member)
        learners.discard(member)
        following.discard(member)
        if item.kind == ConfChangeKind.ADD_VOTER:
            voters.add(member)
        elif item.kind == ConfChangeKind.ADD_LEARNER:
            # Still a voter of the outgoing half: it steps back when that half goes.
            (following if member in current.outgoing else learners).add(member)
        elif item.kind != ConfChangeKind.REMOVE:
            raise ConfChangeInvalid(f"unknown kind {item.kind}")
    if not voters:
        raise ConfChangeInvalid("no voter would be left")
    return current._replace(
        voters=frozenset(voters), learners=frozenset(learners), learners_next=frozenset(following)
    )


def check(configuration: Configuration) -> Configuration:
    """Return the argument, or raise ConfChangeInvalid where it breaks an invariant."""
    voters, outgoing, learners, following, auto_leave = configuration
    if learners & (voters | outgoing):
        raise ConfChangeInvalid("a learner votes")
    if not following <= outgoing:
        raise ConfChangeInvalid("a learner to be is no voter of the outgoing half")
    if following & (voters | learners):
        raise ConfChangeInvalid("a learner to be is a voter or learner already")
    if not outgoing and (following or auto_leave):
        raise ConfChangeInvalid("traces of a joint configuration in one that is not")
    return configuration
