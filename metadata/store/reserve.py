"""Space kept back for the day the disk is full: released, it lets the log finish, compact and remove files."""

from __future__ import annotations

from metadata.store.disk import Disk
from node.wire.errors import Code, FsError


class Reserve:
    """A file that only takes space."""

    def __init__(self, disk: Disk, path: str, size: int) -> None:
        self._disk = disk
        self._path = path
        self._size = size
        self.held = False
        self.regain()

    def regain(self) -> bool:
        """Take the space again where there is at least as much left besides; return whether it is held."""
        directory = self._path.rpartition("/")[0]
        if not self.held:
            present = self._disk.exists(self._path)
            if present or self._disk.free_bytes(directory) >= 2 * self._size:
                self.held = self._take()
        return self.held

    def _take(self) -> bool:
        try:
            file = self._disk.open(self._path, create=True)
            try:
                file.allocate(self._size)
            finally:
                file.close()
            return True
        except FsError as error:
            if error.code != Code.NO_SPACE:
                raise
        self._disk.remove(self._path)
        return False

    def release(self) -> bool:
        """Give the space back to the file system; return whether there was any."""
        held, self.held = self.held, False
        self._disk.remove(self._path)
        return held
