"""The command line of mount.fusefs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fusefs.mount import helper
from fusefs.mount.launch import Announcer, MountRequest
from node.host.exitcodes import UsageError


def test_what_mount_8_passes() -> None:
    call = helper.parse_call(["/c/cluster.toml", "/mnt", "-sv", "-o", "rw,_netdev", "-n", "-o", "timeout=3s"])
    assert (call.source, call.directory) == ("/c/cluster.toml", "/mnt")
    assert call.options == ("rw,_netdev", "timeout=3s")
    assert call.sloppy and call.verbose and not call.fake


@pytest.mark.parametrize("words", [[], ["/c"], ["/c", "/m", "/x"], ["/c", "/m", "-z"], ["/c", "/m", "-N", "1"]])
def test_other_command_lines_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        helper.parse_call(words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["/nowhere/cluster.toml", "/mnt"], "/nowhere/cluster.toml: no such cluster"),
        (["/nowhere/cluster.toml", "/mnt", "-o", "bogus"], "unknown mount option: bogus"),
        (["/nowhere/cluster.toml"], helper.USAGE),
    ],
)
def test_failure_is_32_with_the_reason(
    words: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mount.fusefs", *words])
    assert helper.main() == 32
    assert capsys.readouterr().err == f"mount.fusefs: {reason}\n"


def test_the_command_line_names_the_cluster() -> None:
    command = MountRequest(Path("/c/cluster.toml"), "/mnt", ("ro", "timeout=3s")).command()
    assert command[command.index("--cluster") + 1] == "/c/cluster.toml"
    assert command[-4:] == ["-o", "ro", "-o", "timeout=3s"]


def test_an_announcer_says_one_thing(tmp_path: Path) -> None:
    path = tmp_path / "said"
    announcer = Announcer(os.open(path, os.O_WRONLY | os.O_CREAT))
    announcer.serving()
    announcer.failed("too late")
    assert path.read_bytes() == b"serving\n"
    Announcer(None).failed("nobody listens")
