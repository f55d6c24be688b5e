"""``fusefs gc``: what nothing references any more, and giving its space back now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio

from fusefs.cli.layout import config_path_of
from fusefs.cli.leading import asking_leader
from fusefs.cli.options import client_keys, key_option, output_of, with_json
from fusefs.cli.output import Output, Progress, count
from fusefs.cli.query import ask_all
from metadata.api import CollectGarbage, GarbageReply
from node.host.cluster import ClusterConfig, load_cluster
from node.host.units import format_size
from node.rpc.security import CurveKeys
from storage.api import ServerStatus

ROUNDS_MAX = 6  # a block is deleted two to three rounds after its end; a touch on the way costs two more
ROUND_TIMEOUT_S = 120.0


@click.command()
@click.argument("cluster", type=click.Path())
@click.option("--dry-run", is_flag=True, help="Only show what there is.")
@key_option
@with_json
@click.pass_context
def gc(context: click.Context, cluster: str, key: Path | None, dry_run: bool) -> None:
    """Delete what nothing references in CLUSTER now, instead of within the next minutes.

    Deleted blocks stay in quarantine for a while (storage.quarantine), which counts as free space.
    """
    path = config_path_of(cluster)
    config = load_cluster(path)
    with Progress("collecting garbage"):
        report = trio.run(collect, config, client_keys(config, path, key), dry_run)
    output = output_of(context)
    output.document(report)
    _print(output, report)


async def collect(config: ClusterConfig, keys: CurveKeys | None, dry_run: bool) -> dict[str, Any]:
    """Ask the leader for rounds until nothing waits, at most ROUNDS_MAX; return the report."""
    before = await _stored(config, keys)
    deleted = adopted = rounds = 0
    async with asking_leader(config, keys) as ask:
        reply: GarbageReply = await ask(CollectGarbage(), ROUND_TIMEOUT_S)
        while not dry_run and rounds < ROUNDS_MAX and (reply.waiting or not rounds):
            reply = await ask(CollectGarbage(advance=True), ROUND_TIMEOUT_S)
            deleted, adopted, rounds = deleted + reply.deleted, adopted + reply.adopted, rounds + 1
    stored, quarantined = await _stored(config, keys)
    return {
        "epoch": reply.gc_epoch,
        "candidates": reply.candidates,
        "more_candidates": reply.more_candidates,
        "due": reply.due,
        "stored_bytes": stored,
        "quarantined_bytes": quarantined,
        "unconfirmed_bytes": reply.unconfirmed_bytes,
        "deleted_blocks": deleted,
        "adopted_blocks": adopted,
        "freed_bytes": max(0, before[0] - stored),
    }


async def _stored(config: ClusterConfig, keys: CurveKeys | None) -> tuple[int, int]:
    """Return what the chunk servers that answer store for living blocks, and in quarantine."""
    answers = (await ask_all(config, keys)).servers.values()
    statuses = [answer for answer in answers if isinstance(answer, ServerStatus)]
    return sum(status.used_bytes for status in statuses), sum(status.quarantined_bytes for status in statuses)


def _print(output: Output, report: dict[str, Any]) -> None:
    more = " and more" if report["more_candidates"] else ""
    waiting = f"{count(report['candidates'], 'block')}{more} without a reference, {report['due']} due"
    output.line(f"epoch {report['epoch']}: {waiting}")
    stored, held = format_size(report["stored_bytes"]), format_size(report["quarantined_bytes"])
    output.line(f"{stored} stored, {held} in quarantine")
    if report["deleted_blocks"]:
        output.line(f"{count(report['deleted_blocks'], 'block')} deleted, {format_size(report['freed_bytes'])} freed")
