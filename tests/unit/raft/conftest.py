"""Properties are not judged by how long an example takes: the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("raft", deadline=None)
settings.load_profile("raft")
