"""Closing files without waiting: what is dirty goes into the journal, where nobody else can see the file before.

Also the other way round: who needs the bytes of a file at the service, and so all that the journal has of it before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Optional

import trio

from fusefs.client.files import File, Files
from fusefs.client.leases import OWN_MARGIN_S
from fusefs.client.local import Local
from fusefs.client.session import Session
from fusefs.client.writeback import WriteBack
from node.wire.limits import BLOCK_BYTES_MAX


class Closing:
    """Moves dirty bytes from write-back to the journal."""

    def __init__(
        self, session: Session, files: Files, local: Local, writeback: WriteBack, now_ns: Callable[[], int]
    ) -> None:
        self._session = session
        self._journal = session.journal
        self._files = files
        self._local = local
        self._writeback = writeback
        self._now_ns = now_ns
        session.exclusive.surrender = self.surrender
        self._journal.give = self.give
        self._journal.seal_open = self.seal_open
        local.changing = self._changing
        writeback.journaling(self)

    def _changing(self, ino: int) -> bool:
        file = self._files.get(ino)
        return file is not None and file.changing > 0

    def owned(self, file: File) -> bool:
        """Whether bytes that are written to a file now may stay here until they are asked for."""
        session, ino = self._session, file.ino
        # Once the leases have ended nobody waits for what is given back: it might come over what others have written.
        # And what is brought for the recall would wait for a commit under way, whose answer may wait for a recall of
        # the same kind.
        giving = session.recalls.giving(ino) and not file.committing
        if giving and session.leases.left_s(session.now_s()) > OWN_MARGIN_S:
            session.exclusive.given_late()
            file.shown = False
            return True
        if self._local.owned(ino) is None:
            return False
        session.exclusive.changed()
        return True

    def late(self, file: File) -> bool:
        """Whether bytes of mapped pages may stay though no lease says so: the kernel gives them back, and waits."""
        recalls = self._session.recalls
        if not recalls.giving_all and (file.committing or not recalls.giving(file.ino)):
            return False
        self._session.exclusive.given_late()
        file.shown = False
        return True

    def size(self, ino: int) -> Optional[int]:
        """How long a file is that nobody else changes; None where that cannot be told."""
        record = self._local.owned(ino)
        return None if record is None or record.attr is None else record.attr.size

    def close(self, file: File) -> bool:
        """Have what is dirty committed by the journal, soon; False where the caller has to wait for that himself: it
        is not leased exclusively, or there may be no room for it (rule 13)."""
        if self._writeback.bytes > self._session.room_bytes:
            return False
        if not self.seal(file, carry=file.watched):
            return False
        if file.watched:  # somebody is likely to look at it next, and would have to wait until it has arrived
            self._journal.hurry()
        return True

    def seal(self, file: File, *, carry: bool = False) -> bool:
        """Put the dirty bytes of a file into the journal; False where they must be written back otherwise. ``carry``:
        somebody waits until they are durable."""
        if not file.unsealed or not file.dirty:
            return file.journaled > 0
        if file.dead is not None or file.changing:
            return False
        runs = [(piece.offset, piece.end) for piece in file.dirty.pieces()]
        time_ns = self._local.data(file.ino, runs, file.mtime_ns)
        if time_ns is None:
            time_ns = self._untold(file)
        if time_ns is None:
            return False
        self._journal.add_data(file, time_ns, carry=carry)
        return True

    def _untold(self, file: File) -> Optional[int]:
        """The time of a commit of which nothing can be told before it is made, because nothing is remembered of the
        file any more: it was long ago, or the service has changed a name of it. It is ours all the same, and what is
        written to it comes before what is done later."""
        session = self._session
        if not (file.private and self._journal.open and session.leases.left_s(session.now_s()) > OWN_MARGIN_S):
            return None
        session.leases.changed(file.ino)  # what was asked before may be answered without it
        return self._now_ns()

    def seal_open(self, carry: bool, but: Optional[File]) -> int:
        """Put into the journal what was written to files that are still open and is little; of how many there was some.

        Not what streams, or what could not be written back a moment ago: the journal does not wait for that.
        """
        now = trio.current_time()
        sealed = 0
        for file in self._writeback.unwritten():
            if not file.unsealed or file is but or file.dirty.bytes > BLOCK_BYTES_MAX or file.retry_at > now:
                continue
            if file.recalls or file.committing or file.removed or (file.running and not file.journaled):
                continue
            sealed += self.seal(file, carry=carry)
        return sealed

    def behind(self, file: File) -> bool:
        """Whether the journal has to bring something of this file before its data can go; then it hurries."""
        if not self._journal.concerns((file.ino,)):
            return False
        self._journal.hurry()
        return True

    def take(self, file: File) -> bool:
        """Have dirty bytes written back by the journal where that is possible, or has begun."""
        sealed = self.seal(file)
        return self.behind(file) or sealed

    def complete(self, file: File) -> None:
        """What the file's own task is to commit is seen by nobody else: all that was done before has to go before."""
        if file.private:
            self._journal.complete()

    async def settle(self, file: File, deadline: float) -> None:
        """Return when the service knows all that the journal has of this file now, or that has to go before."""
        if file.private or self._journal.concerns((file.ino,)):
            await self._journal.drain(deadline)

    async def surrender(self, inos: Optional[Collection[int]], deadline: float) -> None:
        """Bring everything that was changed here of these inodes (None: of all), and what was before it. From then on
        they are not leased exclusively any more."""
        files = [file for file in self._files if file.exclusive and (inos is None or file.ino in inos)]
        self._writeback.recalled(files)
        try:
            while True:  # once, but for what waited in a buffer of appends
                for file in files:
                    if file.unsealed and file.dirty and file.dead is None:
                        self._journal.add_data(file, self._now_ns(), carry=True)
                await self._journal.drain(deadline)
                await self._writeback.changed(files, deadline)
                if not any(file.unsealed and file.dirty and file.dead is None for file in files):
                    break
            for file in files:
                file.exclusive = file.late = False
        finally:
            self._writeback.given_back(files)

    def give(self, files: Collection[File]) -> tuple[int, ...]:
        """Of these the journal brings all there is with what it sends next. Give the leases back on those that others
        are likely to look at, where the kernel shows nothing of them: then they need not be recalled."""
        recalls = self._session.recalls
        quiet = [f for f in files if not (f.recalls or f.late or f.wishes or (f.unsealed and f.dirty))]
        given = [file for file in quiet if recalls.yields(file.ino)]
        inos = tuple([file.ino for file in given])
        if inos:
            self._session.leases.recall(inos, self._session.now_s())
        for file in given:
            file.exclusive = False
        return inos

    async def sync(self, deadline: float) -> None:
        """Return when everything that was changed here has arrived, as far as it was leased exclusively."""
        for file in self._files:
            self.seal(file)
        await self._journal.drain(deadline)
