"""What a mount process knows before it touches anything; also what the commands check before they start one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fusefs.mount.options import MountOptions
from node.host.cluster import ClusterConfig, load_cluster
from node.host.keys import CLIENT_NAME, key_path, load_keys
from node.rpc.security import CurveKeys
from node.wire.limits import STOP_FLUSH_S

# What the stop may take: the flush, and the unmounting before it.
STOP_S = STOP_FLUSH_S + 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A mount to be. Paths are absolute; ``log_path`` is empty where the log is standard error or syslog."""

    cluster_path: Path
    mount: str
    options: MountOptions
    config: ClusterConfig
    keys: CurveKeys | None
    log_path: str = ""

    def with_log(self, log_path: str) -> Plan:
        return replace(self, log_path=log_path)


def make_plan(cluster_path: Path, mount: str, options: MountOptions) -> Plan:
    """Read the configuration and the keys. Raises what those raise."""
    config = load_cluster(cluster_path)
    keys = None
    if config.transport != "ipc":
        keys = load_keys(options.key or key_path(cluster_path, CLIENT_NAME))
    return Plan(cluster_path, mount, options, config, keys)
