"""What commands say: lines or JSON on standard output, progress on a terminal only, failures as one line."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.status import Status

from node.host.exitcodes import Exit

PROGRESS_AFTER_S = 2.0


class Failure(click.ClickException):
    """A command failed in a way it can explain: one line that says what is wrong and what to do, and an exit code."""

    def __init__(self, message: str, code: int = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


class Output:
    """Where one command speaks. With ``as_json`` it prints exactly one JSON document and no lines."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line for a person."""
        if not self.as_json:
            click.echo(text)
            sys.stdout.flush()

    def warning(self, text: str) -> None:
        """Print a line that must be seen, on standard error."""
        click.echo(text, err=True)

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the JSON document, if that was asked for."""
        if self.as_json:
            click.echo(json.dumps(value, indent=2))
            sys.stdout.flush()


class Progress:
    """What is being waited for, shown on a terminal when it takes longer than two seconds. A context manager."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._shown: Status | None = None
        self._timer: threading.Timer | None = None
        self._ended = False

    def update(self, text: str) -> None:
        """Say what is waited for now."""
        with self._lock:
            self._text = text
            if self._shown is not None:
                self._shown.update(text)

    def _show(self) -> None:
        with self._lock:
            if not self._ended:
                self._shown = Console(stderr=True).status(self._text)
                self._shown.start()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._timer = threading.Timer(PROGRESS_AFTER_S, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            if self._shown is not None:
                self._shown.stop()


def count(number: int, noun: str) -> str:
    """Return ``1 member`` or ``3 members``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
