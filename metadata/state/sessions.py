"""Sessions: who is registered, what was answered to whom, and which inode numbers were given out.

Exactly once: a Submit is (session, sequence). Its answer is kept until the session acknowledges it by raising
``lowest_unacked``, so a repetition is answered and not executed. What is kept is bounded: by a window of sequences
and by bytes. Beyond either the answer is OVERLOADED, nothing is executed, and the same Submit may come again later.
"""

from __future__ import annotations

from msgspec.structs import replace

from metadata.api import OpenSession, Submit
from metadata.state import keys
from metadata.state.records import Session, decode_session, encode
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from node.wire.errors import Code, FsError
from node.wire.limits import (
    INO_UNUSED_MAX,
    RESULT_WINDOW,
    SESSION_RESULT_BYTES_MAX,
    SESSION_TEXT_BYTES_MAX,
    SESSIONS_MAX,
)

NONCE_BYTES = 16


class Sessions:
    """All registered sessions, in memory and in the tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.by_id: dict[int, Session] = {}
        self.live: tuple[int, ...] = ()
        self._dirty: set[int] = set()
        self.reload()

    def reload(self) -> None:
        """Read the sessions from the tables."""
        rows = self._tables.range(keys.SESSION, keys.prefix_end(keys.SESSION))
        self.by_id = {keys.first(key): decode_session(value) for key, value in rows}
        self.live = tuple(self.by_id)
        self._dirty.clear()

    def flush(self) -> None:
        """Write what the entry changed. The end of an entry."""
        for ident in self._dirty:
            self._tables.put(keys.session(ident), encode(self.by_id[ident]))
        self._dirty.clear()

    def get(self, ident: int) -> Session:
        """Return a session. UNKNOWN_SESSION where there is none."""
        session = self.by_id.get(ident)
        if session is None:
            raise FsError(Code.UNKNOWN_SESSION, f"session {ident}")
        return session

    def _set(self, session: Session) -> None:
        self.by_id[session.id] = session
        self._dirty.add(session.id)

    # --- registration -----------------------------------------------------------------------------------------

    def by_nonce(self, nonce: bytes) -> Session | None:
        """Return the session that was opened with this nonce and not ended."""
        value = self._tables.get(keys.nonce(nonce))
        return None if value is None else self.by_id[keys.NUMBER.unpack(value)[0]]

    @staticmethod
    def check_nonce(nonce: bytes) -> None:
        """Raise INVALID for what cannot be a nonce."""
        if len(nonce) != NONCE_BYTES:
            raise FsError(Code.INVALID, f"a nonce of {len(nonce)} bytes")

    def check_open(self, body: OpenSession) -> None:
        """Raise where a session cannot be opened."""
        if max(len(body.host), len(body.mount), len(body.version), len(body.process)) > SESSION_TEXT_BYTES_MAX:
            raise FsError(Code.INVALID, "host, mount, version or process is too long")
        if len(self.by_id) >= SESSIONS_MAX:
            raise FsError(Code.OVERLOADED, f"{SESSIONS_MAX} sessions are open")

    def open(self, body: OpenSession, ident: int, time_ns: int) -> Session:
        """Register a session that ``check_open`` let pass, under an id that nobody had."""
        session = Session(ident, body.nonce, body.host, body.mount, body.version, time_ns, process=body.process)
        self._set(session)
        self._tables.put(keys.nonce(body.nonce), keys.NUMBER.pack(ident))
        self.live = tuple(self.by_id)
        return session

    def raise_fence(self, ident: int) -> Session:
        """Raise a session's fence and return it as it is now."""
        session = self.get(ident)
        session = replace(session, fence=session.fence + 1)
        self._set(session)
        return session

    def end(self, ident: int, turn: Turn) -> bool:
        """End a session; a job frees what it held. Returns whether there was one."""
        session = self.by_id.pop(ident, None)
        if session is None:
            return False
        self._dirty.discard(ident)
        self._tables.delete(keys.session(ident))
        self._tables.delete(keys.nonce(session.nonce))
        self._tables.put(keys.job(keys.JOB_SESSION, ident), b"")
        self.live = tuple(self.by_id)
        turn.ended.append(ident)
        return True

    # --- exactly once -----------------------------------------------------------------------------------------

    def admit(self, submit: Submit) -> bytes | None:
        """Return the recorded answer where this Submit was executed before, None where it is to be executed now.

        Raises UNKNOWN_SESSION, STALE_SEQUENCE, FENCED, RETRY or OVERLOADED; then it must not be executed. What the
        session acknowledges is forgotten here, the only thing a refused Submit may change.
        """
        session = self.get(submit.session)
        if submit.sequence < session.lowest:
            raise FsError(Code.STALE_SEQUENCE, f"{submit.sequence} is below {session.lowest}")
        recorded = self._tables.get(keys.result(session.id, submit.sequence))
        if recorded is not None:
            return recorded
        if submit.fence != session.fence:
            raise FsError(Code.FENCED, f"fence {submit.fence}, now it is {session.fence}", hint=session.fence)
        lowest = max(session.lowest, submit.lowest_unacked)
        if submit.sequence >= lowest + RESULT_WINDOW:
            raise FsError(Code.OVERLOADED, f"{RESULT_WINDOW} results are not acknowledged")
        after = submit.after
        if after >= lowest and self._tables.get(keys.result(session.id, after)) is None:
            raise FsError(Code.RETRY, f"the predecessor {after} has no result yet")
        if lowest > session.lowest:
            session = self._acknowledge(session, lowest)
        if session.result_bytes >= SESSION_RESULT_BYTES_MAX:
            raise FsError(Code.OVERLOADED, f"{session.result_bytes} bytes of results are not acknowledged")
        return None

    def _acknowledge(self, session: Session, lowest: int) -> Session:
        """Forget the results below ``lowest``."""
        low, high = keys.result(session.id, session.lowest), keys.result(session.id, lowest)
        kept = session.result_bytes
        for key, value in self._tables.range(low, high):
            self._tables.delete(key)
            kept -= len(value)
        session = replace(session, lowest=lowest, result_bytes=kept)
        self._set(session)
        return session

    def record(self, submit: Submit, answer: bytes) -> None:
        """Keep the answer of a Submit that was just executed."""
        session = self.by_id[submit.session]
        self._tables.put(keys.result(session.id, submit.sequence), answer)
        self._set(replace(session, result_bytes=session.result_bytes + len(answer)))

    # --- inode numbers given to sessions ----------------------------------------------------------------------

    def check_give(self, ident: int, count: int) -> None:
        """Raise OVERLOADED where a session has too many unused inode numbers already."""
        if self.get(ident).unused + count > INO_UNUSED_MAX:
            raise FsError(Code.OVERLOADED, f"session {ident} has {self.get(ident).unused} unused inode numbers")

    def give(self, ident: int, first: int, count: int) -> None:
        """Give the session the numbers [first, first + count) for Make.ino."""
        self._tables.put(keys.unused(ident, first + count - 1), keys.NUMBER.pack(first))
        session = self.get(ident)
        self._set(replace(session, unused=session.unused + count))

    def use(self, ident: int, ino: int) -> None:
        """Take one number out of what the session was given. INVALID where it is not in there (any more)."""
        low, high = keys.of_session(keys.UNUSED, ident, ino - 1)
        rows = self._tables.range(low, high, 1) if ino < keys.NUMBER_END else []
        first = keys.NUMBER.unpack(rows[0][1])[0] if rows else ino + 1
        if first > ino:
            raise FsError(Code.INVALID, f"session {ident} was not given inode number {ino}, or has used it")
        key, last = rows[0][0], keys.second(rows[0][0])
        if first < ino:
            self._tables.put(keys.unused(ident, ino - 1), keys.NUMBER.pack(first))
        if ino < last:
            self._tables.put(key, keys.NUMBER.pack(ino + 1))
        else:
            self._tables.delete(key)
        session = self.get(ident)
        self._set(replace(session, unused=session.unused - 1))
