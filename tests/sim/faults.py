"""What goes wrong, one thing after the other, as often as the profile says. Each tells whether it came true."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Optional

from metadata.raft.messages import EntryKind
from metadata.raft.storage import Compacted
from node.wire.limits import LOG_RESERVE_BYTES
from tests.sim.member import Member
from tests.sim.network import partition
from tests.sim.workload import Operator
from tests.sim.world import ROOM, World


class Faults:
    """The trouble of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        profile = world.profile
        seed = world.random.getrandbits(64)
        self.operator = Operator(world, Random(seed), min(profile.members, 3), profile.largest)

    def begin(self) -> None:
        if self.world.healing:
            return
        faults = self.world.profile.faults
        names = [name for name, weight in faults.items() if weight]
        if names:
            name = self.world.random.choices(names, [faults[name] for name in names])[0]
            if getattr(self, f"_fault_{name}")():
                self.world.happens("fault", name)
                self.world.report.faults[name] = self.world.report.faults.get(name, 0) + 1
                self.world.say(f"*** {name}")
        self.world.later(self.world.random.expovariate(1 / self.world.profile.fault_s), self.begin)

    def _any(self) -> Optional[Member]:
        found = [member for member in self.world.members.values() if not member.gone and member.node is not None]
        leaders = [member for member in found if member.leads]
        if leaders and self.world.random.random() < 0.35:
            found = leaders
        return self.world.random.choice(found) if found else None

    def _fault_kill(self) -> bool:
        member = self._any()
        if member is not None:
            self.world.say(f"m{member.id} is killed")
            self.world.down(member, power=False)
        return member is not None

    def _fault_power(self) -> bool:
        member = self._any()
        if member is not None:
            self.world.say(f"m{member.id} loses power")
            self.world.down(member, power=True)
        return member is not None

    def _fault_power_all(self) -> bool:
        if self.world.random.random() < 0.7:
            return False
        for member in list(self.world.members.values()):
            if member.node is not None and self.world.random.random() < 0.9:
                self.world.down(member, power=True)
        return True

    def _fault_cut(self) -> bool:
        member = self._any()
        if member is not None:
            member.disk.cut_at = member.disk.operations + self.world.random.randrange(1, 25)
        return member is not None

    def _fault_sync(self) -> bool:
        member = self._any()
        if member is not None:
            member.disk.fail_sync_at = member.disk.syncs + self.world.random.randrange(1, 10)
        return member is not None

    def _fault_full(self) -> bool:
        member = self._any()
        if member is None:
            return False
        spare = 0 if self.world.random.random() < 0.5 else LOG_RESERVE_BYTES
        member.disk.capacity_bytes = member.disk.used_bytes() - spare + self.world.random.randrange(3000)
        self.world.later(self.world.random.random(), self._room, member)
        return True

    @staticmethod
    def _room(member: Member) -> None:
        member.disk.capacity_bytes = ROOM

    def _fault_pause(self) -> bool:
        member = self._any()
        if member is None or member.paused:
            return False
        member.paused = True
        self.world.later(self.world.random.random() * 2, self.resume, member, member.life)
        return True

    def resume(self, member: Member, life: int) -> None:
        if member.life != life or not member.paused:
            return
        member.paused = False
        waiting, member.inbox = member.inbox, []
        self.world.turn(member, life)  # a woken process may look at its clock before its sockets
        for action, args in waiting:
            action(*args)

    def _fault_jump(self) -> bool:
        member = self._any()
        if member is None:
            return False
        offset, rate = self.world.clocks[member.id]
        self.world.clocks[member.id] = (offset + self.world.random.choice((0.1, 1.0, 60.0)), rate)
        return True

    def _fault_wall(self) -> bool:
        random = self.world.random
        self.world.walls[random.choice(list(self.world.walls))] += random.choice((-3600.0, -1.0, 1.0, 3600.0))
        return True

    def _part(self) -> None:
        if not self.world.healing:
            self._fault_partition()

    def _fault_partition(self) -> bool:
        members = [ident for ident, member in self.world.members.items() if not member.gone]
        if len(members) < 2:
            return False
        if self.world.random.random() < 0.7:
            self.world.network.heal()
        leader = self.world.leader()
        self.world.say(f"partition: {partition(self.world.network, self.world.random, members, leader)}")
        return True

    def _fault_heal(self) -> bool:
        self.world.network.heal()
        return True

    def _fault_weather(self) -> bool:
        random, usual = self.world.random, self.world.profile.weather
        loss, slow = random.choice((usual.loss, 0.0, 0.5)), random.choice((0.0, 0.3))
        self.world.network.weather = replace(usual, loss=loss, slow=slow)
        return True

    def _fault_flip(self) -> bool:
        member = self._any()
        if member is None or not self._can_spare(member):
            return False
        self.world.down(member, power=self.world.random.random() < 0.5)
        if not member.disk.flip_vouched(self.world.random):
            return False
        member.weak = True
        return True

    def _fault_lose(self) -> bool:
        if self.world.random.random() < 0.6:
            return False
        member = self._any()
        if member is None or not self._can_spare(member):
            return False
        self.world.lose(member)
        return True

    def _can_spare(self, candidate: Member) -> bool:
        """Whether the group, in every configuration that may come, bears that one more disk loses data."""
        confs = []
        for member in self.world.members.values():
            if member.gone:
                continue
            if member.weak or member.node is None:
                return False
            log = member.node.core.log
            try:
                coming = log.entries(log.applied + 1, log.last + 1, 1 << 30)
            except Compacted:
                return False
            if log.snapshot is not None or any(entry.kind == EntryKind.CONF for entry in coming):
                return False
            confs.append(member.node.core.conf)
        gone = {member.id for member in self.world.members.values() if member.gone} | {candidate.id}
        return all(
            not conf.outgoing and len(conf.voters & gone) * 2 < len(conf.voters) for conf in confs if conf.voters
        )

    def _fault_member(self) -> bool:
        return self.operate()

    def operate(self) -> bool:
        for member in list(self.world.members.values()):
            if member.up and member.leads:
                node = member.node
                assert node is not None
                asked: Optional[str] = None
                with self.world.guard(member):
                    asked = self.operator.act(node)
                self.world.wake(member)
                if asked is not None:
                    self.world.say(f"m{member.id} is asked for {asked}")
                    if not self.world.healing and self.world.random.random() < self.world.profile.change_cut:
                        self.world.later(self.world.random.random() * 0.1, self._part)
                    return True
        return False

    def _fault_transfer(self) -> bool:
        member = self._any()
        if member is None or member.node is None or member.paused:
            return False
        with self.world.guard(member):
            member.node.core.transfer_leader(self.world.random.choice(list(self.world.members)))
        self.world.wake(member)
        return True

    def _fault_campaign(self) -> bool:
        member = self._any()
        if member is None or member.node is None or member.paused:
            return False
        if member.node.stable.store.damaged:
            return False  # a driver asks no such member: what it acknowledged is lost there
        with self.world.guard(member):
            member.node.core.campaign()
        self.world.wake(member)
        return True

    def _fault_forget(self) -> bool:
        """A connection breaks, with or without reason."""
        member = self._any()
        if member is None or member.node is None or member.paused:
            return False
        with self.world.guard(member):
            member.node.peer_lost(member.node.leader)
        self.world.wake(member)
        return True
