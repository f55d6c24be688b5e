"""What is sent to be executed, under one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from fusefs.client.leases import Change
from metadata import api


@dataclass(slots=True)
class Mutation:
    """Numbered operations of one session. ``doubtful``: a try failed in a way that leaves open if it was executed."""

    session: int
    sequence: int
    ops: tuple[api.Op, ...]
    stop_on_error: bool
    doubtful: bool = False
    change: Optional[Change] = None  # under way, as far as what is remembered is concerned
    journal: bool = False  # of what is leased exclusively
    times_ns: tuple[int, ...] = ()
    bases: tuple[tuple[int, int], ...] = ()
    settled: tuple[int, ...] = ()  # inodes of which nothing old is shown here until it is answered
    gives: tuple[int, ...] = ()  # inodes whose leases are given back with it
