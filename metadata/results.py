"""What operations and their results say: which inodes they are about. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metadata.operations import (
    Attr, AttrResult, CloneRange, Committed, Made, Op, Release, Removed, Renamed, Result,
)


def changed(op: Op, result: Result) -> Iterator[int]:
    """The inodes that an operation has changed, or would have where it failed."""
    for field in ("ino", "parent", "new_parent"):
        ino = getattr(op, field, 0)
        if ino:
            yield ino
    if isinstance(op, CloneRange):
        yield op.target
    elif isinstance(op, Release):
        yield from op.inos
    if isinstance(result, (Removed, Renamed)):
        yield result.ino
    if isinstance(result, Renamed) and result.replaced:
        yield result.replaced


def told(result: Result) -> Iterator[Attr]:
    """The attributes that a result carries."""
    if isinstance(result, (Made, AttrResult, Committed)):
        yield result.attr
    if isinstance(result, (Made, Removed)) and result.parent is not None:
        yield result.parent


def shown(results: Iterable[Result]) -> list[int]:
    """The inodes whose attributes are in the results of a Submit."""
    return [attr.ino for result in results for attr in told(result)]
