"""The metadata state machine: what the log means. Deterministic and free of I/O.

How to embed it. Give ``machine.Machine`` the tables (``tables.Tables``, ordered bytes to bytes). For each committed
entry, in order, call ``apply(index, term, data)``; entries of other kinds (a leader's first, membership) are passed
with empty data, so that the applied index follows the log. Answer the proposer with ``Outcome.reply``, or send
``Outcome.encoded`` where it is not empty. ``query`` answers reads from the state as it is; waiting for the right index
is the caller's. After the tables were replaced or rolled back call ``reload``. An exception out of ``apply`` ends the
process.

What it promises, and who tests it:

- Members that applied the same entries have equal tables (``digest``): no clock, no randomness, no order of hashing.
- A request is executed once, whatever is repeated, reordered or lost on the way (``sessions``).
- An operation that fails leaves no trace: everything is checked before anything is written.
- Whatever a client sends gets an answer; sizes, numbers and names are checked in ``validate`` and where they are used.
- Applying one entry is short: what could be long (freeing a large file, ending a session) becomes a job, worked off by
  RECLAIM commands that the leader proposes while ``reclaim_pending`` (``reclaim``, ``data``).
- Every count, total and back reference is what the rows say: ``check`` recomputes all of them.

Where things are: ``keys`` and ``records`` are the schema; ``command`` is the entry; ``machine`` dispatches to ``root``
(sessions, chunk servers, placement, epochs) and ``shard`` (inodes), whose concerns are ``names``, ``files`` over
``data`` over ``extents`` and ``blocks``, ``attributes``, ``inodes``, ``sessions``, ``reclaim``; ``query`` reads.

Known costs: a removal writes one orphan row for each live session; reading a range out of which very many chunks were
just cut steps over their rows until they are reclaimed (about 1 us each).
"""
