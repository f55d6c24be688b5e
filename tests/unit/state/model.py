"""A dumb model of a POSIX file system: nested dictionaries and one list cell for each byte. Slow, obvious, independent.

Each operation returns an error Code, or a value that says what happened. A byte of a file is (block, offset in block),
or None in a hole. Inode numbers are counted as they are made, so that they can be compared directly.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import Optional

from node.wire.errors import Code

Byte = Optional[tuple[bytes, int]]


@dataclass
class Node:
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    entries: dict[bytes, "Node"] = field(default_factory=dict)
    data: list[Byte] = field(default_factory=list)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    holders: set[int] = field(default_factory=set)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Model:
    def __init__(self) -> None:
        self.root = Node(1, stat.S_IFDIR | 0o755)
        self.all: dict[int, Node] = {1: self.root}
        self.next_ino = 2
        self.sessions: set[int] = set()

    # --- looking ---

    def directories(self) -> list[Node]:
        found, left = [], [self.root]
        while left:
            node = left.pop()
            found.append(node)
            left.extend(child for child in node.entries.values() if child.is_dir)
        return found

    def nlink(self, node: Node) -> int:
        if node is self.root or (node.is_dir and self.parent_of(node) is not None):
            return 2 + sum(child.is_dir for child in node.entries.values())
        return sum(child is node for directory in self.directories() for child in directory.entries.values())

    def parent_of(self, node: Node) -> Node | None:
        for directory in self.directories():
            if any(child is node for child in directory.entries.values()):
                return directory
        return None

    def references(self) -> set[bytes]:
        return {cell[0] for node in self.all.values() for cell in node.data if cell is not None}

    def _directory(self, ino: int) -> Node | Code:
        node = self.all.get(ino)
        if node is None:
            return Code.STALE
        if not node.is_dir:
            return Code.NOT_DIRECTORY
        if self.nlink(node) == 0:
            return Code.NOT_FOUND
        return node

    def _file(self, ino: int) -> Node | Code:
        node = self.all.get(ino)
        if node is None:
            return Code.STALE
        if node.is_dir:
            return Code.IS_DIRECTORY
        return node if node.is_file else Code.INVALID

    # --- names ---

    def make(self, parent: int, name: bytes, mode: int, exclusive: bool, target: bytes = b"") -> Node | Code:
        directory = self._directory(parent)
        if isinstance(directory, Code):
            return directory
        old = directory.entries.get(name)
        if old is not None:
            if exclusive or not stat.S_ISREG(mode):
                return Code.EXISTS
            return Code.IS_DIRECTORY if old.is_dir else old
        if stat.S_ISDIR(mode) and directory.mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        gid = directory.gid if directory.mode & stat.S_ISGID else 0
        node = Node(self.next_ino, mode, gid=gid, target=target)
        self.next_ino += 1
        self.all[node.ino] = node
        directory.entries[name] = node
        return node

    def link(self, ino: int, parent: int, name: bytes) -> Node | Code:
        node = self.all.get(ino)
        if node is None:
            return Code.STALE
        if node.is_dir:
            return Code.PERMISSION
        directory = self._directory(parent)
        if isinstance(directory, Code):
            return directory
        if name in directory.entries:
            return Code.EXISTS
        if self.nlink(node) == 0:
            return Code.NOT_FOUND
        directory.entries[name] = node
        return node

    def remove(self, parent: int, name: bytes, want_dir: bool, session: int, vouched: bool) -> Node | Code:
        directory = self._directory(parent)
        if isinstance(directory, Code):
            return directory
        node = directory.entries.get(name)
        if node is None:
            return Code.NOT_FOUND
        if want_dir and not node.is_dir:
            return Code.NOT_DIRECTORY
        if not want_dir and node.is_dir:
            return Code.IS_DIRECTORY
        if node.entries:
            return Code.NOT_EMPTY
        del directory.entries[name]
        self._lost_name(node, session, vouched)
        return node

    def _lost_name(self, node: Node, session: int, vouched: bool) -> None:
        if self.nlink(node) == 0:
            node.holders = self.sessions - ({session} if vouched else set())
            self._maybe_free(node)

    def _maybe_free(self, node: Node) -> None:
        if not node.holders and self.nlink(node) == 0:
            del self.all[node.ino]

    def release(self, session: int, ino: int) -> None:
        node = self.all.get(ino)
        if node is not None and session in node.holders:
            node.holders.discard(session)
            self._maybe_free(node)

    def end_session(self, session: int) -> None:
        self.sessions.discard(session)
        for node in list(self.all.values()):
            self.release(session, node.ino)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, session: int, vouched: bool
    ) -> Node | Code:
        if flags == 3:
            return Code.INVALID
        source, target = self._directory(parent), self._directory(new_parent)
        if isinstance(source, Code):
            return source
        if isinstance(target, Code):
            return target
        node = source.entries.get(name)
        if node is None:
            return Code.NOT_FOUND
        other = target.entries.get(new_name)
        if flags == 1 and other is not None:
            return Code.EXISTS
        if flags == 2 and other is None:
            return Code.NOT_FOUND
        if node is other:
            return node
        if source is not target and (
            self._is_below(target, node) or (flags == 2 and other is not None and self._is_below(source, other))
        ):
            return Code.INVALID
        if flags == 2:
            assert other is not None
            source.entries[name], target.entries[new_name] = other, node
            return node
        if other is not None:
            if node.is_dir and not other.is_dir:
                return Code.NOT_DIRECTORY
            if other.is_dir and not node.is_dir:
                return Code.IS_DIRECTORY
            if other.entries:
                return Code.NOT_EMPTY
        del source.entries[name]
        target.entries[new_name] = node
        if other is not None:
            self._lost_name(other, session, vouched)
        return node

    def _is_below(self, node: Node, ancestor: Node) -> bool:
        if node is ancestor:
            return True
        return any(self._is_below(node, child) for child in ancestor.entries.values() if child.is_dir)

    # --- data ---

    def write(self, ino: int, offset: int, cells: list[Byte]) -> Node | Code:
        node = self._file(ino)
        if isinstance(node, Code):
            return node
        self._grow(node, offset + len(cells))
        node.data[offset : offset + len(cells)] = cells
        return node

    def append(self, ino: int, cells: list[Byte]) -> Node | Code:
        node = self._file(ino)
        return node if isinstance(node, Code) else self.write(ino, len(node.data), cells)

    @staticmethod
    def _grow(node: Node, size: int) -> None:
        node.data.extend([None] * (size - len(node.data)))

    def truncate(self, ino: int, size: int) -> Node | Code:
        node = self._file(ino)
        if isinstance(node, Code):
            return node
        del node.data[size:]
        self._grow(node, size)
        return node

    def punch(self, ino: int, offset: int, length: int) -> Node | Code:
        node = self._file(ino)
        if isinstance(node, Code):
            return node
        end = min(offset + length, len(node.data))
        for at in range(offset, end):
            node.data[at] = None
        return node

    def clone(self, source: int, offset: int, target: int, to: int, length: int) -> Node | Code:
        one, two = self._file(source), self._file(target)
        if isinstance(one, Code):
            return one
        if isinstance(two, Code):
            return two
        if one is two and abs(offset - to) < length:
            return Code.INVALID
        cells = one.data[offset : offset + length]
        return self.write(target, to, cells) if cells else two

    # --- attributes ---

    def chmod(self, ino: int, mode: int) -> Node | Code:
        node = self.all.get(ino)
        if node is None:
            return Code.STALE
        node.mode = stat.S_IFMT(node.mode) | mode
        return node

    def set_xattr(self, ino: int, name: bytes, value: bytes, flags: int) -> Node | Code:
        node = self.all.get(ino)
        if node is None:
            return Code.STALE
        if flags == 1 and name in node.xattrs:
            return Code.EXISTS
        if flags == 2 and name not in node.xattrs:
            return Code.NO_ATTRIBUTE
        node.xattrs[name] = value
        return node

    def remove_xattr(self, ino: int, name: bytes) -> Node | Code:
        node = self.all.get(ino)
        if node is None:
            return Code.STALE
        if name not in node.xattrs:
            return Code.NO_ATTRIBUTE
        del node.xattrs[name]
        return node
