"""A subject is spoken of once in a while."""

from __future__ import annotations

from node.host.sparing import Sparing, and_more


def test_once_in_an_interval() -> None:
    now = [0.0]
    sparing = Sparing(10.0, lambda: now[0])
    assert [sparing.ask("a") for _ in range(4)] == [0, None, None, None]
    assert sparing.ask("b") == 0, "another subject"
    now[0] = 9.9
    assert sparing.ask("a") is None
    now[0] = 10.0
    assert sparing.ask("a") == 4
    assert sparing.ask("a") is None
    assert (and_more(0), and_more(4)) == ("", " (and 4 more since the last such line)")


def test_memory_is_bounded() -> None:
    sparing = Sparing(10.0, lambda: 0.0)
    for number in range(5000):
        assert sparing.ask(number) == 0
    assert len(sparing._spoken) <= 1024
