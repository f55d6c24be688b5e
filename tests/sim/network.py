"""A network that loses, delays, overtakes and repeats, with partitions of every shape; and snapshots on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Optional, Protocol

import msgspec

from metadata.raft.messages import Message, SnapshotMeta
from metadata.server.wire import OfferSnapshot, SnapshotPiece, SnapshotPosition
from metadata.state.tables import SnapshotView
from metadata.store.snapshot import SnapshotName, SnapshotSource
from node.wire.errors import Code, FsError

_RPC_S = 0.3  # of a snapshot's pieces
_STALL_S = 3.0
_CHUNK_BYTES = 1500
_RESUMABLE = frozenset({Code.RETRY, Code.OVERLOADED, Code.CORRUPT_BLOCK, Code.NO_SPACE})


class Clock(Protocol):
    """What carries things to a later moment."""

    now: float

    def later(self, delay_s: float, action: Callable[..., None], *args: Any) -> None: ...


@dataclass
class Weather:
    """How bad the network is."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.002
    slow: float = 0.0  # how many messages take up to ``slow_s``
    slow_s: float = 0.3


class Network:
    """Everything that travels. Ends are member ids; clients are negative and see no partitions."""

    def __init__(self, clock: Clock, random: Random, weather: Weather) -> None:
        self.clock = clock
        self.weather = weather
        self.cut: set[tuple[int, int]] = set()  # from, to
        self.posted = self.lost = self.repeated = 0
        self._random = random

    def post(self, sender: int, to: int, deliver: Callable[..., None], *args: Any) -> bool:
        """Send. False where a connection would have been seen to be broken."""
        random, weather = self._random, self.weather
        self.posted += 1
        if (sender, to) in self.cut:
            self.lost += 1
            return False
        if weather.loss and random.random() < weather.loss:
            self.lost += 1
            return True
        self.clock.later(self._delay_s(), deliver, *args)
        if weather.repeat and random.random() < weather.repeat:
            self.repeated += 1
            self.clock.later(self._delay_s() * random.choice((1, 1, 10)), deliver, *args)
        return True

    def _delay_s(self) -> float:
        random, weather = self._random, self.weather
        if weather.slow and random.random() < weather.slow:
            return random.random() * weather.slow_s
        return weather.delay_s * (0.2 + random.random())

    # --- partitions -------------------------------------------------------------------------------------------

    def heal(self) -> None:
        self.cut.clear()

    def separate(self, left: Iterable[int], right: Iterable[int], *, both_ways: bool = True) -> None:
        """Nothing goes from ``left`` to ``right``, nor back."""
        left, right = list(left), list(right)
        for one in left:
            for other in right:
                if one != other:
                    self.cut.add((one, other))
                    if both_ways:
                        self.cut.add((other, one))


class End(Protocol):
    """A member as the stream of a snapshot sees it."""

    id: int

    def snapshot_request(self, request: msgspec.Struct, data: bytes) -> SnapshotPosition: ...

    def snapshot_sent(self, life: int, peer: int, ok: bool, install: Optional[Message]) -> None: ...


class Stream:
    """One snapshot on its way to one peer, by requests and answers that may be lost. The twin of ``stream_snapshot``,
    which needs an event loop."""

    def __init__(
        self, network: Network, sender: End, life: int, peer: Callable[[], Optional[End]],
        current: Callable[[], bool], message: Message, meta: SnapshotMeta, view: SnapshotView, nonce: bytes,
    ) -> None:
        self.network = network
        self.sender = sender
        self.life = life  # of the sender: when that ends, nobody is told
        self.message = message
        self.meta = meta
        self.source = SnapshotSource(view, SnapshotName(meta, nonce), chunk_bytes=_CHUNK_BYTES)
        self.ended = False
        self._peer = peer
        self._current = current
        self._request = 0
        self._moved_s = network.clock.now
        self._offer()

    def _offer(self) -> None:
        self._ask(OfferSnapshot(self.sender.id, b"", b"", self.source.name), b"")

    def _ask(self, request: msgspec.Struct, data: bytes) -> None:
        self._request += 1
        number = self._request
        self.network.post(self.sender.id, self.message.to, self._arrive, number, request, data)
        self.network.clock.later(_RPC_S, self._overdue, number)

    def _arrive(self, number: int, request: msgspec.Struct, data: bytes) -> None:
        peer = self._peer()
        if peer is None:
            return
        answer: SnapshotPosition | FsError
        try:
            answer = peer.snapshot_request(request, data)
        except FsError as error:
            answer = error
        self.network.post(peer.id, self.sender.id, self._answered, number, answer)

    def _overdue(self, number: int) -> None:
        if not self.ended and number == self._request:
            self._again()

    def _again(self) -> None:
        if self.network.clock.now - self._moved_s > _STALL_S or not self._current():
            self._end(False)
        else:
            self._offer()

    def _answered(self, number: int, answer: SnapshotPosition | FsError) -> None:
        if self.ended or number != self._request:
            return
        if not self._current():
            self._end(False)
            return
        if isinstance(answer, FsError):
            if answer.code in _RESUMABLE:
                return  # again when overdue
            self._end(False)
        elif not answer.wanted:
            self._end(True, install=False)
        elif answer.loaded:
            self._end(True)
        elif self.source.chunks is None or answer.following < self.source.chunks:
            self._moved_s = self.network.clock.now
            self._ask(SnapshotPiece(self.source.name.nonce), self.source.chunk(answer.following))

    def _end(self, ok: bool, *, install: bool = True) -> None:
        self.ended = True
        message = msgspec.structs.replace(self.message, snapshot=self.meta) if ok and install else None
        self.sender.snapshot_sent(self.life, self.message.to, ok, message)


def partition(network: Network, random: Random, members: Sequence[int], leader: int) -> str:
    """Draw one of the shapes that split groups, and say which."""
    members = list(members)
    random.shuffle(members)
    half = random.randrange(1, len(members))
    shape = random.choice(("halves", "halves", "isolated", "leader", "one-way", "mute", "deaf", "bridge", "ring"))
    if shape == "halves":
        network.separate(members[:half], members[half:])
    elif shape == "isolated":
        network.separate(members[:1], members[1:])
    elif shape == "leader":
        network.separate([leader or members[0]], members)
    elif shape == "one-way":
        network.separate(members[:half], members[half:], both_ways=False)
    elif shape == "mute":
        network.separate([leader or members[0]], members, both_ways=False)
    elif shape == "deaf":
        network.separate(members, [leader or members[0]], both_ways=False)
    elif shape == "bridge":
        network.separate(members[1:1 + half], members[1 + half:])
    else:
        for place, member in enumerate(members):
            near = {members[place - 1], member, members[(place + 1) % len(members)]}
            network.separate([member], [other for other in members if other not in near])
    return shape
