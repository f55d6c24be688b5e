"""The sequential behaviour of one directory of files, for the checker.

State: a frozenset of (name, file) where file is the serial number
that the program wrote into it. Calls are tuples; results are "ok", a value, or an errno name.

    ("create", name, serial)      open(O_CREAT | O_EXCL), the serial becomes the content: "ok" | "EEXIST"
    ("find", source, mark)        first step of link(2): "ok" | "ENOENT"; see split_link
    ("attach", target, mark)      second step: "ok" | "ENOENT" | "EEXIST"
    ("unlink", name)              "ok" | "ENOENT"
    ("rename", source, target)    "ok" | "ENOENT"; see split_rename
    ("read", name)                serial | "ENOENT"
    ("list",)                     frozenset of names
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from operator import eq
from typing import Any

from tests.linear.checker import UNKNOWN, Operation, Step

EMPTY: frozenset[tuple[str, int]] = frozenset()


def _sequential(names: dict[str, int], call: tuple[Any, ...]) -> tuple[Any, dict[str, int]]:
    """Return the only answer that the call may give in this state, and the state after it."""
    kind = call[0]
    if kind == "create":
        if call[1] in names:
            return "EEXIST", names
        return "ok", {**names, call[1]: call[2]}
    if kind == "unlink":
        if call[1] not in names:
            return "ENOENT", names
        return "ok", {n: f for n, f in names.items() if n != call[1]}
    if kind == "rename":
        if call[1] not in names:
            return "ENOENT", names
        after = {n: f for n, f in names.items() if n != call[1]}
        after[call[2]] = names[call[1]]
        return "ok", after
    if kind == "read":
        return names.get(call[1], "ENOENT"), names
    if kind == "find":
        return "ENOENT" if call[1] not in names else "ok", {**names, call[2]: names.get(call[1], 0)}
    if kind == "attach":
        file = names.get(call[2], 0)
        rest = {n: f for n, f in names.items() if n != call[2]}
        if call[1] in rest:  # which the kernel sees before it looks whether the file has any name left
            return "EEXIST", rest
        if file not in rest.values():
            return "ENOENT", rest
        return "ok", {**rest, call[1]: file}
    if kind == "list":
        return frozenset(n for n in names if not n.startswith("#")), names
    raise AssertionError(call)


def split_link(operation: Operation, number: int) -> list[Operation]:
    """link(2) is two steps on any Linux filesystem: the source is found, then that file gets the new name.

    In between the source may be renamed. ``#number`` in the state is what the first step found.
    """
    _, source, target = operation.call
    mark = f"#{number}"
    start, end, process = operation.start, operation.end, operation.process
    find = ("find", source, mark)
    attach = ("attach", target, mark)
    if operation.result == "ENOENT":  # in either step
        return [Operation(("link?", find, attach), "ENOENT", start, end, process)]
    result = UNKNOWN if operation.result is UNKNOWN else "ok"
    return [Operation(find, result, start, end, process), Operation(attach, operation.result, start, end, process)]


def split_rename(operation: Operation, number: int) -> list[Operation]:
    """A successful rename(2) looks up its source first; in between another mount may do the very same rename.

    Then both names are the same file by the time the target is looked up, and the kernel itself answers "done".
    """
    if operation.result != "ok":
        return [operation]
    _, source, target = operation.call
    mark = f"#{number}"
    start, end, process = operation.start, operation.end, operation.process
    return [
        Operation(("find", source, mark), "ok", start, end, process),
        Operation(("finish", source, target, mark), "ok", start, end, process),
    ]


def _finish(names: dict[str, int], source: str, target: str, mark: str) -> Iterator[Hashable]:
    file = names.pop(mark)
    if names.get(target) == file:
        yield frozenset(names.items())
    if source in names:
        names[target] = names.pop(source)
        yield frozenset(names.items())


def step(state: frozenset[tuple[str, int]], call: tuple[Any, ...], result: Any) -> Iterator[Hashable]:
    """The checker's step function for one directory."""
    names = dict(state)
    if call[0] == "attach" and call[2] not in names:
        return  # its first step has not come yet
    if call[0] == "finish":
        if call[3] in names:
            yield from _finish(names, *call[1:])
        return
    if call[0] == "link?":
        # An ENOENT of link(2) changes nothing: the source was not there, or the file had lost its last name.
        yield state
        return
    answer, after = _sequential(names, call)
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


def log_step(state: tuple[int, ...], call: tuple[Any, ...], result: Any) -> Iterator[tuple[int, ...]]:
    """A file that is appended to: ("append", value) -> "ok", ("cut",) -> "ok", which empties it, ("read",) -> all
    values in order."""
    if call[0] == "append":
        yield (*state, call[1])
    elif call[0] == "cut":
        yield ()
    elif result is UNKNOWN or tuple(result) == state:
        yield state


def log_step_for(history: Sequence[Operation]) -> Step:
    """``log_step`` for one history of a file that is only ever appended to.

    What somebody has read is on the way of the file or never was: so states that do not lead to the longest answer are
    given up at once. Without that, each pair of appends at the same time that nobody looks at soon afterwards doubles
    what the checker has to look at.
    """
    assert all(o.call[0] in ("append", "read") for o in history)
    answers = [tuple(o.result) for o in history if o.call[0] == "read" and o.result is not UNKNOWN]
    longest = max(answers, key=len, default=())

    def step(state: tuple[int, ...], call: tuple[Any, ...], result: Any) -> Iterator[Hashable]:
        for after in log_step(state, call, result):
            if all(map(eq, after, longest)):
                yield after

    return step


def swap_step(state: tuple[int, ...], call: tuple[Any, ...], result: Any) -> Iterator[Hashable]:
    """A register that only compare-and-swap changes, with all its versions: state is the value of each.

    ("swap", version, value) -> "ok" where ``version`` is the number of versions, or "EEXIST" where it is smaller;
    ("get", version) -> its value, or "ENOENT" where there are not so many.
    """
    if call[0] == "swap":
        if len(state) == call[1]:
            if result is UNKNOWN or result == "ok":
                yield (*state, call[2])
        elif result is UNKNOWN or result == "EEXIST" and len(state) > call[1]:
            yield state
    elif result == (state[call[1]] if call[1] < len(state) else "ENOENT"):
        yield state
