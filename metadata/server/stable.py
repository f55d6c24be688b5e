"""The two durable things of a member, kept in step: the log (the truth) and the engine (the applied state).

State, applied index and membership change in one transaction of the engine, which stays open over many entries and is
committed every so many of them or so often: what a crash takes from it, the log still has. So the log may be
compacted only up to what the engine has committed, and a snapshot for others is a view of the last commit.

Everything here is synchronous and runs on the loop's own thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from metadata.raft.messages import ConfChange, ConfState, Entry, HardState, SnapshotMeta
from metadata.server.roster import DIRECTORY_KEY, Directory, decode_directory, encode_directory, following
from metadata.server.trail import Trail
from metadata.state.keys import APPLIED_KEY
from metadata.state.records import Applied, decode_applied
from metadata.state.tables import Engine, SnapshotView, Tables
from metadata.store.log import LogStore, reconcile
from node.host.logging import get_logger
from node.wire.errors import Code, FsError
from node.wire.limits import LOG_TRAILING_ENTRIES, STATE_COMMIT_CHANGES, STATE_COMMIT_ENTRIES, STATE_COMMIT_S

log = get_logger(__name__)

_encode_conf = msgspec.msgpack.Encoder().encode
_decode_conf = msgspec.msgpack.Decoder(ConfState).decode

CONF_KEY = b"Mc"
"""Row of the membership as of the applied index, beside the machine's own row of the applied index (``state.keys``)."""

COMPACT_STEP_ENTRIES = LOG_TRAILING_ENTRIES // 5  # compaction costs a sync: not for less


class Stable:
    """Log and engine of one member."""

    def __init__(
        self,
        store: LogStore,
        engine: Engine,
        *,
        commit_entries: int = STATE_COMMIT_ENTRIES,
        commit_s: float = STATE_COMMIT_S,
        trailing: int = LOG_TRAILING_ENTRIES,
    ) -> None:
        """Bring both together after a start. FsError(IO) where the log does not reach back to the state."""
        self.store = store
        self.engine = engine
        self.full = False  # the last attempt to write met a full disk
        self.commits = 0
        self._commit_entries = commit_entries
        self._commit_s = commit_s
        self._trailing = trailing
        self._trail = Trail()
        self._commit_due_s = 0.0
        self._room_due_s = 0.0
        self._uncommitted = 0
        self._committed = meta_of(engine, store)
        reconcile(store, self._committed)
        self.conf = self._committed.conf
        self.directory = _directory_of(engine)
        self.applied, self._term = self._committed.index, self._committed.term
        if engine.get(CONF_KEY) is None:
            engine.put(CONF_KEY, _encode_conf(self.conf))
            engine.commit()
        store.set_conf(self.conf)
        store.snapshot_source = self._offered

    def _offered(self) -> SnapshotMeta:
        return self._committed

    # --- the log ---------------------------------------------------------------------------------------------

    def append(self, hard: HardState | None, entries: Sequence[Entry], must_sync: bool) -> None:
        """Write; durable on return where ``must_sync``. NO_SPACE: call ``sync`` again when there is room."""
        self.store.append(hard, entries)
        self._trail.appended(entries)
        if must_sync:
            self.store.sync()

    def install(self, meta: SnapshotMeta, loaded: int) -> None:
        """Switch to a snapshot that the engine has loaded: the state durably, the log behind it with the next append
        that syncs, which may meet a full disk and be repeated. A crash between them is completed at the next start."""
        self.engine.switch(loaded)
        self._committed = state = meta_of(self.engine, self.store)
        assert (state.index, state.term) == (meta.index, meta.term), (state, meta)
        self.store.install(state)
        self.conf = state.conf
        self.directory = _directory_of(self.engine)
        self.applied, self._term = state.index, state.term
        self._uncommitted = 0

    # --- the state -------------------------------------------------------------------------------------------

    def set_conf(self, conf: ConfState, change: ConfChange) -> None:
        """The applied entry changed the membership, and with it the directory of members."""
        directory = following(self.directory, change, self.conf, conf)
        if directory != self.directory:
            self.engine.put(DIRECTORY_KEY, encode_directory(directory))
            self.directory = directory
        self.engine.put(CONF_KEY, _encode_conf(conf))
        self.store.set_conf(conf)
        self.conf = conf

    def applied_to(self, index: int, term: int, count: int) -> None:
        """``count`` more entries were applied; the machine has put the applied index with them."""
        self.applied, self._term = index, term
        self._uncommitted += count

    def maintain(self, now_s: float) -> None:
        """Commit the state and compact the log when it is time."""
        if not self._uncommitted:
            self._commit_due_s = now_s + self._commit_s
        elif (
            now_s >= self._commit_due_s
            or self._uncommitted >= self._commit_entries
            or self.engine.dirty >= STATE_COMMIT_CHANGES
        ):
            self.commit()
            self._commit_due_s = now_s + self._commit_s
            self._compact()
        if self.store.full and now_s >= self._room_due_s:
            self._room_due_s = now_s + self._commit_s
            self._make_room()

    def commit(self) -> None:
        """Make the applied state durable. A full disk is survived: the log has everything, the next attempt may do."""
        try:
            self.engine.commit()
        except FsError as error:
            if error.code != Code.NO_SPACE:
                raise
            if not self.full:
                log.error("disk full: the state waits in the log", reason=error.detail)
            self.full = True
            self._uncommitted = 1
            return
        self.commits += 1
        self.full = False
        self._uncommitted = 0
        self._committed = SnapshotMeta(self.applied, self._term, self.conf)

    def _compact(self) -> None:
        droppable = self._committed.index - self._trailing - self.store.first_index()
        if droppable >= min(COMPACT_STEP_ENTRIES, max(self._trailing, 1)):
            self._drop(self._trailing)
        large = min(self._trail.droppable(), self._committed.index)
        if large >= self.store.first_index():
            self._drop(self._committed.index - large)

    def _make_room(self) -> None:
        """The disk is full: drop all of the log that the state holds durably, and take the reserve back if possible."""
        self.commit()
        if self._committed.index >= self.store.first_index():
            self._drop(0)
        if self.store.regain():
            log.info("the log has its reserve of space back")

    def _drop(self, trailing: int) -> None:
        try:
            self.store.compact(self._committed, trailing)
            self._trail.dropped(self._committed.index - trailing)
        except FsError as error:
            if error.code != Code.NO_SPACE:
                raise

    @contextmanager
    def view(self) -> Iterator[tuple[SnapshotMeta, SnapshotView]]:
        """Give the last committed state, and what it is called as a snapshot, for as long as the block lasts."""
        with self.engine.snapshot() as view:
            yield meta_of(view, self.store), view

    def close(self) -> None:
        """Release both. What was not committed is replayed from the log."""
        try:
            self.store.close()
        finally:
            self.engine.close()

    def statistics(self) -> dict[str, float]:
        return {
            "log_first": self.store.first_index(),
            "log_last": self.store.last_index(),
            "state_commits": self.commits,
            "state_uncommitted": self._uncommitted,
            **{f"log_{name}": value for name, value in self.store.statistics().items()},
            **{f"state_{name}": value for name, value in self.engine.statistics().items()},
        }


def _directory_of(state: Tables) -> Directory:
    value = state.get(DIRECTORY_KEY)
    return Directory() if value is None else decode_directory(value)


def meta_of(state: Tables | SnapshotView, store: LogStore) -> SnapshotMeta:
    """Name a state: the applied index in it, and its membership; a new state has the log's first one."""
    raw_applied, raw_conf = state.get(APPLIED_KEY), state.get(CONF_KEY)
    applied = decode_applied(raw_applied) if raw_applied is not None else Applied()
    conf = _decode_conf(raw_conf) if raw_conf is not None else store.initial_state()[1]
    return SnapshotMeta(applied.index, applied.term, conf)
