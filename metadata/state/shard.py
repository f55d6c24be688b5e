"""A shard: the machine that holds inodes and names, and executes Submits exactly once.

Within a Submit each operation stands alone: one that fails leaves no trace and the others go on, unless
``stop_on_error`` asks to skip the rest.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

import msgspec

from metadata.api import (
    AllocateInos,
    CancelLock,
    CloneRange,
    Commit,
    Done,
    Failed,
    InoRange,
    Link,
    Lock,
    Make,
    PunchHole,
    PutLocks,
    Release,
    Remove,
    RemoveXattr,
    Rename,
    Result,
    SetAttr,
    SetXattr,
    Submit,
    SubmitReply,
    Unlock,
)
from metadata.state.attributes import Attributes
from metadata.state.blocks import Blocks
from metadata.state.command import AdoptBlocks, BlocksReply, ForgetBlocks, Format, MoveOut, Reclaim, ReclaimReply
from metadata.state.data import Data
from metadata.state.files import Files
from metadata.state.inodes import Inodes
from metadata.state.locks import Locks
from metadata.state.logged import Logged
from metadata.state.names import Names
from metadata.state.reclaim import Jobs
from metadata.state.records import Inode
from metadata.state.sessions import Sessions
from metadata.state.tables import Tables
from metadata.state.turn import Turn
from metadata.state.validate import PERMISSIONS, check_owner, check_submit
from node.wire.errors import Code, FsError
from node.wire.limits import INO_RANGE_MAX, RECLAIM_BLOCKS_MAX, RECLAIM_ROWS_MAX, RELEASE_INOS_MAX, SUBMIT_WORK_MAX
from node.wire.types import ROOT_INO

_SKIPPED = Failed(Code.SKIPPED, "an operation before it failed")
OP_TIME_MAX_NS = 1 << 62  # as of an entry
_DETAIL_MAX = 200  # characters of an error that are kept with a result

encode_reply = msgspec.msgpack.Encoder().encode
decode_reply = msgspec.msgpack.Decoder(SubmitReply).decode


class Shard:
    """Puts the concerns together and applies shard commands."""

    def __init__(self, tables: Tables, sessions: Sessions) -> None:
        self.sessions = sessions
        self.logged = Logged(tables)
        self.blocks = Blocks(tables, self.logged)
        self.inodes = Inodes(tables, self.blocks)
        self.data = Data(tables, self.inodes, self.blocks)
        self.files = Files(self.inodes, self.data, self.logged)
        self.attributes = Attributes(tables, self.inodes, self.files)
        self.names = Names(tables, self.inodes, self.data, sessions, self.attributes)
        self.locks = Locks(tables, self.inodes)
        self.jobs = Jobs(tables, self.inodes, self.data)
        self._operations: dict[type[msgspec.Struct], Callable[[Any, Turn], Result]] = {
            Make: self.names.make,
            Link: self.names.link,
            Remove: self.names.remove,
            Rename: self.names.rename,
            SetAttr: self.attributes.set_attr,
            Commit: self.files.commit,
            SetXattr: self.attributes.set_xattr,
            RemoveXattr: self.attributes.remove_xattr,
            Release: self._release,
            AllocateInos: self._allocate,
            PunchHole: self.files.punch,
            CloneRange: self.files.clone,
            Lock: self.locks.lock,
            Unlock: self.locks.unlock,
            CancelLock: self.locks.cancel,
            PutLocks: self.locks.put_locks,
        }
        self.handlers: dict[type[msgspec.Struct], Callable[[Any, Turn], msgspec.Struct]] = {
            Reclaim: self.reclaim,
            ForgetBlocks: self.forget_blocks,
            AdoptBlocks: self.adopt_blocks,
            MoveOut: self.move_out,
        }

    def reload(self) -> None:
        """Forget everything in memory: the tables were replaced."""
        self.inodes.reload()
        self.locks.reload()
        self.logged.reload()

    def flush(self) -> None:
        """Write what the entry changed. The end of an entry."""
        self.inodes.flush()
        self.logged.flush()

    def format(self, body: Format, turn: Turn) -> None:
        """Make the root directory."""
        now = turn.time_ns
        ino = self.inodes.allocate()
        assert ino == ROOT_INO, "the shard has given numbers before it was formatted"
        self.inodes.add(
            Inode(
                ino=ino,
                mode=stat.S_IFDIR | body.mode,
                nlink=2,
                uid=body.uid,
                gid=body.gid,
                rdev=0,
                size=0,
                stored=0,
                atime_ns=now,
                mtime_ns=now,
                ctime_ns=now,
                btime_ns=now,
                version=1,
                data_version=1,
                parent=ino,
            )
        )

    @staticmethod
    def check_format(body: Format) -> None:
        """Raise where no root directory can be made of this."""
        check_owner(body.uid)
        check_owner(body.gid)
        if body.mode != body.mode & PERMISSIONS:
            raise FsError(Code.INVALID, f"mode {body.mode:#o}")

    # --- Submit -----------------------------------------------------------------------------------------------

    def submit(self, submit: Submit, turn: Turn) -> tuple[SubmitReply, bytes]:
        """Execute, or find what was answered before; return the reply and its encoding. Raises FsError, and then
        nothing was executed or recorded."""
        check_submit(submit)
        recorded = self.sessions.admit(submit)
        if recorded is not None:
            return decode_reply(recorded), recorded
        self._check_bases(submit)
        results: list[Result] = []
        operations = self._operations
        for number, op in enumerate(submit.ops):
            if submit.times_ns:
                turn.time_ns = min(max(submit.times_ns[number], 1), OP_TIME_MAX_NS)
            try:
                if turn.work > SUBMIT_WORK_MAX:
                    raise FsError(Code.OVERLOADED, "this Submit did enough: send the rest in another")
                results.append(operations[type(op)](op, turn))
            except FsError as error:
                results.append(Failed(error.code, error.detail[:_DETAIL_MAX]))
                if submit.stop_on_error:
                    results.extend([_SKIPPED] * (len(submit.ops) - len(results)))
                    break
        reply = SubmitReply(tuple(results))
        answer = encode_reply(reply)
        self.sessions.record(submit, answer)
        return reply, answer

    def _check_bases(self, submit: Submit) -> None:
        """Refuse a journal that was written on another state than this one (rule 1)."""
        for ino, version in submit.bases:
            inode = self.inodes.find(ino)
            if inode is None or inode.data_version != version:
                found = "gone" if inode is None else f"at version {inode.data_version}"
                raise FsError(Code.VERSION_MISMATCH, f"inode {ino} is {found}, the journal begins at {version}")

    def _release(self, op: Release, turn: Turn) -> Done:
        if len(op.inos) > RELEASE_INOS_MAX:
            raise FsError(Code.TOO_BIG, f"{len(op.inos)} inodes in one Release")
        turn.work += len(op.inos)
        for ino in op.inos:
            self.inodes.release(turn.session, ino, turn)
        return Done()

    def _allocate(self, op: AllocateInos, turn: Turn) -> InoRange:
        if not 1 <= op.count <= INO_RANGE_MAX:
            raise FsError(Code.INVALID, f"{op.count} inode numbers")
        self.sessions.check_give(turn.session, op.count)
        first = self.inodes.allocate(op.count)
        self.sessions.give(turn.session, first, op.count)
        return InoRange(first, op.count)

    # --- the leader's housekeeping ----------------------------------------------------------------------------

    def reclaim(self, body: Reclaim, turn: Turn) -> ReclaimReply:
        rows = self.jobs.work(min(max(body.rows, 1), RECLAIM_ROWS_MAX), turn)
        return ReclaimReply(rows, self.jobs.pending())

    def forget_blocks(self, body: ForgetBlocks, turn: Turn) -> BlocksReply:
        _check_blocks(body.blocks)
        return BlocksReply(self.blocks.forget(body.blocks, body.epoch))

    def adopt_blocks(self, body: AdoptBlocks, turn: Turn) -> BlocksReply:
        _check_blocks(body.blocks)
        return BlocksReply(self.blocks.adopt(body.blocks, turn.gc_epoch))

    def move_out(self, body: MoveOut, turn: Turn) -> BlocksReply:
        """The touch that these blocks were put with must count now, as for a commit that names them."""
        _check_blocks(body.blocks)
        turn.check_touch(body.touch_epoch)
        moved = [block for block in body.blocks if not turn.changed(block, body.pg_epoch)]
        return BlocksReply(sum([self.logged.drop(block) for block in moved]))


def _check_blocks(blocks: tuple[bytes, ...]) -> None:
    if len(blocks) > RECLAIM_BLOCKS_MAX:
        raise FsError(Code.TOO_BIG, f"{len(blocks)} blocks in one command")
