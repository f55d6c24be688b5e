"""Sessions of mounts that died on this host: whoever starts next ends them, so that nobody waits for their leases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from metadata import api
from node.wire.errors import FsError

if TYPE_CHECKING:
    from fusefs.client.session import Session

log = logging.getLogger(__name__)


async def end_dead_sessions(session: Session, gone: Callable[[str], bool]) -> None:
    """End sessions of processes that are ``gone``, as far as this host knows; others are left to expire."""
    try:
        status = (await session.call(api.GetStatus())).body
        for other in status.sessions:
            if other.id != session.id and other.process and gone(other.process):
                log.info("session %d of %s is ended: its process is gone", other.id, other.mount)
                await session.call(api.CloseSession(other.id))
    except FsError as error:
        log.info("sessions of dead processes are left to expire: %s", error)
