"""What results of operations say: which inodes they are about, whether they failed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from metadata import api
from node.wire.errors import Code, FsError

R = TypeVar("R")


def data_of(results: Iterable[api.Result]) -> Iterator[tuple[bytes, bytes]]:
    """Names and bytes of the blocks that came with answers about extents."""
    for result in results:
        if type(result) is api.Extents:
            yield from result.data


def expect(result: Any, kind: type[R]) -> R:
    """Return a result as what it must be; raise what it failed with, PROTOCOL where it is something else."""
    if type(result) is kind:
        return result
    if isinstance(result, api.Failed):
        raise_failed(result)
    raise FsError(Code.PROTOCOL, f"{type(result).__name__} instead of {kind.__name__}")


def raise_failed(result: api.Failed) -> NoReturn:
    """Raise what an operation failed with."""
    try:
        code = Code(result.code)
    except ValueError:
        raise FsError(Code.IO, f"error {result.code}: {result.detail}") from None
    raise FsError(code, result.detail)


def whole(results: tuple[api.Result, ...], count: int) -> tuple[api.Result, ...]:
    """Return results that are as many as there were questions; PROTOCOL otherwise."""
    if len(results) != count:
        raise FsError(Code.PROTOCOL, f"{len(results)} results for {count} questions")
    return results
