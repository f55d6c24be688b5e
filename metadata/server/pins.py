"""Which incarnation each other member is known by, in one small durable file.

The first introduction counts for ever: ids are never used again, so another incarnation under a known id is a member
that lost its data and with it its word (see ``metadata.server.wire``).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from metadata.store.disk import Disk, read_file, write_file
from node.wire.errors import Code, FsError

FORMAT_VERSION = 1


class _File(msgspec.Struct, frozen=True):
    format: int
    members: dict[int, bytes]


class Pins(Protocol):
    """What a member remembers of its peers."""

    def get(self, member: int) -> bytes:
        """Return the incarnation remembered for ``member``, empty where there is none."""
        ...

    def pin(self, member: int, incarnation: bytes) -> bytes:
        """Remember an incarnation unless one is remembered; return the one that counts. Durable on return."""
        ...


class FilePins:
    """Pins in ``path``, replaced as a whole."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        self._members: dict[int, bytes] = {}
        if disk.exists(path):
            self._members = self._load()

    def _load(self) -> dict[int, bytes]:
        try:
            file = msgspec.msgpack.decode(read_file(self._disk, self._path), type=_File)
        except msgspec.DecodeError as error:
            raise FsError(Code.IO, f"{self._path}: illegible: {error}") from None
        if file.format > FORMAT_VERSION:
            raise FsError(
                Code.UNSUPPORTED_VERSION, f"{self._path}: format {file.format}; this release reads {FORMAT_VERSION}"
            )
        return file.members

    def get(self, member: int) -> bytes:
        return self._members.get(member, b"")

    def pin(self, member: int, incarnation: bytes) -> bytes:
        known = self._members.get(member)
        if known is not None:
            return known
        members = {**self._members, member: incarnation}
        write_file(self._disk, self._path, msgspec.msgpack.encode(_File(FORMAT_VERSION, members)))
        self._members = members
        return incarnation
