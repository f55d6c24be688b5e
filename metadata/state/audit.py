"""The state digest: members compare what they hold, slice by slice, at the same place in the log.

An AUDIT entry has every member digest the next few rows of its state, as it is before the entry: the same rows
everywhere, because where to go on is part of the state. What came out is kept in a row too, so it is there again after
a crash. Whoever proposes the next entry has meanwhile heard from the others and names what most of them got. A member
that got something else holds a state that differs from theirs, and must not serve it, nor count as a copy of it.

A whole digest would stall the loop (seconds for a million inodes), and one kept up to date by every change would cost
more than the changes, and would never look at what rests on disk. A slice costs a millisecond and reads what is there.
"""

from __future__ import annotations

import blake3

from metadata.state import keys
from metadata.state.command import Audit, AuditReply
from metadata.state.records import Audited, decode_audited, encode
from metadata.state.tables import Tables
from node.wire.errors import Code, FsError
from node.wire.limits import AUDIT_ROWS_MAX

_END = b"\xff" * 8  # above every key
_DIGEST_BYTES = 16
_LOGGED_END = keys.prefix_end(keys.LOGGED)  # these rows are large; no others come before them
_LOGGED_ROWS = 64


class Auditor:
    """Digests slices of the tables and judges them."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.last = Audited()
        self.reload()

    def reload(self) -> None:
        """Read what is kept from the tables."""
        value = self._tables.get(keys.AUDITED_KEY)
        self.last = Audited() if value is None else decode_audited(value)

    def apply(self, body: Audit, index: int) -> AuditReply:
        """Judge the slice before, digest the next one. STATE_DIFFERS where this member's state is not that of most
        members; then nothing was changed."""
        last = self.last
        if body.digest and body.about == last.index and body.digest != last.digest:
            raise FsError(
                Code.STATE_DIFFERS,
                f"the state differs from that of most members at log index {body.about}: digest "
                f"{last.digest.hex()}, theirs is {body.digest.hex()}",
            )
        digest, rows, following = self._slice(last.following, min(max(body.rows, 1), AUDIT_ROWS_MAX))
        rounds = last.rounds + (not following)
        self.last = Audited(index, digest, following, rounds)
        self._tables.put(keys.AUDITED_KEY, encode(self.last))
        return AuditReply(index, digest, rows, rounds)

    def _slice(self, low: bytes, rows: int) -> tuple[bytes, int, bytes]:
        """Digest at most ``rows`` rows from ``low`` on; return digest, count, and where the next slice begins (empty:
        at the beginning)."""
        if low < _LOGGED_END and self._tables.range(low or b"\0", _LOGGED_END, 1):
            rows = min(rows, _LOGGED_ROWS)
        page = self._tables.range(low or b"\0", _END, rows)
        digest = blake3.blake3(encode((low, page))).digest(length=_DIGEST_BYTES)
        following = page[-1][0] + b"\0" if len(page) == rows else b""
        return digest, len(page), following
