"""``python -m metadata.server``."""

from __future__ import annotations

import sys

from metadata.server.main import main

sys.exit(main())
