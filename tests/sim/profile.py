"""What kind of run a seed is, and what a run was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from tests.sim.member import Settings
from tests.sim.network import Weather

EVENTS = 3000


@dataclass
class Profile:
    """What kind of run a seed is: drawn from it, some of it, so that seeds differ in kind and not only in detail."""

    members: int = 3
    largest: int = 7
    clients: int = 3
    depth: int = 3
    events: int = EVENTS
    settings: Settings = field(default_factory=Settings)
    weather: Weather = field(default_factory=Weather)
    faults: dict[str, float] = field(default_factory=dict)  # by name: how often, relative to others
    fault_s: float = 0.2  # mean time between faults
    turn_s: float = 0.002  # how late a woken member takes its turn
    disk_s: float = 0.005  # how long the log worker takes
    down_s: float = 0.6
    drift: float = 0.02
    change_cut: float = 0.2  # how many changes of membership are followed by a partition at once


FAULTS = {
    "kill": 1.0, "power": 1.0, "power_all": 0.5, "cut": 1.0, "sync": 0.5, "full": 1.0, "flip": 1.0, "lose": 1.0,
    "pause": 1.0, "jump": 0.5, "wall": 0.3, "partition": 1.5, "heal": 1.0, "weather": 0.7, "forget": 0.7,
    "member": 3.0, "transfer": 1.5, "campaign": 0.3,
}  # fmt: skip


def draw(seed: int, members: int = 0, events: int = EVENTS) -> Profile:
    """The profile of a seed."""
    random = Random(f"profile {seed}")
    lease = random.random() < 0.15
    election = random.choice((3, 4, 5, 5, 8, 10)) if not lease else random.choice((5, 6, 10))
    settings = Settings(
        election_ticks=election,
        heartbeat_ticks=random.choice((1, 1, 2)),
        max_message_bytes=random.choice((1 << 20, 1 << 20, 2000, 1)),
        max_inflight_messages=random.choice((256, 256, 4, 1)),
        pre_vote=lease or random.random() < 0.85,
        check_quorum=lease or random.random() < 0.9,
        lease=lease,
        coalesce=random.random() < 0.8,
        worker=random.random() < 0.5,
        commit_entries=random.choice((1, 8, 32, 128)),
        commit_s=random.choice((0.05, 0.3, 1.0)),
        trailing=random.choice((0, 5, 20, 100)),
        segment_bytes=random.choice((2048, 8192, 65536)),
    )
    weather = Weather(
        loss=random.choice((0.0, 0.0, 0.02, 0.1, 0.25)),
        repeat=random.choice((0.0, 0.02, 0.2)),
        delay_s=random.choice((0.0005, 0.002, 0.01, 0.03)),
        slow=random.choice((0.0, 0.0, 0.05, 0.2)),
        slow_s=random.choice((0.1, 0.5, 2.0)),
    )
    faults = {name: usual * random.choice((0.0, 0.5, 1.0, 3.0)) for name, usual in FAULTS.items()}
    if lease:  # a lease is kept by clocks: what breaks them is excluded by its contract
        faults["pause"] = faults["jump"] = 0.0
        weather = replace(weather, slow_s=0.5)
    return Profile(
        members=members or random.choice((3, 3, 3, 4, 5, 5, 7)),
        clients=random.choice((2, 3, 4)),
        depth=random.choice((1, 3, 6)),
        events=events,
        settings=settings,
        weather=weather,
        faults=faults,
        fault_s=random.choice((0.08, 0.25, 0.8)),
        turn_s=random.choice((0.0, 0.002, 0.02)) if not lease else 0.002,
        disk_s=random.choice((0.0, 0.005, 0.05, 0.2)),
        down_s=random.choice((0.2, 0.6, 2.0)),
        drift=0.0 if lease else random.choice((0.0, 0.02, 0.1)),
    )


@dataclass
class Report:
    """What a run was."""

    seed: int
    events: int = 0
    simulated_s: float = 0.0
    heal_s: float = 0.0
    terms: int = 0
    committed: int = 0
    mutations: int = 0
    reads: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: int = 0
