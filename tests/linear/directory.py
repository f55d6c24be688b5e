"""The sequential behaviour of one directory of files, for the checker.

State: a frozenset of (name, file) where file is the serial number
that the program wrote into it. Calls are tuples; results are "ok", a value, or an errno name.

    ("create", name, serial)      open(O_CREAT | O_EXCL), the serial becomes the content: "ok" | "EEXIST"
    ("link", source, target)      "ok" | "ENOENT" | "EEXIST"
    ("unlink", name)              "ok" | "ENOENT"
    ("rename", source, target)    "ok" | "ENOENT"
    ("read", name)                serial | "ENOENT"
    ("list",)                     frozenset of names
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from tests.linear.checker import UNKNOWN

EMPTY: frozenset[tuple[str, int]] = frozenset()


def _sequential(names: dict[str, int], call: tuple[Any, ...]) -> tuple[Any, dict[str, int]]:
    """Return the only answer that the call may give in this state, and the state after it."""
    kind = call[0]
    if kind == "create":
        if call[1] in names:
            return "EEXIST", names
        return "ok", {**names, call[1]: call[2]}
    if kind == "link":
        if call[1] not in names:
            return "ENOENT", names
        if call[2] in names:
            return "EEXIST", names
        return "ok", {**names, call[2]: names[call[1]]}
    if kind == "unlink":
        if call[1] not in names:
            return "ENOENT", names
        return "ok", {n: f for n, f in names.items() if n != call[1]}
    if kind == "rename":
        if call[1] not in names:
            return "ENOENT", names
        if call[2] in names and names[call[1]] == names[call[2]]:
            return "ok", names  # two names of one file: rename(2) does nothing
        after = {n: f for n, f in names.items() if n != call[1]}
        after[call[2]] = names[call[1]]
        return "ok", after
    if kind == "read":
        return names.get(call[1], "ENOENT"), names
    if kind == "list":
        return frozenset(names), names
    raise AssertionError(call)


def step(state: frozenset[tuple[str, int]], call: tuple[Any, ...], result: Any) -> Iterator[Hashable]:
    """The checker's step function for one directory."""
    answer, after = _sequential(dict(state), call)
    if result is UNKNOWN or answer == result:
        yield frozenset(after.items())


def register_step(state: int, call: tuple[Any, ...], result: Any) -> Iterator[Hashable]:
    """One register: ("write", value) -> "ok", ("read",) -> value, ("swap", old, new) -> "ok" | "no"."""
    if call[0] == "write":
        yield call[1]
    elif call[0] == "read":
        if result is UNKNOWN or result == state:
            yield state
    elif call[0] == "swap":
        happens = state == call[1]
        if result is UNKNOWN or result == ("ok" if happens else "no"):
            yield call[2] if happens else state


def log_step(state: tuple[int, ...], call: tuple[Any, ...], result: Any) -> Iterator[Hashable]:
    """An append-only file: ("append", value) -> "ok", ("read",) -> all values in order."""
    if call[0] == "append":
        yield (*state, call[1])
    elif result is UNKNOWN or tuple(result) == state:
        yield state
