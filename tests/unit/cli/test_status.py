"""The document of ``status --json``: its shape and its verdict."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fusefs.cli.cmd_status import report_of
from fusefs.cli.query import Answers
from metadata.api import MemberStatus, ServerRecord, SessionStatus, StatusReply, VolumeStat
from node.host.cluster import ChunkServer, ClusterConfig, Member
from node.wire.errors import Code, FsError
from storage.api import ServerStatus

CONFIG = ClusterConfig(
    cluster_id="0" * 32,
    transport="ipc",
    replicas=2,
    members=tuple(
        Member(id=i, name=f"metadata-{i}", address=f"ipc:///m{i}", peer_address=f"ipc:///p{i}") for i in (1, 2)
    ),
    servers=tuple(ChunkServer(name=f"storage-{i}", address=f"ipc:///s{i}", capacity_bytes=1000) for i in (1, 2)),
)
GONE = FsError(Code.UNREACHABLE, "gone")


def record(number: int, **changes: Any) -> ServerRecord:
    fields = dict(
        server=number, uuid=b"u" * 16, name=f"storage-{number}", address=f"ipc:///s{number}", host="h", rack="",
        weight=1.0, capacity_bytes=1000, state="serving", used_bytes=10, blocks=3, alive=True,
    )
    return ServerRecord(**(fields | changes))


def member(number: int, role: str, **changes: Any) -> StatusReply:
    status = MemberStatus(
        member=number, name=f"metadata-{number}", address=f"ipc:///m{number}", role=role, term=4, leader=1, commit=9,
        applied=8, last=9,
    )
    return StatusReply(**({"status": status} | changes))


def healthy() -> Answers:
    leader = member(
        1, "leader", servers=(record(1), record(2)), volume=VolumeStat(2000, 1980, 5, 70), stored_bytes=20, replicas=2,
        sessions=(SessionStatus(7, "host", "/mnt", 0),),
    )
    status = ServerStatus(server=1, uuid=b"", address="", used_bytes=11, capacity_bytes=1000, blocks=4)
    return Answers({"metadata-1": leader, "metadata-2": member(2, "follower")},
                   {"storage-1": status, "storage-2": status})


def test_the_shape_and_a_healthy_cluster() -> None:
    assert report_of(CONFIG, healthy()) == {
        "health": "healthy",
        "members": [
            {
                "name": "metadata-1", "address": "ipc:///m1", "role": "leader",
                "term": 4, "commit": 9, "applied": 8, "lag": 1,
            },
            {
                "name": "metadata-2", "address": "ipc:///m2", "role": "follower",
                "term": 4, "commit": 9, "applied": 8, "lag": 1,
            },
        ],
        "servers": [
            {"name": f"storage-{i}", "address": f"ipc:///s{i}", "state": "serving", "used_bytes": 11,
             "capacity_bytes": 1000, "blocks": 4}
            for i in (1, 2)
        ],
        "volume": {"files": 5, "bytes": 70, "stored_bytes": 22, "replicas": 2, "under_replicated_blocks": 0},
        "sessions": [{"id": 7, "host": "host", "mount": "/mnt", "leases": 0}],
    }


def test_a_silent_server_is_down_and_the_cluster_degraded() -> None:
    answers = healthy()
    answers.servers["storage-2"] = GONE
    report = report_of(CONFIG, answers)
    assert report["health"] == "degraded"
    assert report["volume"]["stored_bytes"] == 20, "what the leader remembers"
    assert report["servers"][1] == {"name": "storage-2", "address": "ipc:///s2", "state": "down", "used_bytes": 10,
                                    "capacity_bytes": 1000, "blocks": 3}


def test_a_silent_member_is_down_and_the_cluster_degraded() -> None:
    answers = healthy()
    answers.members["metadata-2"] = GONE
    report = report_of(CONFIG, answers)
    assert report["health"] == "degraded"
    assert report["members"][1]["role"] == "down"


def test_missing_copies_degrade() -> None:
    answers = healthy()
    answers.members["metadata-1"] = msgspec.structs.replace(answers.members["metadata-1"], under_replicated_blocks=2)
    assert report_of(CONFIG, answers)["health"] == "degraded"


@pytest.mark.parametrize("state", ["full", "damaged"])
def test_a_server_that_cannot_take_blocks_degrades(state: str) -> None:
    answers = healthy()
    answers.servers["storage-1"] = msgspec.structs.replace(answers.servers["storage-1"], state=state)
    report = report_of(CONFIG, answers)
    assert report["servers"][0]["state"] == state
    assert report["health"] == "degraded"


def test_a_server_that_runs_but_is_not_registered_is_joining() -> None:
    answers = healthy()
    answers.members["metadata-1"] = msgspec.structs.replace(answers.members["metadata-1"], servers=(record(2),))
    report = report_of(CONFIG, answers)
    assert report["servers"][0]["state"] == "joining"
    assert report["health"] == "degraded"


def test_without_a_leader_the_cluster_is_down_and_what_nobody_knows_is_null() -> None:
    answers = healthy()
    answers.members = {"metadata-1": GONE, "metadata-2": member(2, "candidate")}
    report = report_of(CONFIG, answers)
    assert report["health"] == "down"
    assert [m["role"] for m in report["members"]] == ["down", "candidate"]
    assert [s["state"] for s in report["servers"]] == ["serving", "serving"]
    assert report["volume"] == {"files": None, "bytes": None, "stored_bytes": None, "replicas": 2,
                                "under_replicated_blocks": None}


def test_of_two_leaders_the_one_of_the_higher_term_counts() -> None:
    answers = healthy()
    newer = member(2, "leader")
    answers.members["metadata-2"] = msgspec.structs.replace(newer, status=msgspec.structs.replace(newer.status, term=5))
    assert answers.leader is answers.members["metadata-2"]


def test_nobody_lets_us_in() -> None:
    denied = FsError(Code.UNAUTHORIZED, "wrong key")
    answers = Answers({"metadata-1": denied}, {"storage-1": GONE})
    assert answers.refusal is denied
    assert Answers({"metadata-1": GONE}, {"storage-1": GONE}).refusal is None
    answers = healthy()
    answers.servers["storage-1"] = denied
    assert answers.refusal is None, "somebody did"
