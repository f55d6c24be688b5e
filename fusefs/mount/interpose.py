"""Loads the extension that adds to pyfuse3 what it has no handler for. Import this before anything imports pyfuse3.

The extension exports libfuse's ``fuse_session_new``; loaded first and visible to all, it is the one that pyfuse3
finds (``_fuseops.c``). Where it is not there, or pyfuse3 came first, a mount works all the same: the kernel then
keeps locks among the programs of this mount, and has its own emulation for the rest.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType


def _load() -> tuple[ModuleType | None, str]:
    if "pyfuse3" in sys.modules:
        return None, "pyfuse3 was loaded before it"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        from fusefs.mount import _fuseops

        return _fuseops, ""
    except ImportError as error:
        return None, str(error)
    finally:
        sys.setdlopenflags(flags)


extension, missing = _load()
"""The module, or None and why."""
