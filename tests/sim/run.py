"""One schedule from a seed to its report: trouble, healing, and what must be true then.

First ``events`` events of trouble: members crash, pause, lose power, disks and clocks; the network parts and heals;
an operator changes the membership; clients go on all the while. Then everything heals, and within bounded time every
request must be answered, every member must have everything, and every client must find what it was promised, also
after one more loss of power of all at once. An event is something that happens to a member: a message, a tick, a
request, a fault; what the member does about it is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Optional

from tests.sim.checkers import Register, Violation, require
from tests.sim.faults import Faults
from tests.sim.member import Member
from tests.sim.network import Weather
from tests.sim.profile import EVENTS, Profile, Report, draw
from tests.sim.requests import Requests
from tests.sim.workload import Client, Facts
from tests.sim.world import ROOM, World, quiet

HEAL_S = 60.0  # simulated: until then everything must be as it should be
HEAL_EVENTS = 60_000


class Run:
    """One schedule."""

    def __init__(self, seed: int, profile: Profile, say: Optional[Callable[[str], None]] = None) -> None:
        self._say = say
        self.world = world = World(seed, profile, say)
        requests = Requests(world)
        self.facts = Facts()
        self.clients = [
            Client(number + 1, requests, self.facts, Random(world.random.getrandbits(64)), profile.depth)
            for number in range(profile.clients)
        ]
        self.faults = Faults(world)

    def play(self) -> Report:
        """Play the whole schedule. Raises Violation."""
        with quiet(self.world.say if self._say is not None else None):
            for client in self.clients:
                self.world.later(self.world.random.random() * 0.3, client.start)
            self.world.later(1.0 + self.world.profile.fault_s, self.faults.begin)
            while self.world.report.events < self.world.profile.events:
                self.world.step()
            self._heal()
            self._settle("after healing")
            self._power_cycle()
            self._settle("after the last loss of power")
            self._verify()
        report = self.world.report
        report.simulated_s = self.world.now
        report.terms = len(self.world.safety.leaders)
        report.committed = self.world.safety.top
        report.mutations, report.reads = self.facts.mutations, self.facts.reads
        report.counts["repeats"] = self.facts.repeats
        report.counts["changes"] = self.faults.operator.applied
        report.fingerprint = self.world.fingerprint
        return report

    def _heal(self) -> None:
        self.world.say("*** everything heals")
        self.world.healing = True
        self.world.network.heal()
        self.world.network.weather = Weather()
        self.world.profile = replace(self.world.profile, turn_s=0.001, disk_s=min(self.world.profile.disk_s, 0.005))
        for ident, member in self.world.members.items():
            member.disk.capacity_bytes = ROOM
            member.disk.cut_at = member.disk.fail_sync_at = None
            self.world.clocks[ident] = (self.world.local(member) - self.world.now, 1.0)
            if member.paused:
                self.faults.resume(member, member.life)
            self.world.start(member, member.life)

    def _settle(self, when: str) -> None:
        """The liveness phase: clients finish what they began, members agree."""
        began_s, events = self.world.now, self.world.report.events
        for client in self.clients:
            client.active = False
        while not self._settled():
            require(
                self.world.now - began_s < HEAL_S and self.world.report.events - events < HEAL_EVENTS, "liveness",
                f"{when}: {self._why()}",
            )  # fmt: skip
            checked = self.world.now + 0.1
            while self.world.now < checked:
                self.world.step()
            self._operate_joint()
        self.world.report.heal_s = max(self.world.report.heal_s, self.world.now - began_s)

    def _operate_joint(self) -> None:
        if any(member.leads and member.node is not None and member.node.core.conf.joint
               for member in self.world.members.values()):
            self.faults.operate()

    def _leader(self) -> Optional[Member]:
        settled = [member for member in self.world.members.values() if member.node is not None and member.node.settled]
        return max(settled, key=lambda member: member.node.core.term if member.node else 0) if settled else None

    def _settled(self) -> bool:
        if any(client.pending for client in self.clients):
            return False
        leader = self._leader()
        if leader is None or leader.node is None or leader.node.core.conf.joint:
            return False
        log = leader.node.core.log
        for ident in leader.node.core.conf.members():
            member = self.world.members[ident]
            if not member.gone and (member.node is None or member.node.stable.applied < log.last):
                return False
        return True

    def _why(self) -> str:
        lines = [f"{sum(len(client.pending) for client in self.clients)} requests wait"]
        for member in self.world.members.values():
            node = member.node
            if node is None:
                lines.append(f"  m{member.id} gone={member.gone} weak={member.weak}")
                continue
            core = node.core
            lines.append(
                f"  m{member.id} {core.role.name} term {core.term} lead {core.leader} commit {core.log.committed} "
                f"last {core.log.last} applied {node.stable.applied} damaged={node.stable.store.damaged} "
                f"stuck={node._stuck is not None} {core.conf} progress "
                f"{ {ident: (p.state, p.match, p.next, p.paused) for ident, p in core.status().progress.items()} }"
            )
        return "\n".join(lines)

    def _power_cycle(self) -> None:
        self.world.say("*** everybody loses power")
        for member in self.world.members.values():
            if member.node is not None:
                self.world.down(member, power=True)
        for _ in range(5):
            self.world.step()

    def _verify(self) -> None:
        """Every client finds what it was promised, and the members are equal."""
        leader = self._leader()
        assert leader is not None
        left = [*self.facts.registers.values()]
        sizes: list[int] = []
        client = self.clients[0]

        def told(register: Register, ok: bool) -> None:
            if ok and register in left:
                left.remove(register)

        began_s = self.world.now
        while left or (self.facts.shared_ino and not sizes):
            require(self.world.now - began_s < HEAL_S, "liveness", "the last reads are not answered")
            for register in left:
                client.read_name(register, leader.id, partial(told, register))
            if self.facts.shared_ino and not sizes:
                client.read_counter(leader.id, lambda size: sizes.append(size) if size >= 0 else None)
            until = self.world.now + 0.5
            while self.world.now < until:
                self.world.step()
            leader = self._leader() or leader
        if sizes:
            self.facts.counter.settled(sizes[0])
        for member in self.world.members.values():
            if member.node is not None:
                self.world.safety.state(member.id, member.node.stable.applied, member.digest())


def simulate(
    seed: int, *, members: int = 0, events: int = EVENTS, profile: Optional[Profile] = None,
    say: Optional[Callable[[str], None]] = None,
) -> Report:
    """Play one seed. Raises Violation, whose message ends with how to play it again."""
    try:
        return Run(seed, profile or draw(seed, members, events), say).play()
    except Violation as violation:
        again = f"python -m tests.sim --seed {seed} --events {events}" + (f" --members {members}" if members else "")
        violation.args = (f"{violation.args[0]}\n  seed {seed}; play it again: {again}",)
        raise
