"""/metrics, /healthz and /readyz over HTTP/1.1: small, read-only, one request a connection."""

from __future__ import annotations

import logging
from collections.abc import Callable

import h11
import trio

from node.host.exitcodes import UsageError
from node.host.metrics import CONTENT_TYPE, Metrics

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 10.0
_CONNECTIONS_MAX = 32
_RECEIVE_BYTES = 4096

Check = Callable[[], "str | None"]  # None: fine; else one line that says why not


async def serve_http(
    address: str,
    metrics: Metrics,
    health: Check,
    ready: Check,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HOST:PORT until cancelled; ``started()`` carries the port. OSError when it is in use, UsageError when
    ``address`` is not HOST:PORT. ``health`` is about this process, ``ready`` about whether it can do its work."""
    host, port = _split(address)
    limit = trio.CapacityLimiter(_CONNECTIONS_MAX)

    def answer(path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE, metrics.render()
        check = {"/healthz": health, "/readyz": ready}.get(path)
        if check is None:
            return 404, "text/plain", b"not found\n"
        problem = check()
        return (200, "text/plain", b"ok\n") if problem is None else (503, "text/plain", f"{problem}\n".encode())

    async def connection(stream: trio.SocketStream) -> None:
        async with stream, limit:
            with trio.move_on_after(_REQUEST_TIMEOUT_S):
                try:
                    await _serve_one(stream, answer)
                except (trio.BrokenResourceError, h11.ProtocolError) as error:
                    log.debug("http: %s", error)

    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(connection, listeners)


async def _serve_one(stream: trio.SocketStream, answer: Callable[[str], tuple[int, str, bytes]]) -> None:
    http = h11.Connection(h11.SERVER)
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(_RECEIVE_BYTES))
        elif isinstance(event, h11.Request):
            break
        else:
            return
    if event.method in (b"GET", b"HEAD"):
        status, kind, body = answer(event.target.partition(b"?")[0].decode("ascii", "replace"))
    else:
        status, kind, body = 405, "text/plain", b"only GET\n"
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
    await stream.send_all(http.send(h11.Response(status_code=status, headers=headers)) or b"")
    if event.method != b"HEAD":
        await stream.send_all(http.send(h11.Data(data=body)) or b"")


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
