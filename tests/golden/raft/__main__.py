"""python -m tests.golden.raft SCRIPT [--json], or --check | --rewrite SCRIPT..."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from tests.golden.raft.script import ScriptError, parse, render
from tests.golden.raft.world import SCRIPT_VERBS, World


def main(arguments: list[str]) -> int:
    """Exit codes: 0 played (and, with --check, as expected), 1 --check found a difference, 2 a script is wrong."""
    parser = argparse.ArgumentParser(prog="tests.golden.raft", description="Replay scripted interactions of members.")
    parser.add_argument("scripts", nargs="+", metavar="SCRIPT", help="file, or - for standard input")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--json", action="store_true", help="after each directive one line: the state of each member")
    mode.add_argument("--check", action="store_true", help="compare with the expected output")
    mode.add_argument("--rewrite", action="store_true", help="put what happens into the script")
    options = parser.parse_args(arguments)
    failed = False
    for script in options.scripts:
        try:
            failed = play(script, options) or failed
        except (ScriptError, OSError, UnicodeDecodeError) as error:
            print(f"error: {script}: {error}", file=sys.stderr)
            return 2
    return int(failed)


def play(script: str, options: argparse.Namespace) -> bool:
    """Play one script as asked. True where --check found a difference."""
    source = sys.stdin.read() if script == "-" else pathlib.Path(script).read_text("utf-8")
    directives = parse(source, SCRIPT_VERBS)
    world = World()
    outputs = []
    for directive in directives:
        outputs.append(world.play(directive))
        if options.json:
            print(json.dumps(world.states()), flush=True)
    if options.rewrite and script != "-":
        pathlib.Path(script).write_text(render(directives, outputs), "utf-8")
    elif options.check:
        for directive, output in zip(directives, outputs, strict=True):
            if directive.expected is not None and directive.expected != output:
                where = f"{script}:{directive.line}"
                print(f"{where}\n{directive.text}\n--- expected\n{directive.expected}--- got\n{output}", end="")
                return True
    elif not options.json:
        print(render(directives, outputs), end="")
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
