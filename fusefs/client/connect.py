"""Open a volume over real connections."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Optional

from fusefs.client.options import ClientOptions, Cluster
from fusefs.client.volume import Volume
from node.rpc.security import CurveKeys


def open_volume(
    cluster: Cluster, *, keys: Optional[CurveKeys], mount: str, options: ClientOptions
) -> AbstractAsyncContextManager[Volume]:
    """Connect, register a session and yield a Volume; on leaving, flush (bounded), end the session, disconnect.

    ``keys`` are this client's own (None: a transport without keys). ``mount`` is shown by `fusefs status`. Raises
    FsError UNREACHABLE, TIMEOUT, UNAUTHORIZED, FOREIGN_CLUSTER or UNSUPPORTED_VERSION before it yields.
    """
    raise NotImplementedError
