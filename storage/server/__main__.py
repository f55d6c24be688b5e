"""``python -m storage.server`` is ``fusefs-chunk``."""

from __future__ import annotations

import sys

from storage.server.main import main

sys.exit(main())
