"""CPUs are kept awake while requests arrive, and not longer."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from fusefs.mount.wakeup import QUIET_S, Wakeup


async def test_held_while_requests_arrive(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    device = tmp_path / "latency"
    device.touch()
    arrived = 0
    wakeup = Wakeup(lambda: arrived, str(device))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeup.run)
        await trio.sleep(1)
        assert not wakeup.held and device.read_bytes() == b""
        for _ in range(50):
            arrived += 1
            await trio.sleep(QUIET_S / 2)
        assert wakeup.held and wakeup.holds == 1 and device.read_bytes() == b"\0\0\0\0"
        await trio.sleep(3 * QUIET_S)
        assert not wakeup.held
        arrived += 1
        await trio.sleep(QUIET_S / 2)
        assert wakeup.held and wakeup.holds == 2
        nursery.cancel_scope.cancel()
    assert not wakeup.held


async def test_without_the_device_nothing_is_held(tmp_path: Path) -> None:
    await Wakeup(lambda: 0, str(tmp_path / "none")).run()
