"""This mount's registration with the metadata service, and what it asks of it.

Every mutation has a sequence number of its own and is sent with the same one until it is answered or its deadline has
passed, to whichever member leads; the service executes it once (rule 12 and the module docstring of metadata.api).
A session that the service no longer knows is dead: what was bound to it fails, and a new one is opened at once, so
that the mount serves again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Optional, TypeVar

import msgspec
import trio

from fusefs.client.brought import Brought
from fusefs.client.caller import Answer, Caller
from fusefs.client.channel import SessionChannel
from fusefs.client.dead import end_dead_sessions
from fusefs.client.exclusive import Exclusive
from fusefs.client.journal import Journal
from fusefs.client.leader import PAUSE_S_MAX, PAUSE_S_MIN, Leader
from fusefs.client.learning import Lesson, learn, locking, named, only_names_and_attributes, resolved, subjects, touched
from fusefs.client.leases import Leases, Ticket
from fusefs.client.mutation import Mutation
from fusefs.client.options import ClientOptions
from fusefs.client.recalls import Recalls
from fusefs.client.results import data_of, expect, whole
from metadata import api
from node.wire.errors import Code, FsError
from node.wire.limits import LEASE_MARGIN_S, RESULT_WINDOW, SESSION_LEASE_S, SESSION_RENEW_S

log = logging.getLogger(__name__)

WATCH_S = 0.25  # how often to look whether the connection to the leader still stands
CLOSE_TIMEOUT_S = 2.0
LEASE_S = SESSION_LEASE_S - LEASE_MARGIN_S  # by our clock, which may run slow
ARRIVAL_S = 0.005  # for an answer to reach who asked, through the kernel
ALONG_S = 0.5  # who asks waits no longer for what was asked for along, which somebody may have to give up first
ASKED_AGAIN_MAX = 8  # an answer that a recall met on its way

_ENDED = frozenset({Code.UNKNOWN_SESSION, Code.FENCED})  # nothing of this session will be executed any more

R = TypeVar("R")


class Session:
    """One mount's session. ``run`` keeps it; the other methods may be called from any task.

    ``incarnation`` counts sessions; what belongs to one (open files, dirty data) names it in ``submit`` and is told
    by ``on_lost`` (sync, called once for each session that died).
    """

    def __init__(
        self,
        members: Mapping[int, Caller],
        *,
        mount: str,
        options: ClientOptions,
        random_bytes: Callable[[int], bytes],
        nursery: trio.Nursery,
        clock_s: Callable[[], float] = trio.current_time,
        awake_s: Callable[[], float] = trio.current_time,
        gone: Callable[[str], bool] = lambda process: False,
    ) -> None:
        """``clock_s`` goes on while the machine sleeps, ``awake_s`` does not. ``nursery`` runs what recalls cause.
        ``gone`` knows processes that certainly do not exist any more."""
        self._leader = Leader(members)
        self.leases = Leases(on=options.leases, lease_s=LEASE_S, bytes_max=options.lease_bytes_max)
        self.journal = Journal(SessionChannel(self))
        self.journal.enabled = options.leases and options.local_names
        self.exclusive = Exclusive(self)
        self.recalls = Recalls(self.leases, members, nursery, self.exclusive.recalled)
        self._brought = Brought(self.leases, lambda ino: self.recalls.changing((ino,)))
        self.journal.on_settled = self._brought.settled
        self._leader.on_lost = self.leases.drop_all
        self._nursery = nursery
        self._gone = gone
        self._clock_s, self._awake_s = clock_s, awake_s
        self._skew_s = clock_s() - awake_s()
        self.guess: Callable[[int, bytes], int] = lambda parent, name: 0  # what a name may mean
        self._mount = mount
        self._options = options
        self._random_bytes = random_bytes
        self._unacked: OrderedDict[int, None] = OrderedDict()  # sequences sent and not answered, in order
        self._fresh: deque[tuple[float, int]] = deque()  # when answered, sequence: of a moment ago
        self._sequence = 0
        self._room = trio.lowlevel.ParkingLot()
        self._opened = trio.Event()
        self._wake = trio.Event()
        self._locked = 0  # the last session with which locks ended
        self._orphans_after = 0
        self._fence = 0
        self.room_bytes = 0
        self.log_room_bytes = -1  # as in RenewSessionReply
        self.on_data: Callable[[bytes, bytes], None] = lambda block, plain: None  # bytes that came with extents
        self.on_again: Callable[[Sequence[api.Result]], None] = lambda results: None  # of what was asked for along
        self.id = 0
        self.incarnation = 0
        self.gc_epoch = 0
        self.pg_epoch = 0
        self.on_lost: Callable[[], None] = lambda: None
        self.holds_locks: Callable[[], bool] = lambda: False  # programs believe in locks of this session
        self.on_orphans: Callable[[Sequence[int]], None] = lambda inos: None

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the session (raises what the service refuses it with), then keep it until cancelled."""
        await self._open()
        await self.renew()  # learns the leader's term
        if self._options.process:
            self._nursery.start_soon(end_dead_sessions, self, self._gone)
        task_status.started()
        while True:
            await self._pause()
            try:
                if not self._opened.is_set():
                    await self._open()
                await self.renew()
            except FsError as error:
                log.warning("session of %s: %s", self._mount, error)
                await trio.sleep(PAUSE_S_MAX)

    async def _pause(self) -> None:
        """Wait until it is time for a renewal: a lost connection is one, because a new leader waits to hear from us."""
        end = trio.current_time() + SESSION_RENEW_S
        connected = self._leader.connected
        while trio.current_time() < end and not self._wake.is_set() and self._leader.connected >= connected:
            connected = self._leader.connected
            with trio.move_on_after(WATCH_S):
                await self._wake.wait()
            self.leases.held(self.now_s())
        if self._leader.connected < connected:
            self.leases.drop_all()
        self._wake = trio.Event()

    async def renew(self) -> None:
        """Tell the service that this mount lives, and hear of its epochs and of removed inodes."""
        asked = self.id
        term = self.leases.term
        deadline = self.deadline()
        tickets: list[Ticket] = []
        try:
            answer = await self._ask(
                lambda: api.RenewSession(asked, self._orphans_after, self.leases.term, fence=self._fence),
                deadline,
                tickets=tickets,
            )
        except FsError as error:
            if error.code not in _ENDED:
                raise
            if error.code is Code.UNKNOWN_SESSION or not self._refence(asked, error):
                self._lost(asked)
            else:
                self._wake.set()  # to renew with the new fence
            return
        reply = answer.body
        if asked != self.id:
            return
        self.room_bytes, self.log_room_bytes = reply.room_bytes, reply.log_room_bytes
        self.leases.prolonged(tickets[-1], reply.lease_term, self.now_s())
        self.leases.adopt(reply.lease_term)
        self.take_epochs(reply.gc_epoch, reply.pg_epoch)
        self._orphans_after = max(reply.orphans, default=0)
        if reply.orphans:
            self.on_orphans(reply.orphans)
        if self.leases.term != term:
            self._wake.set()  # tell the leader that its term is known, so that it need not wait for us

    async def close(self) -> None:
        """End the session, so that nothing waits for its expiry. Never raises for a service that is away."""
        if self._opened.is_set():
            self._opened = trio.Event()
            try:
                await self._leader.call(api.CloseSession(self.id), trio.current_time() + CLOSE_TIMEOUT_S)
            except FsError as error:
                log.warning("session of %s is left to expire: %s", self._mount, error)

    async def _open(self) -> None:
        mine = self._options
        request = api.OpenSession(self._random_bytes(16), mine.host, self._mount, mine.version, mine.process)
        reply = (await self.call(request)).body
        self.id = reply.session
        self._fence = reply.fence
        self.exclusive.term = 0
        self._brought.clear()
        self.leases.renounce()
        self.incarnation += 1
        self._sequence = 0
        self._unacked = OrderedDict()
        self._fresh.clear()
        self._orphans_after = 0
        self.take_epochs(reply.gc_epoch, reply.pg_epoch)
        self._room.unpark_all()
        self._opened.set()

    def _lost(self, session: int) -> None:
        """The service does not know this session any more; once for each."""
        if session != self.id or not self._opened.is_set():
            return
        log.error("session %d of %s has expired; its open files and unwritten data are lost", session, self._mount)
        self._opened = trio.Event()
        self._wake.set()
        self._locked = session if self.holds_locks() else self._locked
        self.leases.renounce()
        self.journal.clear()
        self.exclusive.term = 0
        self.on_lost()

    def take_epochs(self, gc_epoch: int, pg_epoch: int) -> None:
        """Note the newest epochs that the service has told of."""
        self.gc_epoch = max(self.gc_epoch, gc_epoch)
        self.pg_epoch = max(self.pg_epoch, pg_epoch)

    # --- requests -------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When a request that begins now must have ended."""
        return trio.current_time() + self._options.request_timeout_s

    def before(self, deadline: float) -> bool:
        """Whether there is time left."""
        return trio.current_time() < deadline

    async def call(self, request: msgspec.Struct, deadline: Optional[float] = None) -> Answer:
        """Ask the leader something that needs no session and may be asked twice."""
        return await self._leader.call(request, deadline or self.deadline())

    def now_s(self) -> float:
        """The time that leases go by. A jump against the other clock means that the machine slept: the kernel's
        time-outs did not go on then, so everything is dropped."""
        now_s = self._clock_s()
        if abs(now_s - self._awake_s() - self._skew_s) > LEASE_MARGIN_S:
            self.leases.drop_all()
            self._skew_s = now_s - self._awake_s()
        return now_s

    async def _ask(
        self, request: Callable[[], msgspec.Struct], deadline: float, misses: Optional[list[FsError]] = None,
        tickets: Optional[list[Ticket]] = None, changing: bool = False, held: Collection[int] = (),
    ) -> Answer:
        """Ask the leader, in the name of the term that we know; where that has passed, adopt the new one and ask again.

        Naming the term is a promise that nothing is cached under an earlier leader's lease. A new leader waits for it
        from every session before it answers anybody. ``tickets`` gets one for each request sent, the last one for what
        was answered. ``changing``: not before what is recalled was brought. ``held``: as in ``Recalls.forgotten``.
        """
        while True:
            self.leases.held(self.now_s())  # where they have run out the kernel has to forget, before we ask for more
            await (self.recalls.quiet(deadline) if changing else self.recalls.forgotten(deadline, held))
            named = self.leases.term
            try:
                if self.exclusive.term not in (0, named):
                    await self.exclusive.renounce(deadline)
                    continue
                ticket = self.leases.ask(self.now_s())
                if tickets is not None:
                    tickets.append(ticket)
                return await self._leader.call(request(), deadline, misses)
            except FsError as error:
                if error.code is not Code.LEASES_GONE or error.hint == named or not self.before(deadline):
                    raise
                self.leases.adopt(error.hint)
                if error.hint < self.leases.term:  # from a leader that does not know yet that it is none any more
                    await trio.sleep(PAUSE_S_MIN)

    def _reading(self, queries: tuple[api.Query, ...]) -> api.Read:
        return api.Read(self.id, queries, self.leases.on, self.leases.term, self._fence)

    async def read(
        self, *queries: api.Query, deadline: Optional[float] = None, journal: bool = False, held: bool = False
    ) -> tuple[api.Result, ...]:
        """Answer queries from one state, as new as any mutation acknowledged before. Results may be Failed.

        ``journal``: on behalf of the journal, so without waiting for it. ``held``: the kernel holds a page until it has
        the answer, and a recall of these inodes waits for that."""
        deadline = deadline or self.deadline()
        if journal:
            return self._whole(await self._leader.call(api.Read(self.id, queries, journal=True), deadline), queries)
        along = self.leases.again.along(queries, trio.current_time())
        if along:
            with trio.move_on_after(ALONG_S):
                results = await self._read(queries + along, deadline, held)
                self.on_again(results[len(queries) :])
                return results[: len(queries)]
        return await self._read(queries, deadline, held)

    async def _read(self, queries: tuple[api.Query, ...], deadline: float, held: bool) -> tuple[api.Result, ...]:
        again = 0
        held_inos = tuple(named(queries)) if held else ()
        while True:
            await self.ready(deadline, changing=False)
            if self.journal.concerns(named(queries)):
                await self.journal.drain(deadline)
            asked = self.id
            tickets: list[Ticket] = []
            try:
                answer = await self._ask(partial(self._reading, queries), deadline, tickets=tickets, held=held_inos)
            except FsError as error:
                if error.code not in _ENDED:
                    raise
                if error.code is Code.UNKNOWN_SESSION or not self._refence(asked, error):
                    self._lost(asked)
                continue
            results = self._whole(answer, queries)
            ticket, about = tickets[-1], resolved(queries, results)
            if self._older(ticket, about, results):
                await self.journal.drain(deadline)
                if not self.before(deadline):
                    raise FsError(Code.TIMEOUT, "an inode was changed here again and again while it was asked for")
                continue
            again += 1
            believed = self._learn(ticket, about, answer.body, held and self.leases.on)
            if believed or self.recalls.passes(held_inos):
                return results
            if held and self.before(deadline):
                await self.recalls.acknowledged(held_inos)
            elif held or again > ASKED_AGAIN_MAX:
                return results

    def _older(self, ticket: Ticket, queries: tuple[api.Query, ...], results: tuple[api.Result, ...]) -> bool:
        """Whether answers lack what was changed here by right of exclusive leases."""
        if not self.journal and not self.leases.changed_since(ticket):
            return False
        inos = subjects(queries, results)
        return self.journal.concerns(inos) or self.leases.overtaken(ticket, inos)

    def _whole(self, answer: Answer, queries: tuple[api.Query, ...]) -> tuple[api.Result, ...]:
        """The results of a Read; bytes that came along are handed on."""
        results = whole(answer.body.results, len(queries))
        for block, plain in data_of(results):
            self.on_data(block, plain)
        return results

    def _learn(self, ticket: Ticket, queries: tuple[api.Query, ...], reply: api.ReadReply, held: bool) -> bool:
        """Remember what may be. False: a recall met the answer, which may be of a state that others must not see yet;
        whoever asks again is answered when all have acknowledged. What is ``held`` stays mapped: it takes a lease."""
        if self.leases.granted(ticket, reply.lease_term, self.now_s()):
            learn(self.leases, ticket, queries, reply.results)
            if reply.shared is not None and self.journal.enabled:
                inos = subjects(queries, reply.results)
                fresh = [ino for ino in inos if self.leases.fresh(ticket, ino)]
                self.leases.own(ticket, fresh, frozenset(reply.shared), frozenset(reply.locked), self.now_s())
            return True
        return not held and not self.leases.recalled_since(ticket, subjects(queries, reply.results))

    async def query(self, query: api.Query, kind: type[R], deadline: Optional[float] = None, **how: bool) -> R:
        """Answer one query; raises what it failed with."""
        return expect((await self.read(query, deadline=deadline, **how))[0], kind)

    async def submit(
        self,
        *ops: api.Op,
        stop_on_error: bool = False,
        incarnation: Optional[int] = None,
        deadline: Optional[float] = None,
        journal: Callable[[], bool] | bool = False,
    ) -> tuple[api.Result, ...]:
        """Execute mutations, exactly once, as one step. Results may be Failed; durable when this returns.

        What the journal holds goes first. ``journal``: these are part of it, changes of what is leased exclusively
        (or a function that tells so when it has come to that).

        With ``incarnation`` they are for that session only: UNKNOWN_SESSION where it has ended. After TIMEOUT, IO or
        a cancellation they may or may not have been executed, and will not be executed later.
        """
        deadline = deadline or self.deadline()
        while True:
            mutation = await self.begin(
                *ops, stop_on_error=stop_on_error, incarnation=incarnation, deadline=deadline, journal=journal
            )
            try:
                return await self.finish(mutation, deadline)
            except FsError as error:
                if error.code not in _ENDED or incarnation is not None or mutation.doubtful:
                    raise
                if mutation.session == self._locked:  # whoever asks may believe in a lock
                    raise FsError(Code.IO, "locks have ended with the session") from None
            finally:
                self.abandon(mutation)

    async def change(self, op: api.Op, kind: type[R], incarnation: Optional[int] = None) -> R:
        """Execute one mutation; raises what it failed with."""
        return expect((await self.submit(op, incarnation=incarnation))[0], kind)

    async def begin(
        self,
        *ops: api.Op,
        stop_on_error: bool = False,
        incarnation: Optional[int] = None,
        deadline: float,
        journal: Callable[[], bool] | bool = False,
    ) -> Mutation:
        """Number a mutation. Until answered or abandoned it may be finished again and again; it executes once."""
        await self.ready(deadline, changing=True)
        if incarnation is not None and incarnation != self.incarnation:
            raise FsError(Code.UNKNOWN_SESSION, "the session that this belongs to has ended")
        self._sequence += 1
        self._unacked[self._sequence] = None
        in_journal = journal if isinstance(journal, bool) else journal()
        return Mutation(self.id, self._sequence, ops, stop_on_error, journal=in_journal)

    async def finish(self, mutation: Mutation, deadline: float) -> tuple[api.Result, ...]:
        """Have a mutation executed and return its results. After TIMEOUT it may be tried again."""
        self._check_session(mutation)
        if mutation.journal:
            return await self._bring(mutation, deadline)
        self.journal.complete()
        self._begin_change(mutation)  # before anything is awaited: from here on nothing of it is changed by ourselves
        # What a name leads to may not be known here, and must not be changed by ourselves while it is taken away
        unnames = any(isinstance(op, (api.Remove, api.Rename)) for op in mutation.ops)
        if self.journal:
            with self.journal.suspended() if unnames else nullcontext():
                await self.journal.drain(deadline)
        lowest = self._lowest_unacked()
        misses: list[FsError] = []
        tickets: list[Ticket] = []
        while True:
            try:
                with self.journal.suspended() if unnames else nullcontext():
                    answer = await self._ask(
                        partial(self._submission, mutation, lowest), deadline, misses, tickets, changing=True
                    )
                break
            except FsError as error:
                if error.code is Code.FENCED and self._refence(mutation.session, error):
                    continue
                mutation.doubtful = mutation.doubtful or bool(misses)
                if error.code in _ENDED:
                    self._lost(mutation.session)
                raise
        reply = answer.body
        results = whole(reply.results, len(mutation.ops))
        change, mutation.change = mutation.change, None
        if change is not None:
            granted = self.leases.granted(tickets[-1], reply.lease_term, self.now_s())
            lesson = Lesson(self.leases, change, mutation.ops, reply, granted=granted)
            if granted and reply.shared is not None and self.journal.enabled:
                trusted = lesson.trusted.intersection(api.shown(reply.results))
                self.leases.own(tickets[-1], trusted, frozenset(reply.shared), frozenset(reply.locked), self.now_s())
            self.leases.certain(lowest)
        self._fresh.append((trio.current_time(), mutation.sequence))
        self.abandon(mutation)
        return results

    def _lowest_unacked(self) -> int:
        """Up to where all is answered, also to whoever asked: the kernel may not have looked at an answer of a moment
        ago, and until it has, others must not be shown what it does not show (``LeaseTable.settle``)."""
        past = trio.current_time() - ARRIVAL_S
        while self._fresh and self._fresh[0][0] <= past:
            self._fresh.popleft()
        return min(next(iter(self._unacked)), *(sequence for _, sequence in self._fresh), self._sequence)

    def _submission(self, mutation: Mutation, lowest: int) -> api.Submit:
        return api.Submit(
            mutation.session,
            mutation.sequence,
            lowest,
            mutation.ops,
            stop_on_error=mutation.stop_on_error,
            fence=self._fence,
            lease=self.leases.on,
            lease_term=self.leases.term,
            settled=mutation.settled,
        )

    # --- the journal ----------------------------------------------------------------------------------------------

    async def _bring(self, mutation: Mutation, deadline: float) -> tuple[api.Result, ...]:
        """Have a part of the journal executed. Waits for no recall and names no new leader's term."""
        term = self.leases.term if self.exclusive.term == self.leases.term else 0
        misses: list[FsError] = []
        while True:
            self._check_session(mutation)  # it may have ended meanwhile: the window is another's then
            ticket = self.leases.ask(self.now_s())
            request = api.Submit(
                mutation.session,
                mutation.sequence,
                self._lowest_unacked(),
                mutation.ops,
                stop_on_error=mutation.stop_on_error,
                fence=self._fence,
                lease=self.leases.on,
                lease_term=term,
                journal=True,
                times_ns=mutation.times_ns,
                bases=mutation.bases,
                gives=mutation.gives,
            )
            try:
                answer = await self._leader.call(request, deadline, misses)
                break
            except FsError as error:
                mutation.doubtful = mutation.doubtful or bool(misses)
                if error.code is Code.LEASES_GONE and term:
                    term = 0
                    continue
                if error.code in _ENDED or error.code is Code.VERSION_MISMATCH:
                    if error.code is Code.VERSION_MISMATCH:
                        log.critical("the journal does not fit the state of the volume: %s", error)
                    self._lost(mutation.session)
                raise
        reply = answer.body
        results = whole(reply.results, len(mutation.ops))
        granted = term != 0 and self.leases.granted(ticket, reply.lease_term, self.now_s())
        self.leases.confirmed(ticket, api.shown(results), reply.shared if granted else None)
        self._brought.take(mutation.ops, results, foretold=bool(mutation.times_ns))
        for result in results:
            for attr in api.told(result):
                if not self.journal.concerns((attr.ino,)):
                    self._brought.settled(attr.ino)
        self.abandon(mutation)
        return results

    def _check_session(self, mutation: Mutation) -> None:
        if mutation.session != self.id:
            raise FsError(Code.UNKNOWN_SESSION, "the session that this belongs to has ended")

    def _refence(self, session: int, error: FsError) -> bool:
        """Leases were broken while this mount was not heard of, and its locks ended. Where it had none and had changed
        nothing by itself, nothing is lost; it goes on with the new fence."""
        if session != self.id or not self._opened.is_set():
            return False
        if error.hint <= self._fence:
            return True  # another request has met it before
        if self.journal or self.exclusive.term or self.holds_locks():
            return False
        log.warning("leases of %s were broken", self._mount)
        self._fence = error.hint
        return True

    async def keep(self, inos: Sequence[int], deadline: float) -> None:
        """Name the newest term to the service, and tell it what was changed here and is not brought yet."""
        told = api.RenewSession(self.id, self._orphans_after, self.leases.term, tuple(inos), self._fence)
        await self._leader.call(told, deadline)

    async def learn_epochs(self, deadline: float) -> None:
        """Hear of the newest epochs; waits for nothing else."""
        reply = (await self._leader.call(api.RenewSession(self.id, self._orphans_after), deadline)).body
        self.take_epochs(reply.gc_epoch, reply.pg_epoch)

    def _begin_change(self, mutation: Mutation) -> None:
        """From now on what the mutation touches is not answered from memory, nor by the kernel."""
        if not self.leases.on or mutation.change is not None:
            return
        inos, names = touched(mutation.ops, self._guess)
        mutation.change = self.leases.begin(inos, names, self.now_s(), locking(mutation.ops))
        # While the kernel changes a size it lets programs read with the old one, whatever it is answered
        if self.recalls.changing(inos, names) and only_names_and_attributes(mutation.ops):
            mutation.settled = tuple(inos)

    def _guess(self, parent: int, name: bytes) -> int:
        return self.leases.name(parent, name, self.now_s()) or self.guess(parent, name)

    def abandon(self, mutation: Mutation) -> None:
        """Nobody asks for this one again. Where it was not executed yet it never will be."""
        change, mutation.change = mutation.change, None
        if mutation.session != self.id or not self._opened.is_set():
            if change is not None:
                self.leases.disown(change)
            return
        if change is not None:
            self.leases.doubt(change, mutation.sequence)
            if change.inos:
                self.recalls.doubted(change.inos)
        self._unacked.pop(mutation.sequence, None)
        if self._room:
            self._room.unpark_all()

    async def ready(self, deadline: float, *, changing: bool = False) -> None:
        """Wait for a session, and to change something also for room in its window of results."""
        while not self._opened.is_set() or (changing and self._full()):
            with trio.move_on_at(deadline) as scope:
                if not self._opened.is_set():
                    await self._opened.wait()
                else:
                    await self._room.park()
            if scope.cancelled_caught:
                raise FsError(Code.TIMEOUT, "no session" if not self._opened.is_set() else "too much under way")

    def _full(self) -> bool:
        return bool(self._unacked) and self._sequence - next(iter(self._unacked)) >= RESULT_WINDOW - 1

    def statistics(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "incarnation": self.incarnation,
            "in_flight": len(self._unacked),
            "sequence": self._sequence,
            "term": self.leases.term,
            "gc_epoch": self.gc_epoch,
            "pg_epoch": self.pg_epoch,
            "leader": self._leader.statistics(),
        }
