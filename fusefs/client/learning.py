"""What answers teach: from queries, operations and their results to facts. Pure."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Optional

from fusefs.client.facts import ABSENT, NO_END, Layout
from fusefs.client.leases import Change, Leases, Name, Ticket
from metadata import api
from node.wire.errors import Code

_DOTS = (b".", b"..")
LOCK_OPS = (api.Lock, api.Unlock, api.CancelLock, api.PutLocks)

Guess = Callable[[int, bytes], int]  # what a name is believed to mean, 0: unknown


# --- answers to questions ---------------------------------------------------------------------------------------


def named(queries: Sequence[api.Query]) -> Iterator[int]:
    """The inodes that questions name."""
    for query in queries:
        if isinstance(query, (api.Lookup, api.Walk)):
            yield query.parent
        elif not isinstance(query, (api.StatVolume, api.GetBlock)) and query.ino != api.FOUND:
            yield query.ino


def resolved(queries: Sequence[api.Query], results: Sequence[api.Result]) -> tuple[api.Query, ...]:
    """The questions, those about what a look-up found as questions about that."""
    found, said = api.FOUND, []
    for query, result in zip(queries, results):
        if isinstance(query, api.Lookup):
            found = result.attr.ino if isinstance(result, api.AttrResult) else api.FOUND
        elif isinstance(query, api.GetExtents) and query.ino == api.FOUND:
            query = api.GetExtents(found, query.offset, query.length)
        said.append(query)
    return tuple(said)


def subjects(queries: Sequence[api.Query], results: Sequence[api.Result]) -> set[int]:
    """The inodes that answers speak of."""
    inos = set(named(queries))
    for result in results:
        if isinstance(result, api.AttrResult):
            inos.add(result.attr.ino)
        elif isinstance(result, api.Entries):
            inos.update(entry.ino for entry in result.entries)
    return inos


def learn(leases: Leases, ticket: Ticket, queries: Sequence[api.Query], results: Sequence[api.Result]) -> None:
    """Remember granted answers to what was sent with ``ticket``, as far as nothing came between."""
    for query, result in zip(queries, results):
        teach = _TEACHERS.get(type(query))
        if teach is not None:
            teach(leases, ticket, query, result)


def _attr(leases: Leases, ticket: Ticket, attr: api.Attr) -> None:
    if leases.fresh(ticket, attr.ino):
        leases.facts.put_attr(attr)


def _lookup(leases: Leases, ticket: Ticket, query: api.Lookup, result: api.Result) -> None:
    named = query.name not in _DOTS and leases.fresh(ticket, query.parent)
    if isinstance(result, api.AttrResult):
        _attr(leases, ticket, result.attr)
        if named:
            leases.facts.put_name(query.parent, query.name, result.attr.ino)
    elif named and isinstance(result, api.Failed) and result.code == Code.NOT_FOUND:
        leases.facts.put_name(query.parent, query.name, ABSENT)


def _getattr(leases: Leases, ticket: Ticket, query: api.GetAttr, result: api.Result) -> None:
    if isinstance(result, api.AttrResult):
        _attr(leases, ticket, result.attr)


def _readdir(leases: Leases, ticket: Ticket, query: api.ReadDir, result: api.Result) -> None:
    if not isinstance(result, api.Entries):
        return
    facts = leases.facts
    for entry in result.entries:
        if entry.attr is not None and leases.fresh(ticket, entry.ino):
            facts.put_attr(entry.attr)
    if leases.fresh(ticket, query.ino):
        for entry in result.entries:
            facts.put_name(query.ino, entry.name, entry.ino)
        facts.listed(query.ino, query.after, result.entries[-1].name if result.entries else query.after, result.end)


def _readlink(leases: Leases, ticket: Ticket, query: api.ReadLink, result: api.Result) -> None:
    if isinstance(result, api.Target) and leases.fresh(ticket, query.ino):
        leases.facts.put_target(query.ino, result.target)


def _getxattr(leases: Leases, ticket: Ticket, query: api.GetXattr, result: api.Result) -> None:
    if not leases.fresh(ticket, query.ino):
        return
    if isinstance(result, api.Value):
        leases.facts.put_xattr(query.ino, query.name, result.value)
    elif isinstance(result, api.Failed) and result.code == Code.NO_ATTRIBUTE:
        leases.facts.put_xattr(query.ino, query.name, None)


def _extents(leases: Leases, ticket: Ticket, query: api.GetExtents, result: api.Result) -> None:
    if not isinstance(result, api.Extents) or not leases.fresh(ticket, query.ino):
        return
    facts = leases.facts
    facts.put_attr(result.attr)
    start, end, extents = query.offset, query.offset + query.length, result.extents
    if result.more:
        if not extents:
            return
        end = extents[-1].offset + extents[-1].length
    elif end >= result.attr.size:
        end = NO_END
    record = facts.take(query.ino)
    if record.attr is None or record.attr.data_version != result.attr.data_version:
        return
    known = record.layout
    if known is not None and known.data_version == result.attr.data_version:
        if known.start <= start and end <= known.end:
            return
        if known.start <= start <= known.end:  # goes on where the known part ends
            kept = tuple(extent for extent in known.extents if extent.offset + extent.length <= start)
            at = kept[-1].offset + kept[-1].length if kept else 0
            extents = kept + tuple(extent for extent in extents if extent.offset >= at)
            start = known.start
    facts.put_layout(query.ino, Layout(result.attr.data_version, start, end, tuple(extents)))


_TEACHERS: dict[type, Callable[[Leases, Ticket, api.Query, api.Result], None]] = {
    api.Lookup: _lookup,  # type: ignore[dict-item]
    api.GetAttr: _getattr,  # type: ignore[dict-item]
    api.ReadDir: _readdir,  # type: ignore[dict-item]
    api.ReadLink: _readlink,  # type: ignore[dict-item]
    api.GetXattr: _getxattr,  # type: ignore[dict-item]
    api.GetExtents: _extents,  # type: ignore[dict-item]
}


# --- our own mutations ------------------------------------------------------------------------------------------


def touched(ops: Iterable[api.Op], guess: Guess) -> tuple[set[int], set[Name]]:
    """The inodes and the names that operations change, as far as it can be known before."""
    inos: set[int] = set()
    names: set[Name] = set()

    def child(parent: int, name: bytes) -> None:
        inos.add(parent)
        names.add((parent, name))
        ino = guess(parent, name)
        if ino:
            inos.add(ino)

    for op in ops:
        if isinstance(op, (api.Make, api.Remove)):
            child(op.parent, op.name)
        elif isinstance(op, api.Link):
            child(op.parent, op.name)
            inos.add(op.ino)
        elif isinstance(op, api.Rename):
            child(op.parent, op.name)
            child(op.new_parent, op.new_name)
        elif isinstance(op, api.CloneRange):
            inos.update((op.source, op.target))
        elif isinstance(op, api.Release):
            inos.update(op.inos)
        elif not isinstance(op, (api.AllocateInos, *LOCK_OPS)):
            inos.add(op.ino)
    return inos, names


def only_names_and_attributes(ops: Iterable[api.Op]) -> bool:
    """Whether operations leave the data of all files as they are, and their sizes."""
    return all(
        isinstance(op, (api.Make, api.Remove, api.Link, api.Rename, api.SetXattr, api.RemoveXattr))
        or (isinstance(op, api.SetAttr) and op.size is None)
        for op in ops
    )


def locking(ops: Iterable[api.Op]) -> set[int]:
    """The inodes whose locks operations change."""
    return {op.ino for op in ops if isinstance(op, LOCK_OPS)}


class Lesson:
    """What the answer to one mutation teaches. ``granted``: leases came with it, on each inode whose attributes are in
    the results. Where none did, only what is remembered already, and so leased, may be brought up to date.
    """

    def __init__(
        self, leases: Leases, change: Change, ops: Sequence[api.Op], reply: api.SubmitReply, *, granted: bool
    ) -> None:
        self._leases = leases
        self._facts = leases.facts
        self._ticket = change.ticket
        # Success without an inode changed: it answers a repetition, and the results are from long ago
        repeated = not reply.touched and not all(isinstance(result, api.Failed) for result in reply.results)
        # Asked before the end of the change bars what was sent before it: of what it made, its answer is the first word
        made = [result.attr.ino for result in reply.results if isinstance(result, api.Made) and not result.existed]
        self._new = {ino for ino in made if leases.fresh(self._ticket, ino)}
        self._newest = leases.end(change, reply.touched, trusted=not repeated)
        self._granted = granted and not repeated
        self._before = {name: self._known(*name) for name in change.names}
        for op, result in zip(ops, reply.results):
            self._take(op, result)

    @property
    def trusted(self) -> set[int]:
        """The inodes of which the answer is the newest word."""
        return self._newest | self._new

    def _known(self, parent: int, name: bytes) -> Optional[int]:
        record = self._facts.peek(parent)
        if record is None:
            return None
        return record.names.get(name, ABSENT if record.complete else None)

    def _take(self, op: api.Op, result: api.Result) -> None:
        if isinstance(result, api.Failed):
            self._failed(op)
        elif isinstance(op, api.Make) and isinstance(result, api.Made):
            self._made(op, result)
        elif isinstance(op, api.Remove) and isinstance(result, api.Removed):
            self._attr(result.parent)
            self._name(op.parent, op.name, ABSENT)
            self._facts.drop(result.ino)
        elif isinstance(op, api.Rename) and isinstance(result, api.Renamed):
            self._renamed(op, result)
        elif isinstance(result, (api.AttrResult, api.Committed)):
            self._attr(result.attr)
            if isinstance(op, api.Link):
                self._name(op.parent, op.name, op.ino)
            elif isinstance(op, (api.SetXattr, api.RemoveXattr)):
                self._facts.drop_xattrs(op.ino)
            elif isinstance(op, api.SetAttr) and op.mode is not None and result.attr.flags & api.ATTR_ACCESS_ACL:
                self._facts.drop_xattrs(op.ino)  # its access list says what the mode says

    def _failed(self, op: api.Op) -> None:
        if isinstance(op, (api.Make, api.Link, api.Remove)):
            self._facts.drop_name(op.parent, op.name)
        elif isinstance(op, api.Rename):
            self._facts.drop_name(op.parent, op.name)
            self._facts.drop_name(op.new_parent, op.new_name)

    def _made(self, op: api.Make, made: api.Made) -> None:
        attr = made.attr
        self._attr(made.parent)
        self._name(op.parent, op.name, attr.ino)
        if made.existed or not self._granted or attr.ino not in self._new:
            return
        facts = self._facts
        facts.put_attr(attr)
        record = facts.take(attr.ino)
        record.xattrs_complete = not attr.flags  # lists that it was handed down are not in the answer
        if stat.S_ISDIR(attr.mode):
            record.complete = True
        elif stat.S_ISREG(attr.mode) and not op.extents:
            facts.put_layout(attr.ino, Layout(attr.data_version, 0, NO_END, ()))
        elif stat.S_ISLNK(attr.mode):
            facts.put_target(attr.ino, op.target)

    def _renamed(self, op: api.Rename, renamed: api.Renamed) -> None:
        before = self._before.get((op.new_parent, op.new_name))
        if op.flags & api.RENAME_EXCHANGE or before is None or before == renamed.ino:
            # Of an exchange only one inode is told; two names of one inode stay both
            self._facts.drop_name(op.parent, op.name)
        else:
            self._name(op.parent, op.name, ABSENT)
        self._name(op.new_parent, op.new_name, renamed.ino)
        for ino in (renamed.ino, renamed.replaced):
            record = self._facts.peek(ino)
            if record is not None:
                record.attr = None

    def _attr(self, attr: Optional[api.Attr]) -> None:
        if attr is not None and attr.ino in self._newest and (self._granted or attr.ino in self._facts):
            self._facts.put_attr(attr)

    def _name(self, parent: int, name: bytes, ino: int) -> None:
        if parent in self._newest and parent in self._facts:
            self._facts.put_name(parent, name, ino)
        else:
            self._facts.drop_name(parent, name)
