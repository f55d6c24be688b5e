"""``fusefs rebalance`` and ``fusefs scrub``: wait, with progress, for what the cluster does by itself."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from fusefs.cli.layout import config_path_of
from fusefs.cli.options import as_size, client_keys, key_option, output_of, with_json
from fusefs.cli.output import count
from fusefs.cli.watching import Step, watch
from metadata.api import STRATEGIES, HealingReply, SetStrategy, StartScrub
from node.host.cluster import load_cluster
from node.host.exitcodes import Exit
from node.host.units import format_size

SETTLED_LOOKS = 4  # so often in a row nothing may be left to do: a server that has just come is not known yet


@click.command()
@click.argument("cluster", type=click.Path())
@click.option("--strategy", type=click.Choice(sorted(STRATEGIES)), help="Choose servers in this way from now on.")
@key_option
@with_json
@click.pass_context
def rebalance(context: click.Context, cluster: str, key: Path | None, strategy: str | None) -> None:
    """Wait until the data of CLUSTER are spread as they should be: by the weights of its chunk servers, unless another
    strategy was chosen.

    Groups move by themselves, some at a time, while reads and writes go on; this shows how far that is. With --strategy
    what is written goes where the new strategy wants it from then on, and the rest follows: weighted spreads bytes by
    weight, round-robin gives everybody as many groups, random draws for each group.
    """
    path = config_path_of(cluster)
    config = load_cluster(path)
    calm = 0

    def step(reply: HealingReply) -> Step:
        nonlocal calm
        left = reply.changing + reply.waiting
        calm = 0 if left else calm + 1
        return Step(left, f"{count(left, 'group')} to move", calm >= SETTLED_LOOKS)

    first = SetStrategy(strategy) if strategy else None
    reply = trio.run(watch, config, client_keys(config, path, key), step, "rebalancing", first)
    output = output_of(context)
    rows = [found for found in reply.servers if found.record.state != "out"]
    output.document({"strategy": reply.strategy, "servers": [
        {"name": found.record.name, "groups": found.groups, "target_groups": round(found.target, 1),
         "stored_bytes": found.stored_bytes, "target_bytes": round(found.target_bytes)} for found in rows
    ]})
    for found in rows:
        stored = f"{format_size(found.stored_bytes)} of {format_size(round(found.target_bytes))}"
        output.line(f"{found.record.name}: {found.groups} groups, {stored}")


@click.command()
@click.argument("cluster", type=click.Path())
@click.option("--rate", callback=as_size, metavar="SIZE", help="Bytes that each server reads a second.")
@key_option
@with_json
@click.pass_context
def scrub(context: click.Context, cluster: str, key: Path | None, rate: int | None) -> None:
    """Have every chunk server of CLUSTER read all that it stores now, and wait until it has.

    What is damaged is repaired from other copies. Exit code 3 where something was damaged.
    """
    path = config_path_of(cluster)
    config = load_cluster(path)
    passes: dict[int, int] = {}

    def step(reply: HealingReply) -> Step:
        left, waiting = 0, 0
        for found in reply.servers:
            if not found.record.alive:
                continue
            server = found.record.server
            taken = reply.scrub_order and found.scrub_order == reply.scrub_order
            if taken:
                passes.setdefault(server, found.scrub_pass)
            if not taken or found.scrub_passes < passes[server]:
                waiting += 1
                left += max(found.scrub_total_bytes - found.scrub_done_bytes, 0) if taken else found.stored_bytes
        text = f"{format_size(left)} on {count(waiting, 'server')}"
        return Step(left, text, not waiting)

    reply = trio.run(watch, config, client_keys(config, path, key), step, "scrubbing", StartScrub(rate or 0))
    output = output_of(context)
    rows = [found for found in reply.servers if found.record.alive]
    damaged = sum(found.scrub_damaged for found in rows)
    output.document({"damaged_blocks": damaged, "servers": [
        {"name": found.record.name, "bytes": found.scrub_total_bytes, "damaged_blocks": found.scrub_damaged}
        for found in rows
    ]})
    read_bytes = sum(found.scrub_total_bytes for found in rows)
    output.line(f"{format_size(read_bytes)} read, {count(damaged, 'block')} damaged")
    context.exit(Exit.FINDINGS if damaged else Exit.OK)
