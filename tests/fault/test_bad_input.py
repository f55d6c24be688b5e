"""Real chunk servers and what they must not believe: forged blocks, messages that come twice and late, foreign data."""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from pathlib import Path

import lz4.block
import trio

from node.host.exitcodes import Exit
from node.wire.errors import Code
from node.wire.limits import PIECE_BYTES
from storage import api
from tests.harness import Cluster, need_fuse, rss_anon_bytes, run, seed
from tests.unit.storage.processes import Cluster as Servers
from tests.unit.storage.processes import cluster
from tests.unit.storage.test_block import forge

MIB = 1 << 20
GROWTH_BYTES_MAX = 128 * MIB


def hostile(rng: random.Random) -> tuple[bytes, bytes, int]:
    """A block that is not what it says: (name, frame, length of the plaintext)."""
    plain = rng.randbytes(rng.choice((10, 5000, 200_000)))
    name, frame = api.encode_block(plain)
    what = rng.randrange(6)
    if what == 0:
        frame = frame[: rng.randrange(len(frame))]
    elif what == 1:
        frame += rng.randbytes(rng.choice((1, 70_000)))
    elif what == 2:
        at = rng.randrange(len(frame))
        frame = frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]
    elif what == 3:
        name = rng.randbytes(32)  # of something else
    elif what == 4:  # decompresses to far more than it says
        bomb = lz4.block.compress(bytes(64 * MIB), store_size=False)[: PIECE_BYTES - 1]
        return name, forge(PIECE_BYTES, [(bomb, True)], name), PIECE_BYTES
    else:
        return name, forge(1000, [(rng.randbytes(900), True)], name), 1000
    return name, frame, len(plain)


async def test_nobody_is_harmed_by_forged_blocks_and_late_messages(tmp_path: Path) -> None:
    rng = random.Random(seed("bad input"))
    good = [rng.randbytes(rng.choice((100, 40_000, MIB))) for _ in range(20)]
    async with cluster(tmp_path) as servers:
        puts = [api.Put((api.BlockInfo(api.name_block(data), len(data)),), 5) for data in good]
        frames = [(api.encode_block(data)[1],) for data in good]
        for put, frame in zip(puts, frames):
            assert (await servers.patiently(1, put, frame)).body.codes == (0,)
        before = rss_anon_bytes(servers.processes[1].pid)
        for _ in range(300):
            name, frame, length = hostile(rng)
            reply = await servers.patiently(1, api.Put((api.BlockInfo(name, length),), 5), (frame,))
            assert reply.body.codes[0] in (Code.CORRUPT_BLOCK, Code.PROTOCOL), (name, length)
            assert await _code(servers, name) == Code.MISSING_BLOCK
        names = tuple(api.name_block(data) for data in good)
        status = (await servers.patiently(1, api.GetServerStatus())).body
        async with trio.open_nursery() as nursery:  # twice, in any order, and deletes of long ago among them
            for put, frame in rng.sample(list(zip(puts, frames)) * 3, 3 * len(puts)):
                nursery.start_soon(servers.patiently, 1, put, frame)
            for _ in range(20):
                nursery.start_soon(servers.patiently, 1, api.Delete(names, rng.randrange(5), 0))
                nursery.start_soon(servers.patiently, 1, api.Touch(names, rng.randrange(5)))
        after = (await servers.patiently(1, api.GetServerStatus())).body
        assert (after.blocks, after.used_bytes) == (status.blocks, status.used_bytes)
        assert await servers.get(1, good) == good
        assert rss_anon_bytes(servers.processes[1].pid) - before < GROWTH_BYTES_MAX
        servers.kill(1)
        servers.spawn(1)
        assert await servers.get(1, good) == good


async def _code(servers: Servers, name: bytes) -> int:
    reply = await servers.patiently(1, api.Get((api.BlockRange(name),)))
    return int(reply.body.codes[0])


def test_a_server_with_another_clusters_data_does_not_join(tmp_path: Path) -> None:
    need_fuse()
    ours, theirs = Cluster(tmp_path / "ours"), Cluster(tmp_path / "theirs")
    data = random.Random(1).randbytes(3 * MIB)
    try:
        for made in (ours, theirs):
            made.up()
            mount = made.mount(tmp_path / f"{made.directory.name}-mount")
            (mount / "f").write_bytes(data + made.directory.name.encode())
            made.umount(mount)
            made.down()
        kept = tmp_path / "kept"
        (theirs.directory / "storage-1").rename(kept)
        shutil.copytree(ours.directory / "storage-1", theirs.directory / "storage-1")
        brought = digest(theirs.directory / "storage-1" / "segments")
        server = (sys.executable, "-m", "storage.server", "--name", "storage-1")
        done = run(*server, "--cluster", theirs.config, check=False)
        assert done.returncode == Exit.INTEGRITY, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert "Traceback" not in done.stderr and "cluster" in lines[-1], done.stderr
        assert digest(theirs.directory / "storage-1" / "segments") == brought, "foreign data are left as they are"
        shutil.rmtree(theirs.directory / "storage-1")
        kept.rename(theirs.directory / "storage-1")
        for made in (ours, theirs):
            made.up()
            mount = made.mount(tmp_path / f"{made.directory.name}-mount")
            assert (mount / "f").read_bytes() == data + made.directory.name.encode()
    finally:
        ours.clean()
        theirs.clean()


def digest(directory: Path) -> dict[str, str]:
    """What every file of a directory holds."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
