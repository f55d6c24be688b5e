"""One line and one exit code for every failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from fusefs.cli import main as cli_main
from fusefs.cli.main import cli, main
from fusefs.cli.output import Failure, Progress, count
from node.host.exitcodes import ConfigError, Exit
from node.wire.errors import Code, FsError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let ``fusefs fail`` raise what a test wants."""

    def arrange(error: BaseException) -> None:
        @click.command()
        def fail() -> None:
            raise error

        monkeypatch.setitem(cli.commands, "fail", fail)

    return arrange


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FsError(Code.UNAUTHORIZED, "wrong key"), 5, "wrong key"),
        (FsError(Code.FOREIGN_CLUSTER, "another cluster"), 7, "another cluster"),
        (FsError(Code.UNSUPPORTED_VERSION, "newer"), 7, "newer"),
        (FsError(Code.NOT_FOUND, "nothing there"), 6, "nothing there"),
        (FsError(Code.UNREACHABLE, "no leader"), 4, "no leader"),
        (FsError(Code.BUSY, "in use"), 1, "in use"),
        (ConfigError("cluster.toml: client.x: unknown key"), 2, "cluster.toml: client.x: unknown key"),
        (Failure("busy", Exit.FAILED), 1, "busy"),
        (Failure("no", Exit.INTEGRITY), 7, "no"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (ExceptionGroup("", [FsError(Code.UNAUTHORIZED, "wrong key")]), 5, "wrong key"),
        (click.UsageError("no such option"), 2, "no such option"),
    ],
)
def test_failures(
    error: Exception, code: int, line: str, failing: Callable[[Exception], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert main(["fail"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"fusefs: {line}\n"
    assert captured.out == ""


def test_a_bug_is_one_line_with_a_hint(
    failing: Callable[[Exception], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(KeyError("surprise"))
    assert main(["fail"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "surprise" in error and "FUSEFS_DEBUG=1" in error
    monkeypatch.setenv(cli_main.DEBUG_VARIABLE, "1")
    main(["fail"])
    assert "Traceback" in capsys.readouterr().err


def test_interrupts(failing: Callable[[BaseException], None]) -> None:
    for error in (KeyboardInterrupt(), click.Abort()):
        failing(error)
        assert main(["fail"]) == 130


def test_a_failure_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "none"), "--json"]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": f"{tmp_path}/none: no such cluster", "exit": 6}
    assert captured.err.startswith("fusefs: ")


@pytest.mark.parametrize("words", [["up"], ["bogus"], ["up", "d", "--transport", "pigeon"], ["mount", "x"], []])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err


def test_help_and_version_are_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["up", "--help"]) == 0
    assert "--replicas" in capsys.readouterr().out


def test_json_is_understood_before_and_after_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for words in (["--json", "up", a, "--no-start"], ["up", b, "--no-start", "--json"]):
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        assert [member["name"] for member in document["members"]] == ["metadata-1"]


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("waiting") as progress:
        progress.update("still")
    assert capsys.readouterr().err == ""


def test_count() -> None:
    assert (count(1, "member"), count(3, "member")) == ("1 member", "3 members")
