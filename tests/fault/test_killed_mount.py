"""A mount ends while the kernel waits for it on both sides: a program that holds a lock, of a directory or a page,
waits for an answer, and a thread of the mount that has a name or a page forgotten waits for that lock. Nobody hangs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusefs.mount import table
from tests.harness import cluster, need_fuse, wait_for

ENDED_S = 10.0

# A filesystem of one directory, whose fsync is never answered; once it has come, the name "f" is to be forgotten.
MOUNT = r"""
import os, stat, sys, threading, trio, pyfuse3
from pathlib import Path
from fusefs.mount import table
from fusefs.mount.guard import Guard
from fusefs.mount.notify import Notifier, fuse_descriptor
from fusefs.mount.options import MountOptions, kernel_options
from fusefs.mount.state import claim

cluster, mount, guarded = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "guarded"

class Operations(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        attr = pyfuse3.EntryAttributes()
        attr.st_ino, attr.st_mode, attr.st_nlink = inode, stat.S_IFDIR | 0o755, 2
        attr.entry_timeout = attr.attr_timeout = 300
        return attr
    async def lookup(self, parent, name, ctx=None):
        return await self.getattr(2)
    async def opendir(self, inode, ctx):
        return 1
    async def fsyncdir(self, fh, datasync):
        notifier = Notifier(fuse_descriptor())
        threading.Thread(target=notifier.forget_names, args=({pyfuse3.ROOT_INODE: [b"f"]},)).start()
        threading.Timer(0.5, lambda: print("stuck", flush=True)).start()
        await trio.sleep_forever()

async def main():
    state = claim(cluster, mount, "")
    words = kernel_options(MountOptions(), source=table.source_of(cluster), privileged=True)
    pyfuse3.init(Operations(), mount, words)
    guard = Guard(table.mounted_at(mount).device) if guarded else None
    print("ready", guard.pid if guard else 0, flush=True)
    await pyfuse3.main()

trio.run(main)
"""
USER = "import os, sys; os.stat(sys.argv[1] + '/f'); os.fsync(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY))"


@pytest.mark.parametrize("guarded", ["guarded", "alone"])
def test_who_waits_for_a_killed_mount_gets_an_error(tmp_path: Path, guarded: str) -> None:
    """Where even the process beside it was killed, whoever wants the mount point next ends what is left."""
    need_fuse()
    mount = tmp_path / "mnt"
    (tmp_path / "run").mkdir()
    mount.mkdir()
    arguments = [str(tmp_path / "cluster.toml"), str(mount), guarded]
    process = subprocess.Popen([sys.executable, "-c", MOUNT, *arguments], stdout=subprocess.PIPE, text=True)
    user = None
    try:
        assert process.stdout is not None
        word, guard = process.stdout.readline().split()
        assert word == "ready"
        if guarded == "guarded":
            os.kill(int(guard), signal.SIGTERM)  # it is deaf to what the group is told
        user = subprocess.Popen([sys.executable, "-c", USER, str(mount)], stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "stuck\n"
        process.kill()
        user.kill()
        if guarded == "alone":
            time.sleep(1.0)
            assert user.poll() is None, "nothing waits for the mount: no power"
            assert table.is_dead(str(mount))
        process.wait(ENDED_S)
        user.wait(ENDED_S)
        wait_for(lambda: not os.path.exists(f"/proc/{guard}") or guard == "0", ENDED_S, "the guard to end")
        assert table.is_dead(str(mount)), "what was mounted there must not be mistaken for an empty directory"
    finally:
        entry = table.mounted_at(str(mount))
        if entry is not None:
            table.abort(entry.device)
            table.unmount(str(mount), lazy=True)
        for one in (process, user):
            if one is not None:
                one.kill()
                one.communicate(timeout=ENDED_S)


MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 65536)
pages = mmap.mmap(fd, 65536)
for number in range(1 << 30):
    pages[number * 100 % 65536] = number % 256
    pages.flush()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_has_mapped_a_file_that_mounts_contend_for_does_not_hang_when_they_end(
    tmp_path: Path, how: signal.Signals
) -> None:
    """Threads of the mounts are having pages dropped nearly all the time, and wait for those that are written back."""
    need_fuse()
    with cluster(tmp_path / "data") as made:
        mounts = [made.mount(tmp_path / name) for name in "ab"]
        mappers = [
            subprocess.Popen([sys.executable, "-c", MAPPER, str(mount / "mapped")], stderr=subprocess.DEVNULL)
            for mount in mounts * 2
        ]
        try:
            time.sleep(3)
            assert all(mapper.poll() is None for mapper in mappers)
            pidfds = [os.pidfd_open(made.mount_pid(mount)) for mount in mounts]
            for pidfd in pidfds:
                signal.pidfd_send_signal(pidfd, how)
            for pidfd in pidfds:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                assert poll.poll(1000 * 4 * ENDED_S), "the process of a mount has not ended"
                os.close(pidfd)
            for mapper in mappers:
                mapper.wait(ENDED_S)
        finally:
            for mapper in mappers:
                mapper.kill()
                mapper.wait(ENDED_S)
