"""Large buffers are used again instead of being mapped anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
from node.host.memory import keep_freed_buffers
if {kept}:
    assert keep_freed_buffers(buffer_bytes_max=8 << 20, kept_bytes_max=32 << 20)
def stream(count):
    for _ in range(count):
        kept = [bytes(bytearray(1 << 20)) for _ in range(4)]
        del kept
stream(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
stream(32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_freed_buffers_are_used_again() -> None:
    faults = [
        int(subprocess.check_output([sys.executable, "-c", _PROGRAM.format(kept=kept)], text=True))
        for kept in (False, True)
    ]
    assert faults[1] * 4 < faults[0], f"page faults: {faults[0]} without, {faults[1]} with"
