"""``fusefs server``, ``rebalance`` and ``scrub``: what they say, and what they refuse. tests/fault has them at work."""

from __future__ import annotations

import json

from node.host.cluster import load_cluster
from tests.harness import FUSEFS, Cluster, run


def refused(*arguments: object, code: int) -> str:
    done = run(FUSEFS, *map(str, arguments), check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_what_cannot_be_is_refused_in_one_line(running: Cluster) -> None:
    assert "0 other chunk servers" in refused("server", "drain", running.config, "storage-1", code=1)
    assert "drain it first" in refused("server", "remove", running.config, "storage-1", code=1)
    assert "runs here" in refused("server", "remove", "--lost", running.config, "storage-1", code=1)
    assert "no chunk server storage-7" in refused("server", "drain", running.config, "storage-7", code=6)
    assert "the name of a chunk server" in refused("server", "add", running.config, "disk-7", code=2)
    assert "--address" in refused("server", "add", "--address", "h:1", running.config, "storage-7", code=2)


def test_servers_are_listed(running: Cluster) -> None:
    (row,) = json.loads(run(FUSEFS, "server", "list", running.config, "--json").stdout)["servers"]
    assert (row["name"], row["state"], row["alive"], row["groups"], row["target_groups"]) == (
        "storage-1", "serving", True, 64, 64.0,
    )  # fmt: skip
    assert "storage-1" in run(FUSEFS, "server", "list", running.config).stdout
    balanced = json.loads(run(FUSEFS, "rebalance", running.config, "--json").stdout)
    assert [found["groups"] for found in balanced["servers"]] == [64] and balanced["strategy"] == "weighted"
    for strategy in ("round-robin", "random", "weighted"):
        done = run(FUSEFS, "rebalance", running.config, "--strategy", strategy, "--json")
        assert json.loads(done.stdout)["strategy"] == strategy
    refused("rebalance", running.config, "--strategy", "odd", code=2)
    assert json.loads(run(FUSEFS, "scrub", running.config, "--json").stdout)["damaged_blocks"] == 0


def test_a_server_that_is_added_is_written_down_beside_the_others(cluster: Cluster) -> None:
    cluster.up("--no-start")
    before = load_cluster(cluster.config)
    text = cluster.config.read_text()
    refused("server", "add", cluster.config, "storage-x/y", code=2)
    assert cluster.config.read_text() == text
    run(FUSEFS, "server", "add", cluster.config, "storage-2", "--weight", "2", "--rack", "r2")
    after = load_cluster(cluster.config)
    assert after.servers[:-1] == before.servers and after.members == before.members
    added = after.server("storage-2")
    assert (added.weight, added.rack, added.capacity_bytes) == (2.0, "r2", before.servers[-1].capacity_bytes)
    assert str(cluster.directory) not in cluster.config.read_text()
