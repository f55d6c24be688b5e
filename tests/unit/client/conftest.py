"""A clock that jumps when nothing runs does not wait for threads: with one, no work goes to a thread."""

from __future__ import annotations

import pytest

from fusefs.client import codec


@pytest.fixture(autouse=True)
def _no_thread_to_overtake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "autojump_clock" in request.fixturenames:
        monkeypatch.setattr(codec, "THREAD_BYTES_MIN", 1 << 30)
