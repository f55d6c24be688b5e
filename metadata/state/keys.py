"""The key schema, column by column: what the whole state of a volume is made of.

One ordered map of bytes to bytes. A key is one letter and columns of fixed width, big-endian, so that byte order is
numeric order; a name, where there is one, comes last and needs no terminator. ``ino``, ``session``, ``sequence``,
``chunk``, ``epoch`` take 8 bytes, ``frag`` 2, ``pg`` and ``generation`` 4, ``hash`` 32. Values are msgpack arrays
(see ``records``) except where a layout is given. The longest key is that of a link parent, 272 bytes.

The shard's rows, one set for each group of inode numbers::

    D dir frag name       directory entry    ino (8 bytes), file type (1 byte: mode >> 12)
    I ino                 inode              records.Inode, with up to INLINE_EXTENTS_MAX extents inside
    X ino generation chunk  extents          records.Row: the extents of one BLOCK_BYTES_MAX of a file with many
    L ino parent name     link parent        empty; only while nlink > 1 (else parent and name are in the inode)
    E ino name            extended attribute the value as it is
    O session ino         orphan             empty; a removed inode that the session may have open
    R session sequence    result             what that Submit was answered, encoded SubmitReply
    U session last        unused inode numbers   first (8 bytes); [first, last] was given to the session for Make.ino
    K hash                block references   count (8 bytes); at count 0 also the candidate's epoch (8 bytes)
    G epoch hash          collection candidate   empty; exactly the blocks whose count is 0
    B hash                logged block       its bytes, which came with the entry and are on no chunk server for sure
    H ino                 locks              lockset.LockRow: what is held and who waits
    J kind id generation  reclaim job        empty; rows that nothing reaches any more, worked off in paced steps
    Mv                    shard record       records.ShardRecord: counters and totals
    Mb                    logged record      records.LoggedRecord: totals of the B rows; missing until there was one

The root's rows::

    S session             session            records.Session
    N nonce               session by nonce   session (8 bytes); makes a repeated OpenSession find the first
    V server              chunk server       records.Server
    W uuid                chunk server by store identity   server (8 bytes)
    P pg                  placement group    records.Group: its ordered servers, the epoch that last changed it
    Z slot                slot table         group (8 bytes) of this slot and those above, up to the next row
    Mr                    root record        records.RootRecord: identity, epochs, counters
    Mk                    introductions      records.Introduced, a tuple of them; missing until there was one

The machine's rows::

    Ma                    applied            records.Applied: index, term and time of the last applied entry

The member's row, put by whoever applies changes of membership (``metadata.server.stable``)::

    Mc                    membership         raft ConfState as of the applied index
    Md                    audited            records.Audited: the digest of the last slice, where the next one begins

Reserved, nothing is stored there yet: ``A`` shared ACL records, ``C`` versions kept for snapshots, ``F`` fragments of
a large directory (until then frag is 0), ``Q`` quota usage by quota id, ``T`` trash by day.
"""

from __future__ import annotations

from struct import Struct

DENTRY = b"D"
INODE = b"I"
EXTENTS = b"X"
LINK = b"L"
XATTR = b"E"
ORPHAN = b"O"
RESULT = b"R"
UNUSED = b"U"
COUNT = b"K"
CANDIDATE = b"G"
LOGGED = b"B"
LOCKS = b"H"
JOB = b"J"
SESSION = b"S"
NONCE = b"N"
SERVER = b"V"
SERVER_UUID = b"W"
GROUP = b"P"
SLOT = b"Z"
ACL = b"A"
SNAPSHOT = b"C"
FRAGMENTS = b"F"
QUOTA = b"Q"
TRASH = b"T"

APPLIED_KEY = b"Ma"
AUDITED_KEY = b"Md"
ROOT_KEY = b"Mr"
INTRODUCED_KEY = b"Mk"
SHARD_KEY = b"Mv"
LOGGED_KEY = b"Mb"

RESERVED = (ACL, SNAPSHOT, FRAGMENTS, QUOTA, TRASH)

JOB_DATA = 0  # id: inode, generation: extent rows of that generation, which no inode has any more
JOB_PURGE = 1  # id: inode, generation 0: rows inside the inode's purges
JOB_XATTRS = 2  # id: a freed inode: its extended attributes
JOB_SESSION = 3  # id: an ended session: its orphans, results and unused inode numbers

_ONE = Struct(">cQ").pack
_TWO = Struct(">cQQ").pack
_DENTRY = Struct(">cQH").pack
_EXTENTS = Struct(">cQIQ").pack
_JOB = Struct(">cBQI")
_GROUP = Struct(">cI").pack

NUMBER = Struct(">Q")
DENTRY_VALUE = Struct(">QB")
NUMBER_END = (1 << 64) - 1


def dentry(parent: int, name: bytes) -> bytes:
    return _DENTRY(DENTRY, parent, 0) + name


def dentries(parent: int) -> tuple[bytes, bytes]:
    """Bounds of a directory's entries, all fragments."""
    return _ONE(DENTRY, parent), _DENTRY(DENTRY, parent, 0xFFFF) + b"\xff" * 256


DENTRY_NAME_AT = 11  # where the name begins in a dentry's key


def inode(ino: int) -> bytes:
    return _ONE(INODE, ino)


def extents(ino: int, generation: int, chunk: int) -> bytes:
    return _EXTENTS(EXTENTS, ino, generation, chunk)


EXTENTS_CHUNK_AT = 13  # where the chunk begins in the key of a row of extents


def link(ino: int, parent: int, name: bytes) -> bytes:
    return _TWO(LINK, ino, parent) + name


def links(ino: int) -> tuple[bytes, bytes]:
    """Bounds of an inode's link parents."""
    return _ONE(LINK, ino), _TWO(LINK, ino, NUMBER_END) + b"\xff" * 256


def xattr(ino: int, name: bytes) -> bytes:
    return _ONE(XATTR, ino) + name


def xattrs(ino: int) -> tuple[bytes, bytes]:
    """Bounds of an inode's extended attributes."""
    return _ONE(XATTR, ino), _ONE(XATTR, ino) + b"\xff" * 256


NUMBERED_NAME_AT = 9  # where the name begins after one number: extended attributes, candidates
LINK_NAME_AT = 17  # where the name begins in the key of a link parent


def orphan(session: int, ino: int) -> bytes:
    return _TWO(ORPHAN, session, ino)


def result(session: int, sequence: int) -> bytes:
    return _TWO(RESULT, session, sequence)


def unused(session: int, last: int) -> bytes:
    return _TWO(UNUSED, session, last)


def of_session(prefix: bytes, session: int, after: int = -1) -> tuple[bytes, bytes]:
    """Bounds of a session's rows whose second column is greater than ``after``; NUMBER_END itself never occurs."""
    low = min(max(after + 1, 0), NUMBER_END)
    return _TWO(prefix, session, low), _TWO(prefix, session, NUMBER_END)


def locks(ino: int) -> bytes:
    return _ONE(LOCKS, ino)


def second(key: bytes) -> int:
    """The second number of a key of two."""
    number: int = NUMBER.unpack_from(key, 9)[0]
    return number


def first(key: bytes) -> int:
    """The first number of a key."""
    number: int = NUMBER.unpack_from(key, 1)[0]
    return number


def count(block: bytes) -> bytes:
    return COUNT + block


def candidate(epoch: int, block: bytes) -> bytes:
    return _ONE(CANDIDATE, epoch) + block


def logged(block: bytes) -> bytes:
    return LOGGED + block


def job(kind: int, ident: int, generation: int = 0) -> bytes:
    return _JOB.pack(JOB, kind, ident, generation)


def parse_job(key: bytes) -> tuple[int, int, int]:
    """Return kind, id and generation."""
    _, kind, ident, generation = _JOB.unpack(key)
    return kind, ident, generation


def session(ident: int) -> bytes:
    return _ONE(SESSION, ident)


def nonce(value: bytes) -> bytes:
    return NONCE + value


def server(ident: int) -> bytes:
    return _ONE(SERVER, ident)


def server_uuid(uuid: bytes) -> bytes:
    return SERVER_UUID + uuid


def group(pg: int) -> bytes:
    return _GROUP(GROUP, pg)


def slot(number: int) -> bytes:
    return _ONE(SLOT, number)


def prefix_end(prefix: bytes) -> bytes:
    """The least key above every key that begins with ``prefix``, which does not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
