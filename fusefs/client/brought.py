"""What the service says of what the journal brought: it replaces what was foretold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusefs.client.leases import Leases
from metadata import api


class Brought:
    """The newest words of the service on inodes that are, or just were, in the journal. ``differs`` is told where they
    are other than what was foretold."""

    def __init__(self, leases: Leases, differs: Callable[[int], object]) -> None:
        self._leases = leases
        self._differs = differs
        self._newest: dict[int, api.Attr] = {}
        self._stored: dict[int, int] = {}  # how much of them is stored, which later operations without data leave
        self._inexact: set[int] = set()  # what was not foretold to the bit

    def clear(self) -> None:
        self._newest.clear()
        self._stored.clear()
        self._inexact.clear()

    def take(self, ops: Sequence[api.Op], results: Sequence[api.Result], *, foretold: bool) -> None:
        """A part of the journal was executed. ``foretold`` false: by a file's own task, and how many commits that makes
        was not known before."""
        facts = self._leases.facts
        for op, result in zip(ops, results):
            if isinstance(op, api.PutLocks):
                continue
            inos = list(api.changed(op, result))
            if not foretold:
                self._inexact.update(inos)
            self._leases.changed(*inos)  # what was asked before the service knew this may be answered without it
            for ino in inos:
                self._newest.pop(ino, None)
            for attr in api.told(result):
                self._newest[attr.ino] = attr
                self._stored[attr.ino] = attr.stored
            facts.brought(op, result, foretold=foretold)

    def settled(self, ino: int) -> None:
        """The service knows everything of this inode: what it says is what was foretold, or better."""
        self._leases.brought(ino)
        attr = self._newest.pop(ino, None)
        stored = self._stored.pop(ino, None)
        inexact = ino in self._inexact
        self._inexact.discard(ino)
        record = self._leases.facts.peek(ino)
        if record is None or record.attr is None or ino in self._leases.changing:
            return
        if attr is None:
            if inexact:
                record.attr = None  # the service has to be asked
            elif stored is not None:
                self._leases.facts.put_stored(ino, stored)
            return
        foretold, record.attr = record.attr, attr
        if record.layout is not None and record.layout.data_version == foretold.data_version:
            record.layout = record.layout._replace(data_version=attr.data_version)
        if attr != foretold:
            self._differs(ino)
