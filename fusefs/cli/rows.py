"""One row for each metadata member, from what all of them answered. Pure."""

from __future__ import annotations

from typing import Any

from fusefs.cli.query import Answers
from metadata.api import StatusReply
from node.host.cluster import ClusterConfig

DOWN = "down"


def member_rows(config: ClusterConfig, answers: Answers) -> list[dict[str, Any]]:
    """The members of cluster.toml, then those that only the leader knows. ``lag``: entries that the leader has
    committed and the member has not applied, null where one of them is not heard."""
    leader = answers.leader
    commit = leader.status.commit if leader is not None else None
    places = {member.name: member.address for member in config.members}
    for member in leader.roster if leader is not None else ():
        places.setdefault(member.name, member.address)
    return [_row(name, address, answers, commit) for name, address in places.items()]


def _row(name: str, address: str, answers: Answers, commit: int | None) -> dict[str, Any]:
    answer = answers.members.get(name)
    if not isinstance(answer, StatusReply):
        return {"name": name, "address": address, "role": DOWN, "term": 0, "commit": 0, "applied": 0, "lag": None}
    state = answer.status
    return {
        "name": name,
        "address": address,
        "role": state.role,
        "term": state.term,
        "commit": state.commit,
        "applied": state.applied,
        "lag": None if commit is None else max(commit - state.applied, 0),
    }
