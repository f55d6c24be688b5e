"""What programs of the chaos test note, and what follows from it.

Lines of a journal, which lies on another filesystem:

    done KIND NAME VALUE          it was told that this is durable
    going KIND NAME               about to be removed
    begun KIND NAME VALUE         about to become so
    shown KIND NAME VALUE         everybody has to see it, as long as its mount lives
    failed BEGAN ENDED WHAT       a call, or a program, failed; times are of the monotonic clock
    slow BEGAN ENDED WHAT         it took longer than it should
    missed BEGAN ENDED WHAT       what was shown is not there: only a mount that was hit may lose it
    wrong WHAT                    it was not what it must be, whatever happened
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path

RECORD = 64


class Wrong(Exception):
    """What was found can never have been."""


class Missed(Exception):
    """What was found can be only where a mount was hit."""


class Journal:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)).replace("\n", "|") + "\n").encode())


class Heard:
    """What stands in journals, read on each time."""

    def __init__(self, journals: Iterable[Path]) -> None:
        self._read = dict.fromkeys(journals, 0)
        self._values: dict[tuple[str, str], dict[str, int]] = {}
        self._gone: dict[str, set[str]] = {}
        self.each: dict[tuple[str, str], list[int]] = {}  # all values that were told

    def values(self, what: str, kind: str) -> dict[str, int]:
        """The last value of each name that was told to be so, the newest name last. No name is used again after it was
        removed."""
        for journal in self._read:
            self._hear(journal)
        gone = self._gone.get(kind, ())
        return {name: value for name, value in self._values.get((what, kind), {}).items() if name not in gone}

    def _hear(self, journal: Path) -> None:
        if not journal.exists():
            return
        with open(journal, "rb") as file:
            file.seek(self._read[journal])
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read[journal] += len(data)
        for line in data.decode().splitlines():
            what, kind, *words = line.split(" ", 3)
            if what == "going":
                self._gone.setdefault(kind, set()).add(words[0])
            elif what in ("done", "shown", "begun"):
                self._values.setdefault((what, kind), {})[words[0]] = int(words[1])
                self.each.setdefault((what, kind), []).append(int(words[1]))


class Program:
    """What all programs have. ``number`` is 1 on one mount and 2 on the other."""

    top: Path
    journal: Journal
    heard: Heard
    rng: random.Random
    number: int
    other: int
    serial: int
    checked: bool

    def said(self, what: str, kind: str) -> dict[str, int]:
        return self.heard.values(what, kind)


def record_of(number: int, serial: int) -> bytes:
    head = b"%02d %010d " % (number, serial)
    return head + hashlib.sha256(head).hexdigest()[: RECORD - len(head) - 1].encode() + b"\n"
