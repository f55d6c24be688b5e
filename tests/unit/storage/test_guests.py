"""Whom a chunk server lets in."""

from __future__ import annotations

from node.rpc.security import AllowList
from storage.server.main import Guests


def test_keys_come_and_go_and_those_of_the_configuration_stay() -> None:
    allowed = AllowList([b"member", b"client"])
    guests = Guests(allowed)
    guests.name(["member", "new", ""])
    assert set(allowed) == {b"member", b"client", b"new"}
    guests.name(["other"])
    assert set(allowed) == {b"member", b"client", b"other"}, "who is named no more is not let in"
    guests.name([])
    assert set(allowed) == {b"member", b"client"}
    Guests(None).name(["any"])  # without keys there is nobody to keep out
