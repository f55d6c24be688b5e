"""The auditor: recomputes from the rows themselves whatever the state keeps as a count, a total or a back reference.

It reads everything, changes nothing and stops at nothing: each contradiction is one line. A sound state has none,
after every entry. Memory is proportional to the number of inodes and blocks.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator

from metadata.api import Extent
from metadata.state import acl
from metadata.state import extents as algebra
from metadata.state import keys
from metadata.state.data import alive
from metadata.state.extents import CHUNK
from metadata.state.logged import name_block
from metadata.lockset import decode_locks, faults
from metadata.state.records import (
    Inode,
    LoggedRecord,
    RootRecord,
    ShardRecord,
    decode_applied,
    decode_group,
    decode_inode,
    decode_introduced,
    decode_logged,
    decode_root,
    decode_row,
    decode_server,
    decode_session,
    decode_shard,
)
from metadata.state.tables import Tables
from metadata.state.validate import TYPES, check_name
from node.wire.errors import FsError
from node.wire.limits import INLINE_EXTENTS_MAX, LOG_DATA_ROW_BYTES, LOG_DATA_STATE_BYTES, RESULT_WINDOW
from node.wire.types import ROOT_INO

_PAGE = 1024
_KNOWN = frozenset(b"DIXLEORUKGBHJSNVWPZM")


def check(tables: Tables) -> list[str]:
    """Return what is wrong with a state, nothing where it is sound."""
    auditor = Auditor(tables)
    auditor.run()
    return auditor.findings


class Auditor:
    """One pass over all rows, then the comparison."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.findings: list[str] = []
        self.inodes: dict[int, Inode] = {}
        self._names: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)  # ino -> (parent, name)
        self._children: defaultdict[int, list[int]] = defaultdict(list)  # directory -> inos
        self._references: Counter[bytes] = Counter()
        self._jobs: set[tuple[int, int, int]] = set()
        self._sessions: set[int] = set()

    def run(self) -> None:
        """Fill ``findings``."""
        root_value, shard_value = self._tables.get(keys.ROOT_KEY), self._tables.get(keys.SHARD_KEY)
        root = RootRecord() if root_value is None else decode_root(root_value)
        shard = ShardRecord() if shard_value is None else decode_shard(shard_value)
        for key, value in self._rows(keys.INODE):
            self.inodes[keys.first(key)] = decode_inode(value)
        self._jobs = {keys.parse_job(key) for key, _ in self._rows(keys.JOB)}
        self._sessions = {keys.first(key) for key, _ in self._rows(keys.SESSION)}
        self._check_keys()
        self._check_root(root)
        self._check_names()
        self._check_links()
        self._check_reach()
        self._check_orphans()
        self._check_data()
        self._check_counts()
        self._check_logged()
        self._check_xattrs()
        self._check_sessions(shard)
        self._check_locks()
        self._check_totals(shard)

    def _say(self, finding: str) -> None:
        self.findings.append(finding)

    def _expect(self, what: str, kept: object, true: object) -> None:
        if kept != true:
            self._say(f"{what} is {kept!r}, should be {true!r}")

    def _rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from self._scan(prefix, keys.prefix_end(prefix))

    def _scan(self, low: bytes, high: bytes) -> Iterator[tuple[bytes, bytes]]:
        while True:
            page = self._tables.range(low, high, _PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            low = page[-1][0] + b"\0"

    def _check_keys(self) -> None:
        at = b"\0"
        while page := self._tables.range(at, b"\xff" * 8, 1):
            prefix = page[0][0][:1]
            if prefix[0] not in _KNOWN:
                self._say(f"rows of an unknown kind {prefix!r}")
            at = keys.prefix_end(prefix)

    # --- the root ---------------------------------------------------------------------------------------------

    def _check_root(self, root: RootRecord) -> None:
        servers = {keys.first(key): decode_server(value) for key, value in self._rows(keys.SERVER)}
        uuids = {key[1:]: keys.NUMBER.unpack(value)[0] for key, value in self._rows(keys.SERVER_UUID)}
        self._expect("the index of store identities", uuids, {s.uuid: number for number, s in servers.items()})
        value = self._tables.get(keys.INTRODUCED_KEY)
        names = [] if value is None else [known.name for known in decode_introduced(value)]
        self._expect("the names of introduced chunk servers", sorted(set(names)), sorted(names))
        groups = [decode_group(value) for _, value in self._rows(keys.GROUP)]
        self._expect("the number of placement groups", root.groups, len(groups))
        for number, group in enumerate(groups):
            marked = (*group.filling, *group.leaving)
            sound = set(marked) <= set(group.servers) and len(set(marked)) == len(marked)
            if not sound or not set(group.servers) <= servers.keys() or not 0 < group.changed <= root.pg_epoch:
                self._say(f"placement group {number} is {group}")
        if servers and max(servers) >= root.next_server:
            self._say(f"chunk server {max(servers)} exists, {root.next_server} is the next")
        applied = self._tables.get(keys.APPLIED_KEY)
        if applied is not None and root.format and decode_applied(applied).index < 1:
            self._say("formatted, but nothing was applied")

    # --- names ------------------------------------------------------------------------------------------------

    def _check_names(self) -> None:
        for key, value in self._rows(keys.DENTRY):
            parent, name = keys.first(key), key[keys.DENTRY_NAME_AT :]
            ino, kind = keys.DENTRY_VALUE.unpack(value)
            where = f"entry {name!r} of directory {parent}"
            try:
                check_name(name)
            except FsError as error:
                self._say(f"{where}: {error}")
            directory, inode = self.inodes.get(parent), self.inodes.get(ino)
            if directory is None or not stat.S_ISDIR(directory.mode) or not directory.nlink:
                self._say(f"{where}: no such directory")
            if inode is None:
                self._say(f"{where}: inode {ino} does not exist")
                continue
            self._expect(f"{where}: type", kind, inode.mode >> 12)
            self._names[ino].append((parent, name))
            self._children[parent].append(ino)

    def _check_links(self) -> None:
        rows: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for key, _ in self._rows(keys.LINK):
            rows[keys.first(key)].append((keys.second(key), key[keys.LINK_NAME_AT :]))
        for ino in rows.keys() - self.inodes.keys():
            self._say(f"link parents of inode {ino}, which does not exist")
        for ino, inode in self.inodes.items():
            names = sorted(self._names.get(ino, ()))
            self._expect(f"inode {ino}: number", inode.ino, ino)
            if stat.S_IFMT(inode.mode) not in TYPES:
                self._say(f"inode {ino}: mode {inode.mode:#o}")
            if stat.S_ISDIR(inode.mode):
                self._check_directory(ino, inode, names)
            else:
                self._expect(f"inode {ino}: nlink", inode.nlink, len(names))
                single = names[0] if len(names) == 1 else (0, b"")
                self._expect(f"inode {ino}: parent", (inode.parent, inode.name), single)
            self._expect(f"inode {ino}: link parents", sorted(rows.get(ino, ())), names if len(names) > 1 else [])

    def _check_directory(self, ino: int, inode: Inode, names: list[tuple[int, bytes]]) -> None:
        children = self._children.get(ino, ())
        self._expect(f"directory {ino}: entries", inode.size, len(children))
        if ino == ROOT_INO:
            self._expect("the root's parent", (inode.parent, inode.name, names), (ROOT_INO, b"", []))
        elif names:
            self._expect(f"directory {ino}: parent", [(inode.parent, inode.name)], names)
        else:
            self._expect(f"directory {ino}: nlink without a name", (inode.nlink, inode.size), (0, 0))
            return
        below = sum(child in self.inodes and stat.S_ISDIR(self.inodes[child].mode) for child in children)
        self._expect(f"directory {ino}: nlink", inode.nlink, 2 + below)

    def _check_reach(self) -> None:
        """Every inode with a name is below the root, so no directory is below itself."""
        reached: set[int] = {ROOT_INO}
        left: list[int] = [ROOT_INO]
        while left:
            for ino in self._children.get(left.pop(), ()):
                if ino not in reached:
                    reached.add(ino)
                    left.append(ino)
        for ino, inode in self.inodes.items():
            if inode.nlink and ino not in reached:
                self._say(f"inode {ino} cannot be reached from the root")

    def _check_orphans(self) -> None:
        holders: Counter[int] = Counter()
        for key, _ in self._rows(keys.ORPHAN):
            session, ino = keys.first(key), keys.second(key)
            holders[ino] += 1
            if ino not in self.inodes or self.inodes[ino].nlink:
                self._say(f"orphan {ino} of session {session} is none")
            self._check_owner(f"orphan {ino}", session)
        for ino, inode in self.inodes.items():
            self._expect(f"inode {ino}: holders", inode.holders, holders.get(ino, 0))
            if not inode.nlink and not inode.holders:
                self._say(f"inode {ino} has neither name nor holder")

    def _check_owner(self, what: str, session: int) -> None:
        if session not in self._sessions and (keys.JOB_SESSION, session, 0) not in self._jobs:
            self._say(f"{what} belongs to session {session}, which does not exist")

    # --- data -------------------------------------------------------------------------------------------------

    def _check_data(self) -> None:
        counts: Counter[int] = Counter()
        stored: Counter[int] = Counter()
        for key, value in self._rows(keys.EXTENTS):
            ino, generation = keys.first(key), int.from_bytes(key[9:13], "big")
            chunk, row = keys.NUMBER.unpack_from(key, keys.EXTENTS_CHUNK_AT)[0], decode_row(value)
            where = f"inode {ino} generation {generation}: row {chunk}"
            self._check_extents(where, row.extents)
            if not row.extents or any(extent.offset // CHUNK != chunk for extent in row.extents):
                self._say(f"{where} is empty or has extents of another chunk")
            inode = self.inodes.get(ino)
            if inode is None or inode.generation != generation:
                if (keys.JOB_DATA, ino, generation) not in self._jobs:
                    self._say(f"{where} belongs to nothing")
                continue
            counts[ino] += 1
            stored[ino] += algebra.covered(row.extents)
            self._check_end(where, inode, alive(inode, chunk, row))
            if row.version > inode.data_version:
                self._say(f"{where} is of the future")
        for ino, inode in self.inodes.items():
            self._check_inline(ino, inode)
            self._expect(f"inode {ino}: rows", inode.rows, counts[ino])
            self._expect(f"inode {ino}: stored", inode.stored, stored[ino] + algebra.covered(inode.extents))

    def _check_inline(self, ino: int, inode: Inode) -> None:
        where = f"inode {ino}"
        self._check_extents(where, inode.extents)
        self._check_end(where, inode, inode.extents)
        if len(inode.extents) > INLINE_EXTENTS_MAX or (inode.rows and inode.extents):
            self._say(f"{where}: {len(inode.extents)} extents inside beside {inode.rows} rows")
        if inode.purges and (not inode.rows or (keys.JOB_PURGE, ino, 0) not in self._jobs):
            self._say(f"{where}: purges without rows or without a job")
        if inode.extents and not stat.S_ISREG(inode.mode):
            self._say(f"{where}: extents, but no file")

    def _check_extents(self, where: str, extents: tuple[Extent, ...]) -> None:
        fault = algebra.well_formed(extents)
        if fault:
            self._say(f"{where}: {fault}")
        if list(extents) != algebra.merge(extents):
            self._say(f"{where}: extents that should be one")
        for extent in extents:
            self._references[extent.block] += 1

    def _check_end(self, where: str, inode: Inode, extents: tuple[Extent, ...]) -> None:
        if extents and extents[-1].offset + extents[-1].length > inode.size:
            self._say(f"{where}: data beyond the size {inode.size}")

    def _check_counts(self) -> None:
        """References equal reachability; candidates are exactly the blocks without any."""
        zero: set[tuple[int, bytes]] = set()
        kept = 0
        for key, value in self._rows(keys.COUNT):
            block, count = key[1:], int.from_bytes(value[:8], "big")
            self._expect(f"block {block.hex()}: references", count, self._references.get(block, 0))
            kept += count > 0
            if not count:
                zero.add((int.from_bytes(value[8:], "big"), block))
            self._expect(f"block {block.hex()}: length of the row", len(value), 8 if count else 16)
        self._expect("the number of referenced blocks", kept, len(self._references))
        candidates = {(keys.first(key), key[keys.NUMBERED_NAME_AT :]) for key, _ in self._rows(keys.CANDIDATE)}
        self._expect("the set of collection candidates", candidates, zero)

    def _check_logged(self) -> None:
        blocks = cost = 0
        for key, plain in self._rows(keys.LOGGED):
            blocks, cost = blocks + 1, cost + len(plain) + LOG_DATA_ROW_BYTES
            if name_block(plain) != key[1:]:
                self._say(f"block {key[1:].hex()}: its bytes in the state are others")
            if not self._references[key[1:]]:
                self._say(f"block {key[1:].hex()} is in the state, and nothing references it")
        value = self._tables.get(keys.LOGGED_KEY)
        record = LoggedRecord() if value is None else decode_logged(value)
        self._expect("the totals of logged blocks", (record.blocks, record.cost), (blocks, cost))
        if cost > LOG_DATA_STATE_BYTES:
            self._say(f"logged blocks of {cost} bytes")

    def _check_xattrs(self) -> None:
        counts: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        lists: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)
        for key, value in self._rows(keys.XATTR):
            ino = keys.first(key)
            counts[ino] += 1
            sizes[ino] += len(key) - keys.NUMBERED_NAME_AT + len(value)
            if key[keys.NUMBERED_NAME_AT :] in (acl.ACCESS, acl.DEFAULT):
                lists[ino][key[keys.NUMBERED_NAME_AT :]] = value
            if ino not in self.inodes and (keys.JOB_XATTRS, ino, 0) not in self._jobs:
                self._say(f"extended attributes of inode {ino}, which does not exist")
        for ino, inode in self.inodes.items():
            flags = acl.HAS_ACCESS * (acl.ACCESS in lists[ino]) | acl.HAS_DEFAULT * (acl.DEFAULT in lists[ino])
            self._expect(f"inode {ino}: access control lists", inode.acl, flags)
            self._check_mode(ino, inode, lists[ino].get(acl.ACCESS))
            kept = (inode.xattr_count, inode.xattr_bytes)
            self._expect(f"inode {ino}: extended attributes", kept, (counts[ino], sizes[ino]))

    def _check_mode(self, ino: int, inode: Inode, value: bytes | None) -> None:
        if value is not None:
            self._expect(f"inode {ino}: permission bits", inode.mode & 0o777, acl.bits_of(acl.decode(value)))

    # --- sessions and totals ----------------------------------------------------------------------------------

    def _check_sessions(self, shard: ShardRecord) -> None:
        results: Counter[int] = Counter()
        unused: Counter[int] = Counter()
        sessions = {keys.first(key): decode_session(value) for key, value in self._rows(keys.SESSION)}
        for key, value in self._rows(keys.RESULT):
            ident, sequence = keys.first(key), keys.second(key)
            results[ident] += len(value)
            self._check_owner(f"result {sequence}", ident)
            session = sessions.get(ident)
            if session is not None and not session.lowest <= sequence < session.lowest + RESULT_WINDOW:
                self._say(f"result {sequence} of session {ident} is outside its window")
        ranges: list[tuple[int, int]] = []
        for key, value in self._rows(keys.UNUSED):
            ident, low, high = keys.first(key), keys.NUMBER.unpack(value)[0], keys.second(key)
            unused[ident] += high - low + 1
            ranges.append((low, high))
            self._check_owner(f"unused numbers from {low}", ident)
        for ident, session in sessions.items():
            self._expect(f"session {ident}: result bytes", session.result_bytes, results[ident])
            self._expect(f"session {ident}: unused inode numbers", session.unused, unused[ident])
        nonces = {key[1:]: keys.NUMBER.unpack(value)[0] for key, value in self._rows(keys.NONCE)}
        self._expect("the index of nonces", nonces, {session.nonce: ident for ident, session in sessions.items()})
        self._check_unused(sorted(ranges), shard)

    def _check_locks(self) -> None:
        for key, value in self._rows(keys.LOCKS):
            ino, row = keys.first(key), decode_locks(value)
            if ino not in self.inodes:
                self._say(f"locks on inode {ino}, which does not exist")
            for one in (*row.held, *(waiter.want for waiter in row.waiting)):
                if one.session not in self._sessions:
                    self._say(f"a lock on inode {ino} of session {one.session}, which does not exist")
            for fault in faults(row):
                self._say(f"locks on inode {ino}: {fault}")

    def _check_unused(self, ranges: list[tuple[int, int]], shard: ShardRecord) -> None:
        last = 0
        for low, high in ranges:
            if not last < low <= high < shard.next_sequence:
                self._say(f"unused inode numbers {low} to {high} overlap others or were never given")
            last = high
        for ino in self.inodes:
            at = bisect_right(ranges, (ino, keys.NUMBER_END)) - 1
            if at >= 0 and ino <= ranges[at][1]:
                self._say(f"inode {ino} exists and is unused")

    def _check_totals(self, shard: ShardRecord) -> None:
        self._expect("the number of inodes", shard.files, len(self.inodes))
        self._expect("the bytes of all files", shard.bytes, sum([inode.stored for inode in self.inodes.values()]))
        if self.inodes and max(self.inodes) >= shard.next_sequence:
            self._say(f"inode {max(self.inodes)} exists, {shard.next_sequence} is the next")
