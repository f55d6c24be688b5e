"""Keep the host's CPUs awake while requests arrive, so that a wake-up across CPUs costs no more than one on the same.

An idle CPU of a virtual machine takes 35 microseconds to wake up; a request of a program on one CPU to a mount process
on the other pays it twice. Holding /dev/cpu_dma_latency at 0 has idle CPUs poll instead. That burns them, for the
whole machine, and makes everything else that crosses CPUs faster too; so it is an option, for root.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import trio

from node.host.logging import get_logger

log = get_logger(__name__)

DEVICE = "/dev/cpu_dma_latency"
LOOK_S = 0.02  # how soon after the first request
QUIET_S = 0.1  # without any: let go


class Wakeup:
    """``requests`` counts what has arrived."""

    def __init__(self, requests: Callable[[], int], device: str = DEVICE) -> None:
        self._requests = requests
        self._device = device
        self._fd: int | None = None
        self.holds = 0  # how often it was taken

    @property
    def held(self) -> bool:
        return self._fd is not None

    async def run(self) -> None:
        """Serve until cancelled; returns at once where the device may not be opened."""
        try:
            while self._look():
                seen = self._requests()
                await trio.sleep(LOOK_S if self._fd is None else QUIET_S)
                if self._requests() == seen:
                    self._release()
                elif self._fd is None and not self._hold():
                    return
        finally:
            self._release()

    def _look(self) -> bool:
        if os.access(self._device, os.W_OK):
            return True
        log.warning("the CPUs cannot be kept awake", device=self._device)
        return False

    def _hold(self) -> bool:
        try:
            self._fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._fd, struct.pack("i", 0))
        except OSError as error:
            log.warning("the CPUs cannot be kept awake", device=self._device, error=str(error))
            return False
        self.holds += 1
        return True

    def _release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)  # which ends the request
            self._fd = None
