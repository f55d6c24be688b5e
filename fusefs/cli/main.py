"""The ``fusefs`` command: its verbs, and the one place where a failure becomes a line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence

import click

from fusefs.cli.options import with_json
from fusefs.cli.output import Failure
from node.host.exitcodes import Exit, describe, exit_code

DEBUG_VARIABLE = "FUSEFS_DEBUG"
INTERRUPTED = 130  # as a shell says it: 128 + SIGINT
COMMANDS = {  # and the modules that have them
    "clone": "cmd_clone", "down": "cmd_down", "fsck": "cmd_fsck", "gc": "cmd_gc", "member": "cmd_member",
    "mount": "cmd_mount", "profile": "cmd_profile", "rebalance": "cmd_rebalance", "scrub": "cmd_rebalance",
    "server": "cmd_server", "status": "cmd_status", "umount": "cmd_umount", "up": "cmd_up",
}  # fmt: skip


class Commands(click.Group):
    """Loads a command when it is called: what the others need takes longer to load than most commands to run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(getattr(importlib.import_module(f"fusefs.cli.{COMMANDS[cmd_name]}"), cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fusefs")
@with_json
def cli() -> None:
    """A distributed filesystem, mounted by FUSE.

    \b
    Exit codes: 0 ok, 1 failed, 2 usage, 3 finished with findings, 4 no quorum or unreachable,
    5 not authorized, 6 not found, 7 integrity.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. Nothing but the interpreter's own end escapes."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(args=words, prog_name="fusefs", standalone_mode=False)
        return int(result) if isinstance(result, int) else Exit.OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has gone; nothing more can be said there, not at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:
        return _fail_with(words, _leaf(error))


def _leaf(error: Exception) -> Exception:
    """Take an error out of the groups that nurseries put it in; of several the first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail_with(words: list[str], error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if isinstance(error, Failure):
        return _fail(words, error.message, error.code)
    if isinstance(error, click.ClickException):
        return _fail(words, error.format_message(), error.exit_code)
    if isinstance(error, click.Abort):
        return INTERRUPTED
    line = describe(error)
    if line is None:
        what = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        line = f"unexpected {what}; {DEBUG_VARIABLE}=1 shows where, the logs are in DIR/log"
    return _fail(words, line, exit_code(error))


def _fail(words: list[str], line: str, code: int) -> int:
    print(f"fusefs: {line}", file=sys.stderr)
    if "--json" in words:
        print(json.dumps({"error": line, "exit": int(code)}))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
