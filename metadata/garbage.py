"""What commands and auditors may ask about blocks that nothing references, or that nobody has.

``metadata.api`` shows these to the outside.
"""

from __future__ import annotations

import msgspec


class CollectGarbage(msgspec.Struct, frozen=True, array_like=True):
    """Ask the leader about its garbage collector; with ``advance`` it takes a round first, which moves the epoch where
    something waits for that. Two or three rounds delete what nothing references."""

    advance: bool = False


class GarbageReply(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """``candidates``: blocks that nothing references; ``due``: of these, old enough to be deleted. ``deleted`` and the
    rest of the counts are of the round that was asked for. ``waiting``: another round will do more."""

    gc_epoch: int
    candidates: int
    due: int
    more_candidates: bool  # than were counted
    quarantined_bytes: int  # of all copies, as the last heartbeats told
    unconfirmed_bytes: int
    deleted: int = 0
    kept: int = 0  # touched again, or a server could not be asked
    adopted: int = 0  # blocks of writers that died
    waiting: bool = False


class ListReferences(msgspec.Struct, frozen=True, array_like=True):
    """List the blocks that the volume knows, with names above ``after``, in order; for auditors."""

    after: bytes
    limit: int


class FindReferences(msgspec.Struct, frozen=True, array_like=True):
    """Ask which of these blocks the volume knows; for auditors. The reply names those."""

    blocks: tuple[bytes, ...]


class References(msgspec.Struct, frozen=True, array_like=True):
    """(block, how many extents name it); 0 for a candidate for collection. ``logged``: those of them that need not be
    on chunk servers, because the service has their bytes itself (Commit.data)."""

    blocks: tuple[tuple[bytes, int], ...]
    more: bool
    gc_epoch: int
    logged: tuple[bytes, ...] = ()
