"""Paced removal: what nothing reaches any more, a bounded number of rows for each command of the leader.

A job is a row under J. It is made in the entry that cut its rows loose, and deleted in the entry that removes the
last of them, so a crash at any point leaves exactly what is still to be done.
"""

from __future__ import annotations

from metadata.state import keys
from metadata.state.data import Data
from metadata.state.inodes import Inodes
from metadata.state.tables import Tables
from metadata.state.turn import Turn


class Jobs:
    """The jobs of one shard."""

    def __init__(self, tables: Tables, inodes: Inodes, data: Data) -> None:
        self._tables = tables
        self._inodes = inodes
        self._data = data

    def pending(self) -> bool:
        """Whether anything is to be done."""
        return bool(self._tables.range(keys.JOB, keys.prefix_end(keys.JOB), 1))

    def work(self, budget: int, turn: Turn) -> int:
        """Remove no more than ``budget`` rows; return how many. A finished job counts as one more."""
        done = 0
        while done < budget:
            jobs = self._tables.range(keys.JOB, keys.prefix_end(keys.JOB), 1)
            if not jobs:
                break
            key = jobs[0][0]
            kind, ident, generation = keys.parse_job(key)
            left = budget - done
            if kind == keys.JOB_DATA:
                rows, finished = self._bounded(self._data.drop_rows(ident, generation, left, turn), left)
            elif kind == keys.JOB_PURGE:
                rows, finished = self._purge(ident, left, turn)
            elif kind == keys.JOB_XATTRS:
                rows, finished = self._delete(keys.xattrs(ident), left)
            else:
                assert kind == keys.JOB_SESSION, key
                rows, finished = self._session(ident, left, turn)
            done += rows
            if not finished:
                break
            self._tables.delete(key)
            done += 1
        return done

    @staticmethod
    def _bounded(rows: int, budget: int) -> tuple[int, bool]:
        return rows, rows < budget

    def _purge(self, ino: int, budget: int, turn: Turn) -> tuple[int, bool]:
        inode = self._inodes.find(ino)
        done = 0
        while inode is not None and inode.purges:
            if done == budget:
                return done, False
            done += self._data.purge_step(inode, budget - done, turn)
        return done, True

    def _delete(self, bounds: tuple[bytes, bytes], budget: int) -> tuple[int, bool]:
        rows = self._tables.range(*bounds, budget)
        for key, _ in rows:
            self._tables.delete(key)
        return self._bounded(len(rows), budget)

    def _session(self, ident: int, budget: int, turn: Turn) -> tuple[int, bool]:
        """Release the session's orphans, then forget its results and unused inode numbers."""
        orphans = self._tables.range(*keys.of_session(keys.ORPHAN, ident), budget)
        for key, _ in orphans:
            self._inodes.release(ident, keys.second(key), turn)
        done = len(orphans)
        for prefix in (keys.RESULT, keys.UNUSED):
            if done == budget:
                return done, False
            rows, finished = self._delete(keys.of_session(prefix, ident), budget - done)
            done += rows
            if not finished:
                return done, False
        return done, True
