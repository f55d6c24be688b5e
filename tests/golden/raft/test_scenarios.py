"""Every scenario plays as its file says; the runner refuses what it does not understand.

After a wanted change: ``python -m tests.golden.raft --rewrite tests/golden/raft/testdata/*.txt`` and read the diff.
"""

from __future__ import annotations

import io
import json
import pathlib
import sys
from typing import Any

import pytest

from tests.golden.raft.__main__ import main
from tests.golden.raft.script import ScriptError, parse, parse_command, render
from tests.golden.raft.world import SCRIPT_VERBS, World

SCENARIOS = sorted((pathlib.Path(__file__).parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: pathlib.Path) -> None:
    source = path.read_text("utf-8")
    directives = parse(source, SCRIPT_VERBS)
    assert directives and all(directive.expected is not None for directive in directives)
    world = World()
    assert render(directives, [world.play(directive) for directive in directives]) == source


def test_there_are_enough() -> None:
    assert len(SCENARIOS) >= 40


States = list[list[dict[str, Any]]]


def play(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str) -> States:
    monkeypatch.setattr(sys, "stdin", io.StringIO(script))
    assert main(["-", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in lines]


def test_json_tells_each_member_after_each_directive(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = play(
        capsys, monkeypatch, "add-nodes 3 voters=(1 2 3) index=10\n----\n\ncampaign 2\nstabilize\n----\nwhatever\n"
    )
    assert [len(line) for line in states] == [3, 3]
    assert states[1][0] == {
        "id": 1, "role": "follower", "term": 1, "vote": 2, "lead": 2, "commit": 11, "applied": 11, "last": 11,
    }  # fmt: skip
    assert [member["role"] for member in states[1]] == ["follower", "leader", "follower"]


def test_a_script_without_separators_is_a_list_of_directives(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "# bare\nadd-nodes 1 voters=(1) index=2\ncampaign 1\nstabilize\npropose-conf-change 1\nl2\nstabilize\n"
    assert len(play(capsys, monkeypatch, script)) == 5


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("fly 1\n----\n", "unknown verb 'fly'"),
        ("add-nodes 1 voters=(1) index=2 wings=2\n----\n", "no argument 'wings'"),
        ("add-nodes 1 voters=(1) index=two\n----\n", "'two' is not a number"),
        ("add-nodes 1 voters=(1) index=1\n----\n", "index must be more than 1"),
        ("add-nodes 1 voters=(1) index=2 prevote=maybe\n----\n", "neither true nor false"),
        ("campaign 7\n----\n", "there is no member 7"),
        ("campaign\n----\n", "takes 1 to 1"),
        ("add-nodes 1 voters=(1) index=()\n----\n", "index has no value"),
        ("log-level loud\n----\n", "log levels are"),
        ("stabilize\n", None),
        ("campaign (\n----\n", "cannot read the argument"),
        ("add-nodes 1 voters=(1) index=2\n", None),
        ("add-nodes 1 voters=(1) index=2\n----\nok\n\ncampaign 1\n", "no ---- after"),
        ("add-nodes 1 voters=(1) index=2\n----\n\npropose-conf-change 1\nx7\n----\n", "'x7' is no change"),
        ("add-nodes 1 voters=(1) index=2\n----\n\npropose-conf-change 1 v2=true\n----\n", "no argument 'v2'"),
        ("add-nodes 1 voters=(1) index=2\n----\n\npropose-conf-change 1 v1=true\nl2 l3\n----\n", "one operation"),
        ("add-nodes 1 voters=(1) index=2\n----\n\ndeliver-msgs 1 type=MsgWhat\n----\n", "unknown type"),
        ("add-nodes 1 voters=(1) index=2\n----\n\ndeliver-msgs 1 drop=1\n----\n", "both deliver and drop"),
    ],
)
def test_what_makes_no_sense_is_one_error_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, message: str | None
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(script))
    code = main(["-"])
    errors = capsys.readouterr().err
    assert code == (0 if message is None else 2)
    assert errors.count("\n") == (message is not None) and (message or "") in errors


def test_check_and_rewrite(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("# why\nadd-nodes 1 voters=(1) index=2\n----\nwrong\n\ncampaign 1\n----\nok\n")
    assert main(["--check", str(path)]) == 1
    assert "expected" in capsys.readouterr().out
    assert main(["--rewrite", str(path)]) == 0
    assert path.read_text() == "# why\nadd-nodes 1 voters=(1) index=2\n----\nok\n\ncampaign 1\n----\nok\n"
    assert main(["--check", str(path)]) == 0
    assert main([str(tmp_path / "missing")]) == 2


def test_arguments_are_read_like_the_verbs_mean_them() -> None:
    command = parse_command('add-nodes 3 voters=(1,2, 3) learners=() index = 10 "x"', 1)
    assert command.plain() == ["3", '"x"']
    assert command.options() == {"voters": ["1", "2", "3"], "learners": [], "index": ["10"]}
    with pytest.raises(ScriptError):
        parse_command("add-nodes 3 voters=(1", 1)


def test_expected_output_may_hold_blank_lines() -> None:
    (directive,) = parse("campaign 1\n----\n----\na\n\nb\n----\n----\n", SCRIPT_VERBS)
    assert directive.expected == "a\n\nb\n"
