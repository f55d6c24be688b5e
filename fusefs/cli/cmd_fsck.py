"""``fusefs fsck``: is every referenced block where it must be, and nothing else? It changes nothing.

A block whose bytes the metadata service still has itself need not be anywhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from fusefs.cli.layout import config_path_of
from fusefs.cli.leading import Ask, asking_leader
from fusefs.cli.options import client_keys, key_option, output_of, with_json
from fusefs.cli.output import Progress, count
from metadata.api import ClusterMap, FindReferences, GetClusterMap, ListReferences, References, ServerRecord
from node.host.cluster import ClusterConfig, load_cluster
from node.host.exitcodes import Exit
from node.host.keys import client_security
from node.rpc.client import Connection
from node.rpc.context import Transport
from node.rpc.security import CurveKeys
from storage.api import CATALOGUE, FindBlocks, FindBlocksReply, ListBlocks, ListBlocksReply, StoredBlock, group_of

PAGE_BLOCKS = 4096
CALL_TIMEOUT_S = 30.0
WINDOW_EPOCHS = 3  # a block that nobody references is a candidate, or young, for so long
LIVE = 1
SHOWN_MAX = 20

AskServer = Callable[[msgspec.Struct], Awaitable[Any]]


@dataclass(slots=True)
class Audit:
    """What one pass found. Each finding was looked at twice."""

    blocks: int = 0
    copies: int = 0
    lost: list[bytes] = field(default_factory=list)  # referenced, and nowhere
    short: list[bytes] = field(default_factory=list)  # referenced, on fewer servers than its group has
    unreferenced: list[bytes] = field(default_factory=list)  # stored, old, and the volume does not know it

    @property
    def clean(self) -> bool:
        return not (self.lost or self.short or self.unreferenced)


@click.command()
@click.argument("cluster", type=click.Path())
@key_option
@with_json
@click.pass_context
def fsck(context: click.Context, cluster: str, key: Path | None) -> None:
    """Compare what the files of CLUSTER reference with what its chunk servers store. Reads names, no data.

    Exit code 3 when something is missing or left over. All chunk servers must answer.
    """
    path = config_path_of(cluster)
    config = load_cluster(path)
    with Progress("comparing blocks"):
        audit = trio.run(run_audit, config, client_keys(config, path, key))
    output = output_of(context)
    found = {"lost": audit.lost, "short": audit.short, "unreferenced": audit.unreferenced}
    names = {what: [block.hex() for block in blocks] for what, blocks in found.items()}
    output.document({"clean": audit.clean, "blocks": audit.blocks, "copies": audit.copies, **names})
    output.line(f"{count(audit.blocks, 'block')} referenced, {audit.copies} copies stored")
    for what, blocks in names.items():
        if blocks:
            more = f" and {len(blocks) - SHOWN_MAX} more" if len(blocks) > SHOWN_MAX else ""
            output.line(f"{what}: {', '.join(blocks[:SHOWN_MAX])}{more}")
    context.exit(Exit.OK if audit.clean else Exit.FINDINGS)


async def run_audit(config: ClusterConfig, keys: CurveKeys | None) -> Audit:
    """Connect to everybody and compare. Raises FsError where somebody does not answer."""
    async with asking_leader(config, keys) as ask, Transport() as transport, trio.open_nursery() as nursery:
        cluster: ClusterMap = await ask(GetClusterMap(), CALL_TIMEOUT_S)
        public_keys = {server.address: server.public_key for server in config.servers}
        servers: dict[int, AskServer] = {}
        for record in cluster.servers:
            if record.state != "out":
                public_key = record.public_key or public_keys.get(record.address, "")
                connection = _connect(transport, config, keys, record, public_key)
                await nursery.start(connection.run)
                servers[record.server] = _asking(connection)
        audit = await compare(cluster, ask, servers)
        nursery.cancel_scope.cancel()
    return audit


def _connect(
    transport: Transport, config: ClusterConfig, keys: CurveKeys | None, record: ServerRecord, public_key: str
) -> Connection:
    security = client_security(config, keys, public_key)
    return Connection(transport, record.address, CATALOGUE, cluster_id=config.cluster_id_bytes, security=security)


def _asking(connection: Connection) -> AskServer:
    async def ask(request: msgspec.Struct) -> Any:
        return (await connection.call(request, timeout_s=CALL_TIMEOUT_S)).body

    return ask


async def compare(cluster: ClusterMap, ask: Ask, servers: dict[int, AskServer]) -> Audit:
    """Look up every name that the volume knows on the servers, and every name that a server has in the volume, a page
    at a time; then look again at whatever seemed wrong."""
    audit = Audit()
    doubtful: list[bytes] = []
    after = b""
    more = True
    while more:
        page: References = await ask(ListReferences(after, PAGE_BLOCKS), CALL_TIMEOUT_S)
        stored = await _stored([block for block, _ in page.blocks], servers)
        audit.blocks += sum(references > 0 for _, references in page.blocks)
        audit.copies += sum(block.state == LIVE for blocks in stored.values() for block in blocks.values())
        doubtful += _judge(cluster, page, stored, Audit())
        more, after = page.more, page.blocks[-1][0] if page.blocks else after
    for server, one in servers.items():
        after, more = b"", True
        while more:
            listed: ListBlocksReply = await one(ListBlocks(after, PAGE_BLOCKS))
            page = await ask(FindReferences(tuple(block.block for block in listed.blocks)), CALL_TIMEOUT_S)
            unknown = {block.block: block for block in listed.blocks if block.block not in dict(page.blocks)}
            audit.copies += sum(block.state == LIVE for block in unknown.values())
            doubtful += _judge(cluster, References((), False, page.gc_epoch), {server: unknown}, Audit())
            more, after = listed.more, listed.blocks[-1].block if listed.blocks else after
    doubtful = sorted(set(doubtful))
    for at in range(0, len(doubtful), PAGE_BLOCKS):
        blocks = doubtful[at : at + PAGE_BLOCKS]
        stored = await _stored(blocks, servers)
        page = await ask(FindReferences(tuple(blocks)), CALL_TIMEOUT_S)
        _judge(cluster, page, stored, audit)
    return audit


async def _stored(blocks: Sequence[bytes], servers: dict[int, AskServer]) -> dict[int, dict[bytes, StoredBlock]]:
    """What each server has of these blocks."""
    found: dict[int, dict[bytes, StoredBlock]] = {}
    for server, one in servers.items():
        reply: FindBlocksReply = await one(FindBlocks(tuple(blocks)))
        found[server] = {block.block: block for block in reply.blocks}
    return found


def _judge(
    cluster: ClusterMap, page: References, stored: dict[int, dict[bytes, StoredBlock]], into: Audit
) -> list[bytes]:
    """Add what is wrong to ``into``; return the blocks that it is about."""
    wrong: dict[bytes, Any] = {}
    moving = {row.group: {*row.filling, *row.leaving} for row in cluster.rows}
    known, logged = dict(page.blocks), frozenset(page.logged)
    for block, references in known.items():
        number = group_of(block, len(cluster.table)) if cluster.table else 0
        row = cluster.table[number] if cluster.table else ()
        if number in moving:  # whoever fills may lack it, and whoever leaves need not have it
            row = tuple([server for server in row if server not in moving[number]])
        holders = [s for s in stored if block in stored[s] and stored[s][block].state == LIVE]
        short = len([server for server in row if server in holders]) < len(row)
        if references and short and block not in logged:
            wrong[block] = None
            (into.short if holders else into.lost).append(block)
    for blocks in stored.values():
        for name, found in blocks.items():
            left = name not in known and found.state == LIVE and found.epoch < page.gc_epoch - WINDOW_EPOCHS + 1
            if left and name not in wrong:
                wrong[name] = None
                into.unreferenced.append(name)
    return list(wrong)
