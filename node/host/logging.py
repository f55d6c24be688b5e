"""Logs that a person can read: one line an event, on stderr, with the traceback where there is one.

Under systemd each line carries its priority (sd-daemon(3)) and no time of its own; the journal has both. Libraries
that use the standard logging come out in the same form.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

import structlog
from structlog.types import EventDict, Processor

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; ``log.info("segment sealed", segment=7)``. Name it after the module."""
    return cast(structlog.stdlib.BoundLogger, structlog.get_logger(name))


def setup_logging(name: str, level: str = "info", *, json: bool = False) -> None:
    """Send every log line of this process to stderr; ``name`` is the process's in each line. May be called again."""
    journal = _is_journal(sys.stderr)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    if json or not journal:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    tail: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    tail += [_process(name), structlog.processors.format_exc_info]
    tail.append(structlog.processors.JSONRenderer(default=str) if json else _render)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=tail))
    if journal:
        handler.setFormatter(_JournalFormatter(handler.formatter))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _process(name: str) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["process"] = name
        return event

    return add


def _render(_logger: Any, _method: str, event: EventDict) -> str:
    """``2026-01-31T12:00:00Z info  fusefs-meta metadata.server: leader elected term=4`` and the traceback below."""
    stamp = event.pop("timestamp", "")
    level = event.pop("level", "")
    process = event.pop("process", "")
    logger = event.pop("logger", "")
    text = event.pop("event", "")
    traces = [event.pop(key) for key in ("exception", "stack") if key in event]
    head = " ".join(part for part in (str(stamp), f"{level:<7}", process) if part)
    fields = "".join(f" {key}={_value(value)}" for key, value in event.items())
    return "\n".join([f"{head} {logger}: {text}{fields}", *map(str, traces)])


def _value(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if isinstance(value, str) and (not text or any(char in text for char in " =\"'\n\t")) else text


class _JournalFormatter(logging.Formatter):
    """Puts the priority before each line, also before those of a traceback."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        assert inner is not None
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in _lines(self._inner.format(record)))


def _lines(text: str) -> Iterator[str]:
    return iter(text.splitlines() or [""])


def _is_journal(stream: TextIO) -> bool:
    """Whether stderr is the journal: systemd names device and inode of what it connected."""
    given = os.environ.get("JOURNAL_STREAM", "")
    fileno: Callable[[], int] | None = getattr(stream, "fileno", None)
    if not given or fileno is None:
        return False
    try:
        status = os.fstat(fileno())
    except (OSError, ValueError):
        return False
    return given == f"{status.st_dev}:{status.st_ino}"
