"""Reading and writing scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass

SEPARATOR = "----"


class ScriptError(Exception):
    """The script itself is wrong: unknown verb or argument, bad syntax, a member that does not exist."""


@dataclass(slots=True)
class Arg:
    key: str
    values: list[str] | None = None  # None: a plain argument


@dataclass(slots=True)
class Command:
    verb: str
    args: list[Arg]

    def plain(self) -> list[str]:
        """Arguments without a value, in order."""
        return [arg.key for arg in self.args if arg.values is None]

    def options(self) -> dict[str, list[str]]:
        return {arg.key: arg.values for arg in self.args if arg.values is not None}


@dataclass(slots=True)
class Directive:
    """One directive; ``text`` is its source up to the separator, ``before`` the comments and blank lines above."""

    line: int
    before: str
    text: str
    command: Command
    input: list[str]
    expected: str | None


_ARG = re.compile(r"""\s*([^\s=()]+)(?:\s*=\s*(\((?P<list>[^()]*)\)|(?P<one>[^\s()]*)))?(?=\s|$)""")


def parse_command(text: str, line: int) -> Command:
    """``verb arg key=value key=(a, b)``. Raises ScriptError."""
    verb, _, rest = text.strip().partition(" ")
    args: list[Arg] = []
    position = 0
    while rest[position:].strip():
        match = _ARG.match(rest, position)
        if match is None:
            raise ScriptError(f"line {line}: cannot read the argument at {rest[position:].strip()!r}")
        position = match.end()
        if match["list"] is not None:
            args.append(Arg(match[1], [v for v in re.split(r"[\s,]+", match["list"].strip()) if v]))
        elif match["one"] is not None:
            args.append(Arg(match[1], [match["one"]]))
        else:
            args.append(Arg(match[1]))
    return Command(verb, args)


def parse(source: str, verbs: frozenset[str]) -> list[Directive]:
    """The directives of a script. A script without any separator is read as bare directives: each line that begins
    with a verb starts one. Raises ScriptError."""
    lines = source.splitlines()
    bare = SEPARATOR not in (line.strip() for line in lines)
    directives: list[Directive] = []
    position = 0
    while position < len(lines):
        start = position
        while position < len(lines) and (not lines[position].strip() or lines[position].lstrip().startswith("#")):
            position += 1
        if position == len(lines):
            break
        first = position
        before = "".join(line + "\n" for line in lines[start:first])
        position += 1
        if bare:
            while position < len(lines) and _is_input(lines[position], verbs):
                position += 1
        else:
            while position < len(lines) and lines[position].strip() != SEPARATOR:
                position += 1
            if position == len(lines):
                raise ScriptError(f"line {first + 1}: no {SEPARATOR} after this directive")
        text = lines[first:position]
        command, body = _join(text, first + 1)
        expected = None
        if not bare:
            expected, position = _expected(lines, position + 1)
        directives.append(Directive(first + 1, before, "\n".join(text), command, body, expected))
    return directives


def _is_input(line: str, verbs: frozenset[str]) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#") and stripped.split()[0] not in verbs


def _join(lines: list[str], number: int) -> tuple[Command, list[str]]:
    """The command, which may go on after a backslash, and the input lines."""
    head = lines[0].strip()
    taken = 1
    while head.endswith("\\") and taken < len(lines):
        head = head[:-1].rstrip() + " " + lines[taken].strip()
        taken += 1
    return parse_command(head, number), [line.strip() for line in lines[taken:] if line.strip()]


def _expected(lines: list[str], position: int) -> tuple[str, int]:
    """Expected output from ``position`` on, and where it ends: at a blank line, or between doubled separators."""
    if position < len(lines) and lines[position].strip() == SEPARATOR:
        start = position + 1
        for end in range(start, len(lines) - 1):
            if lines[end].strip() == SEPARATOR and lines[end + 1].strip() == SEPARATOR:
                return "".join(line + "\n" for line in lines[start:end]), end + 2
        raise ScriptError(f"line {position}: expected output is not closed by two {SEPARATOR}")
    start = position
    while position < len(lines) and lines[position].strip():
        position += 1
    return "".join(line + "\n" for line in lines[start:position]), position


def render(directives: list[Directive], outputs: list[str], tail: str = "") -> str:
    """The script with these outputs."""
    return (
        "".join(f"{d.before}{d.text}\n{SEPARATOR}\n{out}" for d, out in zip(directives, outputs, strict=True)) + tail
    )
