"""python -m tests.golden.raft SCRIPT [--json | --check | --rewrite]"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from tests.golden.raft.script import ScriptError, parse, render
from tests.golden.raft.world import SCRIPT_VERBS, World


def main(arguments: list[str]) -> int:
    """Exit codes: 0 played (and, with --check, as expected), 1 --check found a difference, 2 the script is wrong."""
    parser = argparse.ArgumentParser(prog="tests.golden.raft", description="Replay a scripted interaction of members.")
    parser.add_argument("script", help="file, or - for standard input")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--json", action="store_true", help="after each directive one line: the state of each member")
    mode.add_argument("--check", action="store_true", help="compare with the expected output")
    mode.add_argument("--rewrite", action="store_true", help="put what happens into the script")
    options = parser.parse_args(arguments)
    try:
        source = sys.stdin.read() if options.script == "-" else pathlib.Path(options.script).read_text("utf-8")
        directives = parse(source, SCRIPT_VERBS)
        world = World()
        outputs = []
        for directive in directives:
            outputs.append(world.play(directive))
            if options.json:
                print(json.dumps(world.states()), flush=True)
    except (ScriptError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.rewrite and options.script != "-":
        pathlib.Path(options.script).write_text(render(directives, outputs), "utf-8")
    elif options.check:
        for directive, output in zip(directives, outputs, strict=True):
            if directive.expected is not None and directive.expected != output:
                print(f"line {directive.line}: {directive.text}\nexpected\n{directive.expected}got\n{output}")
                return 1
    elif not options.json:
        print(render(directives, outputs), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
