"""Who the members are and where they answer: what changes of membership told, over what cluster.toml says.

The first members know each other from cluster.toml. A later one is introduced by the log: the change that adds it
carries its name and addresses, the one that makes it a voter also its incarnation. So the running members connect to
it without a restart, and each remembers which life of its data directory may vote. What was told is kept as a row of
the state, so that it also reaches a member by snapshot. A member's number is never given twice.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from metadata.raft.messages import ConfChange, ConfState
from node.host.cluster import Member

DIRECTORY_KEY = b"Mm"
"""Row of the directory as of the applied index, beside that of the membership (``server.stable``)."""


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """One member as a change of membership introduces it (ConfChange.context)."""

    member: int
    name: str
    address: str
    peer_address: str
    public_key: str = ""
    incarnation: bytes = b""


class Directory(msgspec.Struct, frozen=True, array_like=True):
    """Members that the log introduced, and the highest number that any member ever had, as far as the log tells."""

    members: tuple[MemberRecord, ...] = ()
    highest: int = 0


encode_record = msgspec.msgpack.Encoder().encode
encode_directory = msgspec.msgpack.Encoder().encode
decode_directory = msgspec.msgpack.Decoder(Directory).decode
_decode_record = msgspec.msgpack.Decoder(MemberRecord).decode


def members_of(conf: ConfState) -> frozenset[int]:
    """Everybody in a membership."""
    return frozenset((*conf.voters, *conf.learners, *conf.outgoing, *conf.learners_next))


def following(directory: Directory, change: ConfChange, before: ConfState, after: ConfState) -> Directory:
    """The directory after an applied change of membership. It is part of the state: only the arguments count."""
    kept = {record.member: record for record in directory.members}
    if change.context:
        try:
            record = _decode_record(change.context)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # whoever wrote it knows a form that this release does not; the numbers are what counts
        else:
            kept[record.member] = record
    left = members_of(after)
    records = tuple(kept[member] for member in sorted(kept) if member in left)
    highest = max(directory.highest, *members_of(before), *left, *(item.member for item in change.items), 0)
    return Directory(records, highest)


def roster(configured: Iterable[Member], directory: Directory, conf: ConfState) -> dict[int, Member]:
    """All members by number. Those of cluster.toml where no membership is known yet (nobody is in ``conf``)."""
    found = {member.id: member for member in configured}
    for record in directory.members:
        found[record.member] = Member(
            id=record.member,
            name=record.name,
            address=record.address,
            peer_address=record.peer_address,
            public_key=record.public_key,
        )
    present = members_of(conf)
    return {number: found[number] for number in sorted(found) if number in present or not present}
