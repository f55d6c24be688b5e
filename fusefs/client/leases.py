"""When this mount may answer from memory: the client's half of the lease protocol. Pure; the time comes in.

The service grants leases with its answers and promises to recall one before anybody is told otherwise. All leases end
together, a while after the newest grant or renewal was *asked for*. What makes that safe here:

* Each request takes a ``Ticket`` when it is sent. What its answer says of an inode is remembered only if neither a
  recall of that inode nor a change of it by this mount came between, nor everything was dropped (rule 4).
* The service does not recall what this mount changes itself. So from when such a change is sent until it is answered
  the inodes that it touches are not answered from memory, and nothing is remembered of them; one whose answer never
  comes keeps them so until the service cannot execute it any more.
* What is leased exclusively this mount changes by itself (``owned``): the facts are changed at once and are the truth;
  the service is told by the journal. An answer to what was sent before such a change is older than the facts.
* Leases that have run out, by the clock that goes on while the machine sleeps (rule 7), are dropped before anything
  else happens.

``on_drop`` is told, sync, that everything was dropped: then the kernel has to forget it too before the service is told
that this session holds nothing. ``on_end`` is told, sync and before anything is forgotten, which inodes (None: all)
are leased no more: locks that were decided here go into the journal then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, Optional, TypeVar

from fusefs.client.again import Again
from fusefs.client.facts import ABSENT, Facts, Record, meeting
from metadata.api import Attr, Extent

BARRED_MAX = 8192
HERE_MAX = 65_536
OWN_MARGIN_S = 1.0  # before they end, exclusive leases are not used any more

Name = tuple[int, bytes]
T = TypeVar("T")


class Ticket(NamedTuple):
    """When a request was sent: its place in the order of what happens here, and the time."""

    at: int
    sent_s: float


class Change:
    """A mutation of ours under way: the inodes and names that it touches, and the inodes of which only the locks."""

    __slots__ = ("inos", "names", "locks", "ticket")

    def __init__(
        self, inos: frozenset[int], names: frozenset[Name], ticket: Ticket, locks: frozenset[int] = frozenset()
    ) -> None:
        self.inos = inos
        self.names = names
        self.locks = locks
        self.ticket = ticket


class Leases:
    """Leases of one session and what they allow to remember. ``on`` False: none are asked for."""

    def __init__(self, *, on: bool, lease_s: float, bytes_max: int) -> None:
        self.on = on
        self.facts = Facts(bytes_max)
        self.again = Again()
        self.term = 0  # of the newest leader that was heard of: leases of no other are taken. 0: none yet
        self.until_s = 0.0  # when the leases end; 0: there are none
        self.on_drop: Callable[[], None] = lambda: None
        self.on_changed: Callable[[Sequence[int]], None] = lambda inos: None  # by right of exclusive leases; sync
        self.on_end: Callable[[Optional[Collection[int]]], None] = lambda inos: None
        self._lease_s = lease_s
        self._count = 0
        self._floor = 0  # answers to what was sent before are not remembered
        self._barred: dict[int, int] = {}  # inode -> when it was last recalled or changed
        self._recalled: dict[int, int] = {}  # inode -> when it was last recalled
        self._changing: dict[int, int] = {}  # inode -> how many changes of ours are under way
        self._changing_names: dict[Name, int] = {}
        self._here: dict[int, int] = {}  # inode -> when it was last changed by right of an exclusive lease
        self._here_floor = 0  # what is older than this is not in there any more
        self._here_last = 0
        self._locking: dict[int, int] = {}  # inode -> how many changes of its locks are under way at the service
        self._lock_barred: dict[int, int] = {}  # inode -> when the last of them ended
        self._lock_floor = 0
        self._bringing: set[int] = set()  # inodes with locks that were decided here and are in the journal
        self._doubtful: dict[int, Change] = {}  # sequence -> a change whose answer never came
        self.hits = 0
        self.misses = 0
        self.recalls = 0
        self.drops = 0

    # --- leases -------------------------------------------------------------------------------------------------

    def held(self, now_s: float) -> bool:
        """Whether there are leases; those that have run out are dropped first."""
        if self.until_s and now_s >= self.until_s:
            self.drop_all()
        return self.until_s != 0

    def left_s(self, now_s: float) -> float:
        """How long what is remembered stays true at least."""
        return self.until_s - now_s if self.held(now_s) else 0.0

    def ask(self, now_s: float) -> Ticket:
        """A request is sent now."""
        self.held(now_s)
        self._count += 1
        return Ticket(self._count, now_s)

    def adopt(self, term: int) -> None:
        """There is a leader of this term. Naming it to the service promises that nothing older is remembered, so the
        kernel has to have forgotten everything before (``on_drop``)."""
        if term > self.term:
            self.drop_all()
            self.term = term

    def granted(self, ticket: Ticket, term: int, now_s: float) -> bool:
        """An answer carries ``term``; return whether it grants leases."""
        held = self.held(now_s)
        until_s = ticket.sent_s + self._lease_s
        if not self.on or not term or term != self.term or ticket.at < self._floor or until_s <= now_s:
            return False
        self.until_s = max(self.until_s, until_s) if held else until_s
        return True

    def prolonged(self, ticket: Ticket, term: int, now_s: float) -> None:
        """A renewal was answered with ``term``."""
        if self.held(now_s) and term == self.term and ticket.at >= self._floor:
            self.until_s = max(self.until_s, ticket.sent_s + self._lease_s)

    def drop_all(self) -> None:
        """Every lease is gone, or may be."""
        self.on_end(None)
        self.barrier()
        self.facts.clear()
        if self.until_s:
            self.until_s = 0.0
            self.drops += 1
            self.on_drop()

    def barrier(self) -> None:
        """Remember nothing of answers to what was sent before."""
        self._count += 1
        self._floor = self._count
        self._barred.clear()

    def recall(self, inos: Collection[int], now_s: float) -> None:
        """The service takes leases back."""
        self.recalls += 1
        self.on_end(inos)
        self._count += 1
        for ino in inos:
            record = self.facts.peek(ino)
            if record is not None:
                self.again.recalled(ino, record, now_s)
                self.facts.drop(ino)
            self._bar(ino)
            self._recalled[ino] = self._count
        if len(self._recalled) > BARRED_MAX:
            self._recalled = {ino: count for ino, count in self._recalled.items() if count == self._count}

    def recalled_since(self, ticket: Ticket, inos: Iterable[int]) -> bool:
        """Whether one of the inodes was recalled after a request was sent."""
        recalled = self._recalled
        return any(recalled.get(ino, 0) > ticket.at for ino in inos)

    def _bar(self, ino: int) -> None:
        if len(self._barred) >= BARRED_MAX:
            self.barrier()
        self._barred[ino] = self._count

    # --- answers ------------------------------------------------------------------------------------------------

    def fresh(self, ticket: Ticket, ino: int) -> bool:
        """Whether what an answer says of an inode may be remembered, if it was granted."""
        return (
            ticket.at >= self._floor
            and ino not in self._changing
            and self._barred.get(ino, 0) <= ticket.at
            and not (ticket.at < self._here_last and self._overtaken(ticket, ino))
        )

    # --- exclusive leases ---------------------------------------------------------------------------------------

    def owned(self, ino: int, now_s: float) -> Record | None:
        """What is known of an inode that this mount may change by itself, now and for a while; None: it may not."""
        if not self.held(now_s) or now_s >= self.until_s - OWN_MARGIN_S or ino in self._changing:
            return None
        record = self.facts.find(ino)
        return record if record is not None and record.exclusive and record.attr is not None else None

    def own(
        self, ticket: Ticket, inos: Iterable[int], shared: Collection[int], locked: Collection[int], now_s: float
    ) -> None:
        """An answer that is the newest word on ``inos`` granted leases; all but ``shared`` are exclusive, and at the
        service nobody has locks on any but ``locked``."""
        self.again.visited(shared, now_s)
        for ino in inos:
            record = self.facts.peek(ino)
            if record is not None and record.attr is not None:
                record.exclusive = ino not in shared
                record.unlocked = ino not in locked and self._lock_word(ticket, ino)

    def confirmed(self, ticket: Ticket, inos: Iterable[int], shared: Collection[int] | None) -> None:
        """A journal was answered; of its inodes all but ``shared`` (None: all) stay exclusive."""
        lost = shared is None or ticket.at < self._floor
        for ino in inos:
            record = self.facts.peek(ino)
            if record is None:
                continue
            if lost or (shared and ino in shared) or self._recalled.get(ino, 0) > ticket.at:
                record.exclusive = False
                if lost:
                    self.facts.drop(ino)

    # --- locks --------------------------------------------------------------------------------------------------

    def alone(self, ino: int, now_s: float) -> bool:
        """Whether nobody else sees or changes an inode, now and for a while, before we have acknowledged a recall."""
        if not self.held(now_s) or now_s >= self.until_s - OWN_MARGIN_S:
            return False
        record = self.facts.find(ino)
        return record is not None and record.exclusive

    def unlocked(self, ino: int) -> bool:
        """Whether there are no locks on an inode at the service, as long as it is ours ``alone``."""
        record = self.facts.peek(ino)
        return record is not None and record.unlocked and ino not in self._locking

    def bringing_locks(self, ino: int) -> None:
        """Locks that were decided here are given to the journal now."""
        if ino not in self._bringing:
            self._bringing.add(ino)
            self._lock(ino)

    def brought(self, ino: int) -> None:
        """Nothing of this inode is left in the journal."""
        if ino in self._bringing:
            self._bringing.discard(ino)
            self._unlock(ino)

    def _lock_word(self, ticket: Ticket, ino: int) -> bool:
        """Whether what an answer says of locks is not older than the last change of them that went to the service."""
        return ino not in self._locking and ticket.at > max(self._lock_floor, self._lock_barred.get(ino, 0))

    def _lock(self, ino: int) -> None:
        self._locking[ino] = self._locking.get(ino, 0) + 1
        record = self.facts.peek(ino)
        if record is not None:
            record.unlocked = False

    def _unlock(self, ino: int) -> None:
        self._count += 1
        if len(self._lock_barred) >= BARRED_MAX:
            self._lock_barred.clear()
            self._lock_floor = self._count
        self._lock_barred[ino] = self._count
        left = self._locking[ino] - 1
        if left:
            self._locking[ino] = left
        else:
            del self._locking[ino]

    # --- changes made here --------------------------------------------------------------------------------------

    def changed(self, *inos: int) -> None:
        """These were changed by right of exclusive leases."""
        self._count += 1
        self._here_last = self._count
        here = self._here
        for ino in inos:
            here[ino] = self._count
        if len(here) > HERE_MAX:
            self._here = {}
            self._here_floor = self._count
        self.on_changed(inos)

    def changed_since(self, ticket: Ticket) -> bool:
        """Whether anything was changed by right of an exclusive lease after a request was sent."""
        return ticket.at < self._here_last

    @property
    def changing(self) -> Collection[int]:
        """Inodes with changes of ours under way at the service."""
        return self._changing.keys()

    def overtaken(self, ticket: Ticket, inos: Iterable[int]) -> bool:
        """Whether one of these was changed by right of an exclusive lease after a request was sent."""
        return ticket.at < self._here_last and any(self._overtaken(ticket, ino) for ino in inos)

    def _overtaken(self, ticket: Ticket, ino: int) -> bool:
        return ticket.at < self._here_floor or self._here.get(ino, 0) > ticket.at

    # --- answering from memory ----------------------------------------------------------------------------------

    def attr(self, ino: int, now_s: float) -> Attr | None:
        """Attributes of an inode; None: ask."""
        record = self._record(ino, now_s)
        return self._count_hit(None if record is None else record.attr)

    def name(self, parent: int, name: bytes, now_s: float) -> int | None:
        """What a name means; ABSENT: nothing; None: ask."""
        record = self.facts.find(parent) if self.held(now_s) else None
        if record is None or (parent, name) in self._changing_names:
            return None
        return record.names.get(name, ABSENT if record.complete else None)

    def names(self, ino: int, now_s: float) -> dict[bytes, int] | None:
        """All names of a directory; None: not all are known."""
        record = self._record(ino, now_s)
        return record.names if record is not None and record.complete else None

    def missed(self, parent: int, name: bytes) -> None:
        """Somebody was answered that there is no such name."""
        self.hits += 1
        record = self.facts.peek(parent)
        if record is not None:
            record.missed = name

    def read_out(self, ino: int) -> None:
        """Somebody was shown all names of a directory."""
        record = self.facts.peek(ino)
        if record is not None:
            record.shown = record.complete

    def layout(self, ino: int, start: int, end: int, now_s: float) -> tuple[Attr, list[Extent]] | None:
        """Attributes and all extents that meet [start, end); None: ask."""
        record = self._record(ino, now_s)
        if record is None or record.attr is None or record.layout is None:
            return self._count_hit(None)
        layout = record.layout
        if layout.data_version != record.attr.data_version or start < layout.start or layout.end < end:
            return self._count_hit(None)
        return self._count_hit((record.attr, meeting(layout.extents, start, end)))

    def target(self, ino: int, now_s: float) -> bytes | None:
        """The target of a symbolic link; None: ask."""
        record = self._record(ino, now_s)
        return self._count_hit(None if record is None else record.target)

    def xattr(self, ino: int, name: bytes, now_s: float) -> tuple[bytes | None] | None:
        """An extended attribute, or that it is not set; None: ask."""
        record = self._record(ino, now_s)
        if record is None or (name not in record.xattrs and not record.xattrs_complete):
            return self._count_hit(None)
        return self._count_hit((record.xattrs.get(name),))

    def listing(self, ino: int, after: bytes, limit: int, now_s: float) -> tuple[list[tuple[bytes, Attr]], bool] | None:
        """Names after one, with attributes, and whether nothing follows; None: ask."""
        record = self._record(ino, now_s)
        if record is None or not record.complete or self._names_changing(ino):
            return None
        ordered = record.ordered()
        at = bisect_right(ordered, after)
        page: list[tuple[bytes, Attr]] = []
        for name in ordered[at : at + limit]:
            child = self.facts.peek(record.names[name])
            if child is None or child.attr is None or record.names[name] in self._changing:
                return self._count_hit(None)
            page.append((name, child.attr))
        return self._count_hit((page, at + limit >= len(ordered)))

    def _names_changing(self, ino: int) -> bool:
        return ino in self._changing

    def _record(self, ino: int, now_s: float) -> Record | None:
        if not self.held(now_s) or ino in self._changing:
            return None
        return self.facts.find(ino)

    def _count_hit(self, found: T) -> T:
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    # --- what the kernel may believe ----------------------------------------------------------------------------

    def attr_left_s(self, ino: int, version: int, now_s: float) -> float:
        """How long this version of an inode's attributes may be believed; 0: not at all."""
        record = self._record(ino, now_s)
        known = record is not None and record.attr is not None and record.attr.version == version
        return self.until_s - now_s if known else 0.0

    def name_left_s(self, parent: int, name: bytes, ino: int, now_s: float) -> float:
        """How long a name may be believed to mean this."""
        return self.until_s - now_s if self.name(parent, name, now_s) == ino else 0.0

    # --- changes of our own -------------------------------------------------------------------------------------

    def begin(
        self, inos: Iterable[int], names: Iterable[Name], now_s: float, locks: Collection[int] = ()
    ) -> Change:
        """A mutation that touches these is sent from now on; of ``locks`` it changes the locks."""
        change = Change(frozenset(inos), frozenset(names), self.ask(now_s), frozenset(locks))
        for ino in change.locks:
            self._lock(ino)
        for ino in change.inos:
            self._changing[ino] = self._changing.get(ino, 0) + 1
            record = self.facts.peek(ino)
            if record is not None:
                record.attr = None
        for name in change.names:
            self._changing_names[name] = self._changing_names.get(name, 0) + 1
        return change

    def end(self, change: Change, touched: Iterable[int], *, trusted: bool = True) -> set[int]:
        """It was answered, and turned out to have changed ``touched``. Return the inodes of which the answer is the
        newest word; the others are forgotten, and so are all where the answer is not ``trusted``.

        What is known of its names is for the caller to say.
        """
        self._uncount(change)
        self._count += 1
        newest = set()
        for ino in change.inos.union(touched):
            if trusted and ino in change.inos and self.fresh(change.ticket, ino):
                newest.add(ino)
            else:
                self.facts.drop(ino)
            self._bar(ino)
        return newest

    def doubt(self, change: Change, sequence: int) -> None:
        """Nobody waits for its answer any more; it may be executed until ``certain`` says that it cannot."""
        self._doubtful[sequence] = change
        for ino in change.inos:
            self.facts.drop(ino)

    def disown(self, change: Change) -> None:
        """It belongs to a session that has ended, so it will not be executed any more."""
        self._uncount(change)

    def certain(self, lowest: int) -> None:
        """The service executes nothing with a sequence below ``lowest`` any more."""
        for sequence in [sequence for sequence in self._doubtful if sequence < lowest]:
            change = self._doubtful.pop(sequence)
            self._uncount(change)
            self._count += 1
            for ino in change.inos:
                self.facts.drop(ino)
                self._bar(ino)

    def renounce(self) -> None:
        """The session has ended, and with it everything that was under way."""
        self.term = 0
        self.drop_all()
        self.certain(1 << 63)
        for ino in list(self._bringing):
            self.brought(ino)

    def _uncount(self, change: Change) -> None:
        for ino in change.locks:
            self._unlock(ino)
        for ino in change.inos:
            left = self._changing[ino] - 1
            if left:
                self._changing[ino] = left
            else:
                del self._changing[ino]
        for name in change.names:
            left = self._changing_names[name] - 1
            if left:
                self._changing_names[name] = left
            else:
                del self._changing_names[name]

    def statistics(self) -> dict[str, Any]:
        return {
            "term": self.term,
            "hits": self.hits,
            "misses": self.misses,
            "recalls": self.recalls,
            "drops": self.drops,
            "inodes": len(self.facts),
            "bytes": self.facts.bytes,
            "evicted": self.facts.evicted,
            "doubtful": len(self._doubtful),
        }
