"""Flags and values that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from fusefs.cli.create import split_address
from fusefs.cli.output import Output
from node.host.cluster import ClusterConfig
from node.host.exitcodes import UsageError
from node.host.keys import CLIENT_NAME, key_path, load_keys
from node.host.units import parse_size
from node.rpc.security import CurveKeys

F = TypeVar("F", bound=Callable[..., Any])


def as_size(_context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Turn a size such as 4MiB into bytes; a click callback."""
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise UsageError(f"--{parameter.name}: {error}") from None


def as_addresses(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> Mapping[str, str]:
    """Turn NAME=HOST:PORT words into a mapping; a click callback."""
    found = {}
    for value in values:
        name, equals, address = value.partition("=")
        if not name or not equals:
            raise UsageError(f"--address {value}: not NAME=HOST:PORT")
        try:
            split_address(address)
        except ValueError as error:
            raise UsageError(f"--address {value}: {error}") from None
        found[name] = address
    return found


def with_json(command: F) -> F:
    """Give a command ``--json``; read it with output_of."""
    return click.option("--json", "as_json", is_flag=True, expose_value=False, callback=_note_json, is_eager=True,
                        help="Print one JSON document instead of lines.")(command)


def _note_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().ensure_object(dict)["json"] = True


def output_of(context: click.Context) -> Output:
    """Return where the running command speaks."""
    return Output(as_json=bool(context.find_root().ensure_object(dict).get("json")))


def key_option(command: F) -> F:
    """Give a command ``--key``."""
    return click.option("--key", type=click.Path(path_type=Path), metavar="FILE",
                        help="Key of this client; default: keys/client.key beside cluster.toml.")(command)


def client_keys(config: ClusterConfig, cluster_path: Path, given: Path | None) -> CurveKeys | None:
    """Return this client's keys, None where the cluster needs none."""
    if config.transport == "ipc":
        return None
    return load_keys(given or key_path(cluster_path, CLIENT_NAME))
