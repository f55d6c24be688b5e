"""How a server makes itself complete for a placement group: what to ask, what to pull from whom, when that is all.

Sans-IO. One ``GroupSync`` is one SyncGroup order. It works in rounds. A round asks every source for its digest of the
group; sources whose digest is ours have nothing that we lack. The others are listed, page by page and in step, so that
each block is seen with all servers that have it and with the highest touch epoch among them (rule 16). Blocks that are
not here are pulled, in batches, from whichever holder has least to do; touch epochs that are behind are raised. A round
in which every source answered to its end and everything listed is durable here makes the group complete. Otherwise,
after a pause, comes another round.

The caller carries out ``actions`` and reports each with one of the events, from one task; time comes in as an argument.
A holder that does not have a block, or sends something else, costs a try with the next holder, never a wrong block: the
caller verifies what it stores. Memory is bounded: one page a source, and ``SYNC_WANTED_MAX`` blocks beyond those.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Union

from node.wire.limits import (
    SYNC_BATCH_BLOCKS_MAX, SYNC_BATCH_BYTES, SYNC_PAUSE_S_MAX, SYNC_PAUSE_S_MIN, SYNC_PULLS_MAX, SYNC_WANTED_MAX,
)
from storage.api import GroupBlock, GroupDigest
from storage.order import key_of

Local = Callable[[bytes], Optional[int]]
"""The touch epoch of a block that is here, -1 where it is in quarantine, None where it is not here whole."""


@dataclass(slots=True)
class Wanted:
    """A block that some source has and we do not. ``holders``: those not yet tried in this round."""

    block: bytes
    epoch: int
    length: int
    stored: int
    holders: list[int]


@dataclass(frozen=True, slots=True)
class AskDigest:
    """Ask this server for its digest of the group. Answer with ``digested``."""

    server: int


@dataclass(frozen=True, slots=True)
class AskList:
    """Ask this server for the blocks of the group behind ``after``. Answer with ``listed``."""

    server: int
    after: bytes


@dataclass(frozen=True, slots=True)
class Pull:
    """Get these blocks from this server, verify them, and store them with their epochs. Answer with ``pulled``."""

    server: int
    blocks: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Raise:
    """Raise the touch epochs of these blocks that are here: (block, epoch). Answer with ``raised``."""

    touches: tuple[tuple[bytes, int], ...]


Action = Union[AskDigest, AskList, Pull, Raise]


class Progress(NamedTuple):
    """Where a GroupSync stands."""

    complete: bool
    missing: int
    missing_bytes: int
    pulled: int
    failed: tuple[int, ...]


@dataclass(slots=True)
class _Source:
    asked: bool = False  # an answer is out
    digested: bool = False
    listing: bool = False
    page: list[GroupBlock] = field(default_factory=list)  # not yet merged
    after: bytes = b""
    more: bool = True  # behind the page
    failed: bool = False


class GroupSync:
    """One order. Invariants: at most one question is out to a source; a block is in at most one pull at a time;
    ``complete`` is never taken back (the caller makes a new GroupSync when blocks were damaged since)."""

    def __init__(self, sources: Collection[int]) -> None:
        self._order = tuple(dict.fromkeys(sources))
        self._pulled = 0
        self._complete = not self._order
        self._pause_s = SYNC_PAUSE_S_MIN
        self._resume_s: Optional[float] = None  # between rounds
        self._begin()

    def _begin(self) -> None:
        self._sources = {server: _Source() for server in self._order}
        self._wanted: list[Wanted] = []  # to be pulled
        self._pulling: dict[bytes, Wanted] = {}
        self._load: dict[int, int] = dict.fromkeys(self._order, 0)  # pulls out, by server
        self._stale: list[Wanted] = []  # here, with a lower touch epoch
        self._raising = 0
        self._given_up: list[Wanted] = []  # no holder gave it in this round, or it could not be stored

    # -- what to do

    def actions(self, now_s: float) -> list[Action]:
        """Return what to begin now; each is returned once."""
        if self._complete:
            return []
        if self._resume_s is not None:
            if now_s < self._resume_s:
                return []
            self._resume_s = None
            self._begin()
        todo: list[Action] = [*self._questions(), *self._raises(), *self._pulls()]
        if not todo and self._idle():
            self._end_round(now_s)
        return todo

    def resume_s(self) -> Optional[float]:
        """When ``actions`` has something again though nothing happens; None for never."""
        return None if self._complete else self._resume_s

    def _questions(self) -> Iterable[Action]:
        backlog = len(self._wanted) + len(self._pulling) + len(self._stale)
        for server, source in self._sources.items():
            if source.asked or source.failed:
                continue
            if not source.digested:
                source.asked = True
                yield AskDigest(server)
            elif source.listing and not source.page and source.more and self._compared() and backlog < SYNC_WANTED_MAX:
                source.asked = True
                yield AskList(server, source.after)

    def _compared(self) -> bool:
        """Whether all digests are in, so that it is known whose lists have to be merged."""
        return all(source.digested or source.failed for source in self._sources.values())

    def _raises(self) -> Iterable[Action]:
        while self._stale:
            batch, self._stale = self._stale[:SYNC_BATCH_BLOCKS_MAX], self._stale[SYNC_BATCH_BLOCKS_MAX:]
            self._raising += 1
            yield Raise(tuple([(each.block, each.epoch) for each in batch]))

    def _pulls(self) -> Iterable[Action]:
        while self._wanted and sum(self._load.values()) < SYNC_PULLS_MAX:
            holders = {server for each in self._wanted for server in each.holders}
            server = min(holders, key=lambda holder: (self._load[holder], self._order.index(holder)))
            batch: list[Wanted] = []
            rest: list[Wanted] = []
            size_bytes = 0
            for each in self._wanted:
                fits = not batch or size_bytes + each.stored <= SYNC_BATCH_BYTES
                if server in each.holders and fits and len(batch) < SYNC_BATCH_BLOCKS_MAX:
                    batch.append(each)
                    size_bytes += each.stored
                else:
                    rest.append(each)
            self._wanted = rest
            self._pulling.update({each.block: each for each in batch})
            self._load[server] += 1
            yield Pull(server, tuple(batch))

    def _idle(self) -> bool:
        asking = any(source.asked for source in self._sources.values())
        return not (asking or self._wanted or self._pulling or self._stale or self._raising)

    def _end_round(self, now_s: float) -> None:
        failed = any(source.failed for source in self._sources.values())
        if not failed and not self._given_up:
            self._complete = True
            return
        self._resume_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, SYNC_PAUSE_S_MAX)

    # -- what came of it

    def digested(self, server: int, digest: GroupDigest, own: GroupDigest) -> None:
        """A source's digest came; ``own`` is ours by now."""
        source = self._answered(server)
        source.digested = True
        same = (digest.blocks, digest.digest, digest.touches) == (own.blocks, own.digest, own.touches)
        source.listing = not same and digest.blocks > 0

    def listed(self, server: int, page: Sequence[GroupBlock], more: bool, local: Local) -> None:
        """A page came. ``more`` without a block, or blocks out of order, are a failure of the source."""
        source = self._answered(server)
        keys = [key_of(source.after) if source.after else b"", *[key_of(each.block) for each in page]]
        if (more and not page) or any(here >= there for here, there in zip(keys, keys[1:])):
            self._fail(server)
        else:
            source.page, source.more = list(page), more
            if page:
                source.after = page[-1].block
        self._merge(local)

    def _merge(self, local: Local) -> None:
        """Take from the pages what all sources that are being listed have shown."""
        listing = {server: source for server, source in self._sources.items() if source.listing and not source.failed}
        if any(not source.page and source.more for source in listing.values()):
            return  # its next page may begin anywhere
        while any(source.page for source in listing.values()):
            ends = [key_of(source.page[-1].block) for source in listing.values() if source.more]
            frontier = min(ends, default=b"\xff" * 33)
            seen: dict[bytes, Wanted] = {}
            for server, source in listing.items():
                count = sum(key_of(each.block) <= frontier for each in source.page)
                for found in source.page[:count]:
                    each = seen.setdefault(found.block, Wanted(found.block, 0, found.length, found.stored, []))
                    each.epoch = max(each.epoch, found.epoch)
                    each.holders.append(server)
                source.page = source.page[count:]
            self._compare(seen.values(), local)
            if any(not source.page and source.more for source in listing.values()):
                return

    def _compare(self, seen: Iterable[Wanted], local: Local) -> None:
        for each in seen:
            epoch = local(each.block)
            if epoch is None:
                self._wanted.append(each)
            elif epoch < each.epoch:
                self._stale.append(each)

    def pulled(self, pull: Pull, stored: Collection[bytes], refused: Collection[bytes] = ()) -> None:
        """A pull ended: ``stored`` are durable here; ``refused`` came, but there was no room for them. The others the
        server did not have, or sent something else: another holder is tried."""
        self._load[pull.server] -= 1
        for each in pull.blocks:
            del self._pulling[each.block]
            if each.block in stored:
                self._pulled += 1
                self._pause_s = SYNC_PAUSE_S_MIN
                continue
            left = [one for one in each.holders if one != pull.server and not self._sources[one].failed]
            each.holders = [] if each.block in refused else left
            (self._wanted if each.holders else self._given_up).append(each)

    def raised(self, action: Raise, missing: Collection[bytes]) -> None:
        """Touch epochs were raised, but for blocks that are not here any more: the next round pulls those."""
        self._raising -= 1
        self._given_up += [Wanted(block, epoch, 0, 0, []) for block, epoch in action.touches if block in missing]

    def failed(self, action: Action, local: Local) -> None:
        """A source did not answer, or refused: it is left alone for the rest of the round."""
        assert not isinstance(action, Raise)
        if isinstance(action, Pull):
            self.pulled(action, ())
        else:
            self._answered(action.server)
        self._fail(action.server)
        self._merge(local)

    def _answered(self, server: int) -> _Source:
        source = self._sources[server]
        assert source.asked
        source.asked = False
        return source

    def _fail(self, server: int) -> None:
        source = self._sources[server]
        source.failed, source.page = True, []
        for each in self._wanted:
            each.holders = [one for one in each.holders if one != server]
        self._given_up += [each for each in self._wanted if not each.holders]
        self._wanted = [each for each in self._wanted if each.holders]
        # a source that failed in mid-list may have shown a higher touch epoch: the next round asks it again

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        lacking = [*self._wanted, *self._pulling.values(), *self._given_up]
        failed = tuple([server for server, source in self._sources.items() if source.failed])
        return Progress(self._complete, len(lacking), sum(each.stored for each in lacking), self._pulled, failed)
