"""What clients, chunk servers and commands may ask a member: the handlers.

All are synchronous and answer later, from the Ready loop: no task, no queue and no lock per request. What waits is
bounded by the core (bytes not yet committed) and here (requests). A member that does not lead answers NOT_LEADER and
names the leader; GetStatus is answered by anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Optional

import msgspec

from metadata import api
from metadata.raft.core import Role
from metadata.server.leader import Leader
from metadata.server.leasing import NOTHING, Leasing, Then, concerned, leasable, spoken_of
from metadata.server.node import Node
from metadata.server.status import Reporter
from metadata.state.command import CommandKind, encode_command
from metadata.state.machine import Machine, Outcome
from node.rpc.server import Call
from node.wire.errors import Code, FsError
from node.wire.limits import METADATA_WAITING_MAX, READ_QUERIES_MAX, RECLAIM_BLOCKS_MAX, SESSION_LEASE_S, SUBMIT_OPS_MAX
from node.wire.types import BLOCK_ID_BYTES
from storage.api import Heartbeat


# What is taken on a full disk
FREEING = frozenset({api.Remove, api.Release, api.PunchHole, api.Unlock, api.CancelLock})


class Service:
    """The handlers over one node. ``wall_ns`` is the clock that stamps entries."""

    def __init__(
        self,
        node: Node,
        machine: Machine,
        leader: Leader,
        reporter: Reporter,
        leasing: Leasing,
        *,
        wall_ns: Callable[[], int],
        change_members: Callable[[Call], None],
        collect_garbage: Optional[Callable[[Call], None]] = None,
        healing: Optional[Callable[[Call], None]] = None,
    ) -> None:
        self.node = node
        self.machine = machine
        self.leader = leader
        self.reporter = reporter
        self.leasing = leasing
        self._wall_ns = wall_ns
        self._counts = {"submits": 0, "reads": 0, "queries": 0, "overloaded": 0}

        self._handlers: dict[type[msgspec.Struct], Callable[[Call], None]] = {
            api.Submit: self.submit,
            api.Read: self.read,
            api.OpenSession: self.open_session,
            api.RenewSession: self.renew_session,
            api.CloseSession: self.close_session,
            api.GetClusterMap: self.cluster_map,
            api.GetStatus: self.status,
            Heartbeat: self.heartbeat,
            api.Recall: self.misdirected,
            api.LocksGranted: self.misdirected,
            api.Recalled: leasing.recalled,
            api.ChangeMembers: change_members,
            api.CollectGarbage: collect_garbage or self.misdirected,
            api.ListReferences: self.list_references,
            api.GetHealing: healing or self.misdirected,
            api.StartScrub: healing or self.misdirected,
            api.ChangeServer: healing or self.misdirected,
            api.SetStrategy: healing or self.misdirected,
            api.FindReferences: self.find_references,
        }
        assert self._handlers.keys() == api.CATALOGUE.by_request.keys()

    def handle(self, call: Call) -> None:
        """Take any request of the metadata service. Raises FsError to refuse it, else answers now or later."""
        self._handlers[type(call.request)](call)

    # --- mutations -------------------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        request: api.Submit = call.request
        if not 0 < len(request.ops) <= SUBMIT_OPS_MAX:
            raise FsError(Code.INVALID, f"{len(request.ops)} operations")
        if self.node.full and not request.journal and not all(type(op) in FREEING for op in request.ops):
            raise FsError(Code.NO_SPACE, "the disk of the metadata leader is full: only removals are taken")
        if self.node.role is Role.LEADER:
            self.leasing.hear(call, request.session, request.lease_term)
            self.leasing.table.settle(request.session, request.lowest_unacked)
        self._counts["submits"] += 1
        self.leader.heard_session(request.session)
        if request.journal:
            then = self.leasing.given(call, self._submitted)
            try:
                self._propose(call, CommandKind.SUBMIT, then)
            except FsError as error:
                then(call, None, error)
        else:
            self._submit(call)

    def _submit(self, call: Call, *, told: bool = False) -> None:
        """Propose a mutation when nobody can have changed by himself what it is about. ``told``: what others had taken
        when it came has arrived."""
        request: api.Submit = call.request
        table = self.leasing.table
        if self.node.role is not Role.LEADER:
            raise self.node.not_leader()
        if not table.term:
            raise FsError(Code.RETRY, "the new leader does not know yet what the last one has acknowledged")
        about = concerned(request.ops, self.machine.child)
        if told:
            about = about._replace(written=())
        if self.leasing.withholds(call, about, request.session, partial(self._submit, told=told)):
            return
        table.pend(request.session, about.inos)
        term = table.term

        def applied(call: Call, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
            if table.term == term:
                table.unpend(request.session, about.inos)
            self._submitted(call, outcome, error)

        try:
            self._propose(call, CommandKind.SUBMIT, applied)
        except FsError:
            table.unpend(request.session, about.inos)
            raise

    def _submitted(self, call: Call, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
        """Answer a Submit when nobody sees any more what was before it."""
        if outcome is None or isinstance(outcome.reply, FsError):
            answer(call, outcome, error)
            return
        request: api.Submit = call.request
        reply = outcome.reply
        assert isinstance(reply, api.SubmitReply)

        def settled(call: Call) -> None:
            if not request.lease:
                call.reply(reply)
                return
            shown = [ino for ino in api.shown(reply.results) if ino not in request.gives]
            grant = self.leasing.grant(request.session, shown, journal=request.journal)
            call.reply(api.SubmitReply(reply.results, grant.term, outcome.touched, grant.shared, grant.locked))

        if request.journal:
            settled(call)  # it concerns nobody else
            return
        about: Sequence[int] = outcome.touched
        if not about:  # perhaps it was executed before, and those who were recalled for that have not forgotten yet
            about = [ino for op, result in zip(request.ops, reply.results) for ino in api.changed(op, result)]
            about += api.shown(reply.results)
        if not self.leasing.waits(call, about, request.session, settled):
            settled(call)

    def open_session(self, call: Call) -> None:
        self._propose(call, CommandKind.OPEN_SESSION)

    def close_session(self, call: Call) -> None:
        self._propose(call, CommandKind.CLOSE_SESSION)

    def _propose(self, call: Call, kind: CommandKind, then: Optional[Then] = None) -> None:
        self._check()
        self.node.propose(encode_command(kind, self._wall_ns(), call.request), partial(then or answer, call))

    def _check(self) -> None:
        if not self.machine.formatted and self.node.role is Role.LEADER:
            raise FsError(Code.RETRY, "the volume is not formatted yet")
        if self.node.waiting >= METADATA_WAITING_MAX:
            self._counts["overloaded"] += 1
            raise FsError(Code.OVERLOADED, "too many requests wait")

    # --- reads -----------------------------------------------------------------------------------------------

    def read(self, call: Call) -> None:
        request: api.Read = call.request
        if not 0 < len(request.queries) <= READ_QUERIES_MAX:
            raise FsError(Code.INVALID, f"{len(request.queries)} queries")
        self._counts["reads"] += 1
        self._counts["queries"] += len(request.queries)
        if self.node.role is Role.LEADER:
            self.leasing.hear(call, request.session, request.lease_term)
        self._read(call, self._answer_read)

    def _check_fence(self, session: int, fence: int) -> None:
        """Whoever was fenced hears of it before it is shown what others did since: it may believe in locks of its."""
        known = self.machine.session(session)
        if known is not None and known.fence > fence:
            raise FsError(Code.FENCED, f"fence {fence}, now it is {known.fence}", hint=known.fence)

    def renew_session(self, call: Call) -> None:
        request: api.RenewSession = call.request
        if self.node.role is Role.LEADER:
            if request.fence is not None:
                self._check_fence(request.session, request.fence)
            if request.keeps:
                self.leasing.reclaimed(request.session, request.lease_term, request.keeps)
            self.leasing.hear(call, request.session, request.lease_term)
        self._read(call, self._answer_renew)

    def cluster_map(self, call: Call) -> None:
        self._read(call, self._answer_map)

    def _read(self, call: Call, then: Callable[[Call], None]) -> None:
        if self.node.readable_now and self.machine.formatted:
            then(call)
            return
        self._check()
        self.node.read(partial(self._when_readable, call, then))

    def _when_readable(self, call: Call, then: Callable[[Call], None], error: Optional[FsError]) -> None:
        if error is None:
            try:
                then(call)
            except FsError as raised:
                error = raised
        if error is not None:
            call.fail(error)

    def _answer_read(self, call: Call) -> None:
        request: api.Read = call.request
        if request.fence is not None:
            self._check_fence(request.session, request.fence)
        results = self.machine.query(request.queries)
        if any(type(query) is api.StatVolume for query in request.queries):
            results = self.leader.with_capacity(results)
        inos = spoken_of(request.queries, results)
        if request.journal:  # grace waits for what it is asked for; and nobody else can have changed that
            call.reply(api.ReadReply(results))
            return
        if self.leasing.waits(call, inos, request.session, self._read_again):
            return
        leased = request.lease and leasable(request.queries)
        call.reply(api.ReadReply(results, *(self.leasing.grant(request.session, inos) if leased else NOTHING)))

    def _read_again(self, call: Call) -> None:
        """A read that waited for acknowledgements looks at the state as it is now."""
        self._read(call, self._answer_read)

    def _answer_renew(self, call: Call) -> None:
        request: api.RenewSession = call.request
        machine = self.machine
        if machine.session(request.session) is None:
            raise FsError(Code.UNKNOWN_SESSION, f"session {request.session}")
        self.leader.heard_session(request.session)
        orphans = machine.orphans_of(request.session, request.orphans_after)
        term = self.leasing.renewed(request.session, request.lease_term)
        room_bytes, log_room_bytes = self.leader.room_bytes(), self.leader.log_room_bytes()
        epochs = machine.gc_epoch, machine.pg_epoch
        call.reply(api.RenewSessionReply(SESSION_LEASE_S, *epochs, orphans, term, room_bytes, log_room_bytes))

    def _answer_map(self, call: Call) -> None:
        request: api.GetClusterMap = call.request
        call.reply(self.leader.cluster_map(request.known_epoch))

    def list_references(self, call: Call) -> None:
        request: api.ListReferences = call.request
        if not 0 < request.limit <= RECLAIM_BLOCKS_MAX:
            raise FsError(Code.INVALID, f"a list of {request.limit} blocks")
        self._read(call, self._answer_references)

    def _answer_references(self, call: Call) -> None:
        request: api.ListReferences = call.request
        found = self.machine.blocks(request.after, request.limit + 1)
        more = len(found) > request.limit
        call.reply(self._references(found[: request.limit], more))

    def _references(self, found: list[tuple[bytes, int]], more: bool) -> api.References:
        logged = self.machine.logged_among([block for block, _ in found])
        return api.References(tuple(found), more, self.machine.gc_epoch, logged)

    def find_references(self, call: Call) -> None:
        request: api.FindReferences = call.request
        if len(request.blocks) > RECLAIM_BLOCKS_MAX or any(len(block) != BLOCK_ID_BYTES for block in request.blocks):
            raise FsError(Code.INVALID, f"{len(request.blocks)} names of blocks, or one of a wrong length")
        self._read(call, self._answer_found_references)

    def _answer_found_references(self, call: Call) -> None:
        request: api.FindReferences = call.request
        call.reply(self._references(self.machine.blocks_among(request.blocks), False))

    # --- chunk servers, commands -----------------------------------------------------------------------------

    def heartbeat(self, call: Call) -> None:
        self.leader.heartbeat(call)

    def misdirected(self, call: Call) -> None:
        """A message that only members send."""
        raise FsError(Code.INVALID, f"{type(call.request).__name__} is not for a member")

    def status(self, call: Call) -> None:
        request: api.GetStatus = call.request
        call.reply(self.reporter.report(brief=request.brief))

    def statistics(self) -> dict[str, float]:
        return {**self._counts, **self.leasing.statistics()}


def answer(call: Call, outcome: Optional[Outcome], error: Optional[FsError]) -> None:
    """Answer a request with what became of its entry."""
    if error is not None:
        call.fail(error)
        return
    assert outcome is not None
    if isinstance(outcome.reply, FsError):
        call.fail(outcome.reply)
    else:
        call.reply(outcome.reply)
