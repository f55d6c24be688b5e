"""cluster.toml as it is written: ipc paths inside its directory relative to it, so that the directory can be moved; and
what commands that change it do to processes."""

from __future__ import annotations

import functools

import msgspec

from fusefs.cli.layout import Layout
from fusefs.cli.output import Failure
from fusefs.cli.processes import Ending
from node.host.cluster import ClusterConfig
from node.wire.limits import STOP_FLUSH_S

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
NAME_LENGTH_MAX = 60


def relative(layout: Layout, config: ClusterConfig) -> ClusterConfig:
    """The configuration to write."""
    prefix = f"ipc://{layout.config_path.resolve().parent}/"
    replace = msgspec.structs.replace

    def short(given: str) -> str:
        return f"ipc://{given.removeprefix(prefix)}" if given.startswith(prefix) else given

    return replace(
        config,
        members=tuple(
            replace(entry, address=short(entry.address), peer_address=short(entry.peer_address))
            for entry in config.members
        ),
        servers=tuple(replace(server, address=short(server.address)) for server in config.servers),
    )


def stop(layout: Layout, name: str) -> bool:
    """End the process of this name if it runs here; return whether it did."""
    if name not in layout.living():
        return False
    ending = Ending(functools.partial(layout.holder, name))
    ending.terminate()
    if not ending.wait(STOP_FLUSH_S):
        raise Failure(f"{name} is removed, but its process {ending.pid} has not stopped; see {layout.log(name)}")
    layout.pid(name).unlink(missing_ok=True)
    return True
