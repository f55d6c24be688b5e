"""A mount in which one rule is taken out.

    python -m tests.rules.weakened WHAT,... --cluster FILE --mount DIR
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import trio

from tests.harness import Cluster, wait_for

LOCKED_S = 12.0  # from the first time; who is caught within some seconds of that hangs for long enough to tell


def names_under_the_lock() -> None:
    """Rule 5: names are only taken back by a call that waits for the lock of their directory. For some seconds, because
    a thread that waits for that lock cannot even be killed."""
    import fusefs.mount.interpose  # noqa: F401  first: before pyfuse3
    from fusefs.mount.caching import KernelCache

    real, until_s = KernelCache._void, [0.0]

    async def void(self: KernelCache, parents: Iterable[int]) -> bool:
        until_s[0] = until_s[0] or time.monotonic() + LOCKED_S
        return time.monotonic() >= until_s[0] and await real(self, parents)

    KernelCache._void = void  # type: ignore[method-assign]


def told_what_others_want() -> None:
    """No rule: the kernel is also given names to remember in directories that others look at."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.mount.caching import KernelCache
    from metadata.api import Attr

    def made_s(self: KernelCache, parent: int, name: bytes, attr: Attr, *, new: bool) -> tuple[float, float]:
        return self.attr_s(attr) if new else 0.0, self.name_s(parent, name, attr.ino)

    KernelCache._wanted = lambda *_: False  # type: ignore[method-assign]
    KernelCache.made_s = made_s  # type: ignore[method-assign]


def attributes_for_ever() -> None:
    """Rule 6: the kernel believes attributes for longer than the lease."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.mount.caching import KernelCache

    KernelCache.attr_s = lambda self, attr, thread=0: 3600.0  # type: ignore[method-assign]


def pages_stay() -> None:
    """Rule 8: what is dirty in the kernel stays there when the lease is recalled."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.mount.pages import Pages, Patience

    async def drop(self: Pages, inos: Collection[int], patience: Patience) -> None:
        await trio.lowlevel.checkpoint()

    Pages.drop = drop  # type: ignore[method-assign]


def offset_of_the_kernel() -> None:
    """Rule 9: an append goes to where the kernel believes that the file ends."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.client.handles import Handle

    real = Handle.__init__

    def init(self: Handle, file: Any, flags: int) -> None:
        real(self, file, flags & ~os.O_APPEND)

    Handle.__init__ = init  # type: ignore[method-assign]


def open_files_are_let_go() -> None:
    """Rule 14: what is open is let go when it is removed elsewhere."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.client.holds import Holds

    Holds.held = lambda self, ino: False  # type: ignore[method-assign]


def gone_means_missing() -> None:
    """Rule 18: who opens what was removed a moment ago is told that there is no such file."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.client.holds import Holds
    from node.wire.errors import Code, FsError

    real = Holds.enter

    async def enter(self: Holds, ino: int) -> Any:
        try:
            return await real(self, ino)
        except FsError as error:
            raise FsError(Code.NOT_FOUND if error.code is Code.STALE else error.code, error.detail) from None

    Holds.enter = enter  # type: ignore[method-assign]


def late_opens() -> None:
    """No rule: whoever opens a file comes after this mount has let go of what was removed. Every other time, because
    the kernel looks a name up again only once."""
    import fusefs.mount.interpose  # noqa: F401
    from fusefs.client.holds import Holds

    real, opens = Holds.enter, itertools.count()

    async def enter(self: Holds, ino: int) -> Any:
        if next(opens) % 2:
            await self._session.renew()
        return await real(self, ino)

    Holds.enter = enter  # type: ignore[method-assign]


WEAKENINGS: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        names_under_the_lock,
        told_what_others_want,
        attributes_for_ever,
        pages_stay,
        offset_of_the_kernel,
        open_files_are_let_go,
        gone_means_missing,
        late_opens,
    )
}


@contextlib.contextmanager
def weakened(cluster: Cluster, path: Path, *what: str) -> Iterator[Path]:
    """Mount in this way, and unmount at the end."""
    path.mkdir()
    program = [sys.executable, "-m", "tests.rules.weakened", ",".join(what)]
    command = [*program, "--cluster", str(cluster.config), "--mount", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: path.is_mount() or process.poll() is not None, 60, f"a mount without {what}")
        assert process.poll() is None, f"the mount without {what} does not serve"
        yield path
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()  # else others would have to wait for the end of its leases
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
        subprocess.run(["umount", "-l", str(path)], capture_output=True)


def main() -> int:
    for what in sys.argv[1].split(","):
        WEAKENINGS[what]()
    from fusefs.mount.__main__ import main as serve

    return serve(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
