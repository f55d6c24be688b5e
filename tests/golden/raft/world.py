"""The members that a script plays with, and the verbs."""

from __future__ import annotations

from collections.abc import Callable

from metadata.raft.core import Config, ProposalDropped, RawNode, StorageAppend, StorageApply
from metadata.raft.log import LogDamaged
from metadata.raft.membership import ConfChangeInvalid, decode_change, encode_change
from metadata.raft.messages import (
    ConfChange,
    ConfState,
    ConfTransition,
    Entry,
    EntryKind,
    HardState,
    Kind,
    Message,
    SnapshotMeta,
)
from metadata.raft.storage import MemoryStorage
from tests.golden.raft import arguments, describe
from tests.golden.raft.script import Command, Directive, ScriptError, parse_command


class Player:
    """One member, its disk, and the work that waits for its two workers."""

    def __init__(self, config: Config, storage: MemoryStorage) -> None:
        self.config = config
        self.storage = storage
        self.history = [storage.snap]  # the applied states: the state machine is a list of indexes
        self.appends: list[StorageAppend] = []
        self.applies: list[StorageApply] = []
        storage.fresh = lambda: self.history[-1]
        self.node = RawNode(config, storage, _latest)

    def write(
        self, snapshot: SnapshotMeta | None, entries: list[Entry], hard: HardState | None
    ) -> None:
        if snapshot is not None:
            self.storage.install(snapshot)
            self.history.append(snapshot)
        self.storage.append(entries)
        if hard is not None:
            self.storage.set_hard_state(hard)

    def apply(self, entries: list[Entry]) -> list[str]:
        lines = []
        for entry in entries:
            conf = self.history[-1].conf
            if entry.kind == EntryKind.CONF:
                try:
                    conf = self.node.apply_conf(decode_change(entry.data))
                    lines.append(f"now {describe.conf(conf)}")
                except ConfChangeInvalid as error:
                    lines.append(f"change refused: {error}")
            self.history.append(SnapshotMeta(entry.index, entry.term, conf))
        return lines


def _latest(n: int) -> int:
    """Randomness of a script: the longest time-out, so that nobody campaigns before all that the verbs promise."""
    return n - 1


class World:
    """Plays directives. Messages and members' output wait until a verb moves them."""

    def __init__(self) -> None:
        self.players: list[Player] = []
        self.network: list[Message] = []
        self.quiet = False
        self.lines: list[str] = []

    # --- playing ------------------------------------------------------------------------------------------------

    def play(self, directive: Directive) -> str:
        """Do one directive. Returns its output. Raises ScriptError where the directive makes no sense."""
        self.lines = []
        if directive.command.verb == "propose-conf-change":
            self._conf_change(directive)
        else:
            self.do(directive.command, directive.line)
            for offset, line in enumerate(directive.input, 1):
                self.do(parse_command(line, directive.line + offset), directive.line + offset)
        return "".join(line + "\n" for line in self.lines) or "ok\n"

    def do(self, command: Command, line: int) -> None:
        verb = VERBS.get(command.verb)
        if verb is None:
            raise ScriptError(f"line {line}: unknown verb {command.verb!r}")
        method, allowed, least, most = verb
        unknown = sorted(set(command.options()) - allowed)
        if unknown:
            raise ScriptError(f"line {line}: {command.verb} has no argument {unknown[0]!r}")
        plain = command.plain()
        if not least <= len(plain) <= most:
            raise ScriptError(f"line {line}: {command.verb} takes {least} to {most} plain arguments, not {len(plain)}")
        empty = [key for key, values in command.options().items() if not values and key not in arguments.LISTS]
        if empty:
            raise ScriptError(f"line {line}: {empty[0]} has no value")
        try:
            method(self, plain, command.options())
        except ProposalDropped as error:
            self.say(f"dropped: {error}")
        except LogDamaged as error:
            self.say(f"damaged: {error}")
        except ScriptError as error:
            raise ScriptError(f"line {line}: {error}") from error

    def say(self, *lines: str) -> None:
        if not self.quiet:
            self.lines += lines

    def player(self, text: str) -> Player:
        number = arguments.integer(text)
        if not 1 <= number <= len(self.players):
            raise ScriptError(f"there is no member {number}")
        return self.players[number - 1]

    def states(self) -> list[dict[str, object]]:
        return [describe.member(player.node) for player in self.players]

    # --- verbs --------------------------------------------------------------------------------------------------

    def add_nodes(self, plain: list[str], options: dict[str, list[str]]) -> None:
        index = arguments.integer(options.get("index", ["0"])[0])
        voters = tuple(arguments.integer(v) for v in options.get("voters", []))
        learners = tuple(arguments.integer(v) for v in options.get("learners", []))
        if index == 1 or (index == 0 and (voters or learners)):
            raise ScriptError("index must be more than 1: members begin after a snapshot")
        conf = ConfState(voters, learners)
        for _ in range(arguments.integer(plain[0])):
            config = arguments.config(len(self.players) + 1, index, options)
            self.players.append(Player(config, MemoryStorage(conf, index, 1 if index else 0)))

    def campaign(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self.player(plain[0]).node.campaign()

    def compact(self, plain: list[str], options: dict[str, list[str]]) -> None:
        player = self.player(plain[0])
        index = arguments.integer(plain[1])
        conf = next((snap.conf for snap in reversed(player.history) if snap.index <= index), None)
        if conf is None or index > player.storage.last_index():
            raise ScriptError(f"cannot compact to {index}")
        player.storage.compact(index, conf)
        self.raft_log(plain[:1], {})

    def deliver_msgs(self, plain: list[str], options: dict[str, list[str]]) -> None:
        kind = arguments.kind(options)
        drops = [arguments.integer(v) for v in options.get("drop", [])]
        targets = [arguments.integer(v) for v in plain]
        if set(drops) & set(targets):
            raise ScriptError("cannot both deliver and drop messages to one member")
        count = 0
        for target in targets:
            self.player(str(target))
            count += self.deliver(target, kind)
        for target in drops:
            dropped = self._take(target, kind, local=False)
            self.say(*(f"dropped {describe.message(message)}" for message in dropped))
            count += len(dropped)
        if not count:
            self.say("no messages")

    def deliver(self, target: int, kind: Kind | None = None) -> int:
        taken = self._take(target, kind)
        node = self.players[target - 1].node
        for message in taken:
            self.say(describe.message(message))
            node.step(message)
        return len(taken)

    def _take(self, target: int, kind: Kind | None, local: bool = True) -> list[Message]:
        def wanted(message: Message) -> bool:
            if message.to != target or (kind is not None and message.kind != kind):
                return False
            return local or message.sender != message.to  # a member's own workers lose nothing

        taken = [message for message in self.network if wanted(message)]
        self.network = [message for message in self.network if not wanted(message)]
        return taken

    def duplicate_msgs(self, plain: list[str], options: dict[str, list[str]]) -> None:
        """Put a second copy of each waiting message to these members behind all others."""
        kind = arguments.kind(options)
        targets = {arguments.integer(v) for v in plain}
        copies = [
            m for m in self.network if m.to in targets and m.sender != m.to and (kind is None or m.kind == kind)
        ]
        self.network += copies
        self.say(*(f"again {describe.message(m)}" for m in copies))

    def process_ready(self, plain: list[str], options: dict[str, list[str]]) -> None:
        for text in plain:
            self._headed(f"> {text} handling ready", len(plain) > 1, self.ready, self.player(text))

    def _headed(self, head: str, wanted: bool, act: Callable[[Player], None], player: Player) -> None:
        """Do something whose lines are indented below a heading."""
        outer, self.lines = self.lines, []
        try:
            act(player)
        finally:
            inner, self.lines = self.lines, outer
            if wanted:
                self.say(head, *("  " + line for line in inner))
            else:
                self.say(*inner)

    def ready(self, player: Player) -> None:
        ready = player.node.ready()
        self.say(*describe.ready(ready))
        self.network += ready.messages
        if player.config.async_storage:
            if ready.append is not None:
                player.appends.append(ready.append)
            if ready.apply is not None:
                player.applies.append(ready.apply)
            return
        player.write(ready.snapshot, ready.entries, ready.hard_state)
        self.network += ready.messages_after_append
        self.say(*player.apply(ready.committed))
        player.node.advance()

    def process_append_thread(self, plain: list[str], options: dict[str, list[str]]) -> None:
        for text in plain:
            self._headed(f"> {text} processing append thread", len(plain) > 1, self.append_work, self.player(text))

    def append_work(self, player: Player) -> None:
        if not player.appends:
            self.say("no append work")
            return
        work = player.appends.pop(0)
        self.say(*describe.append_work(work))
        player.write(work.snapshot, work.entries, work.hard_state)
        self.say(*(f"then {describe.message(message)}" for message in work.responses))
        self.network += work.responses

    def process_apply_thread(self, plain: list[str], options: dict[str, list[str]]) -> None:
        for text in plain:
            self._headed(f"> {text} processing apply thread", len(plain) > 1, self.apply_work, self.player(text))

    def apply_work(self, player: Player) -> None:
        if not player.applies:
            self.say("no apply work")
            return
        work = player.applies.pop(0)
        self.say(*describe.apply_work(work))
        self.say(*player.apply(work.entries))
        self.network += work.responses

    def stabilize(self, plain: list[str], options: dict[str, list[str]]) -> None:
        quiet = self.quiet
        if "log-level" in options:
            self.quiet = arguments.level(options["log-level"][0]) == "none"
        players = [self.player(text) for text in plain] or list(self.players)
        while self._stabilize_once(players):
            pass
        self.quiet = quiet

    def _stabilize_once(self, players: list[Player]) -> bool:
        busy = False
        for player in players:
            if player.node.has_ready():
                self._headed(f"> {player.node.id} handling ready", True, self.ready, player)
                busy = True
        for player in players:
            if any(message.to == player.node.id for message in self.network):
                self._headed(f"> {player.node.id} receiving", True, lambda p: void(self.deliver(p.node.id)), player)
                busy = True
        for player in players:
            while player.appends:
                self._headed(f"> {player.node.id} processing append thread", True, self.append_work, player)
                busy = True
        for player in players:
            while player.applies:
                self._headed(f"> {player.node.id} processing apply thread", True, self.apply_work, player)
                busy = True
        return busy

    def log_level(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self.quiet = arguments.level(plain[0]) == "none"

    def raft_log(self, plain: list[str], options: dict[str, list[str]]) -> None:
        storage = self.player(plain[0]).storage
        first, last = storage.first_index(), storage.last_index()
        if last < first:
            self.say(f"empty log: first {first}, last {last}")
            return
        self.say(*map(describe.entry, storage.entries(first, last + 1, arguments.UNLIMITED)))

    def raft_state(self, plain: list[str], options: dict[str, list[str]]) -> None:
        for player in self.players:
            node = player.node
            voter = "voter" if node.id in node.conf.deciders() else "no voter"
            self.say(f"{node.id}: {node.role.name.lower()} ({voter}) term:{node.term} lead:{node.leader}")

    def status(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self.say(*describe.progress(self.player(plain[0]).node))

    def set_timeout(self, plain: list[str], options: dict[str, list[str]]) -> None:
        value = options["timeout"][0] if "timeout" in options else plain[1] if len(plain) > 1 else None
        if value is None:
            raise ScriptError("timeout=TICKS is missing")
        self.player(plain[0]).node.election_timeout = arguments.integer(value)

    def tick_election(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self._tick(plain[0], self.player(plain[0]).config.election_ticks)

    def tick_heartbeat(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self._tick(plain[0], self.player(plain[0]).config.heartbeat_ticks)

    def tick(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self._tick(plain[0], arguments.integer(plain[1]))

    def _tick(self, text: str, count: int) -> None:
        for _ in range(count):
            self.player(text).node.tick()

    def transfer_leadership(self, plain: list[str], options: dict[str, list[str]]) -> None:
        if "from" not in options or "to" not in options:
            raise ScriptError("transfer-leadership from=ID to=ID")
        self.player(options["from"][0]).node.transfer_leader(arguments.integer(options["to"][0]))

    def forget_leader(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self.player(plain[0]).node.forget_leader()

    def send_snapshot(self, plain: list[str], options: dict[str, list[str]]) -> None:
        player, target = self.player(plain[0]), self.player(plain[1]).node.id
        progress = player.node.progress.get(target)
        message = Message(
            Kind.SNAPSHOT, target, player.node.id, player.node.term, snapshot=player.storage.snapshot(),
            session=progress.session if progress is not None else 0,
        )  # fmt: skip
        self.network.append(message)
        self.say(describe.message(message))

    def propose(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self.player(plain[0]).node.forward(EntryKind.NORMAL, plain[1].strip('"').encode() if len(plain) > 1 else b"")

    def _conf_change(self, directive: Directive) -> None:
        command, line = directive.command, directive.line
        options = command.options()
        unknown = sorted(set(options) - {"v1", "transition"}) + [key for key in options if not options[key]]
        if unknown:
            raise ScriptError(f"line {line}: propose-conf-change has no argument {unknown[0]!r}")
        if len(command.plain()) != 1:
            raise ScriptError(f"line {line}: propose-conf-change takes one member")
        try:
            player = self.player(command.plain()[0])
            items = tuple(arguments.item(word) for text in directive.input for word in text.split())
            transition = arguments.TRANSITIONS.get(options.get("transition", ["auto"])[0])
            if transition is None:
                raise ScriptError(f"unknown transition {options['transition'][0]!r}")
            single = len(items) == 1 and transition == ConfTransition.AUTO
            if arguments.truth(options.get("v1", ["false"])[0]) and not single:
                raise ScriptError("a v1 change has one operation and no transition")
        except ScriptError as error:
            raise ScriptError(f"line {line}: {error}") from error
        try:
            player.node.forward(EntryKind.CONF, encode_change(ConfChange(items, transition)))
        except ProposalDropped as error:
            self.say(f"dropped: {error}")

    def report_unreachable(self, plain: list[str], options: dict[str, list[str]]) -> None:
        self.player(plain[0]).node.report_unreachable(arguments.integer(plain[1]))

    def report_snapshot(self, plain: list[str], options: dict[str, list[str]]) -> None:
        """report-snapshot LEADER MEMBER ok=false"""
        ok = arguments.truth(options.get("ok", ["true"])[0])
        self.player(plain[0]).node.report_snapshot(arguments.integer(plain[1]), ok)

    def read_index(self, plain: list[str], options: dict[str, list[str]]) -> None:
        """read-index MEMBER NUMBER: begin a linearizable read."""
        if not self.player(plain[0]).node.read_index(arguments.integer(plain[1])):
            self.say("no leader to ask")

    def restart(self, plain: list[str], options: dict[str, list[str]]) -> None:
        """Crash: work that its workers have not done is lost. The state machine keeps what it applied; with
        wiped=true nothing is kept but the membership that it was founded with."""
        player = self.player(plain[0])
        if arguments.truth(options.get("wiped", ["false"])[0]):
            player.config.applied = player.history[0].index
            founded = MemoryStorage(player.history[0].conf, player.history[0].index, player.history[0].term)
            self.players[player.node.id - 1] = Player(player.config, founded)
            return
        player.appends, player.applies = [], []
        self.network = [m for m in self.network if not (m.sender == m.to == player.node.id)]
        player.storage.conf = player.history[-1].conf
        player.config.applied = max(player.history[-1].index, player.storage.snap.index)
        player.node = RawNode(player.config, player.storage, _latest)

    def breakpoint(self, plain: list[str], options: dict[str, list[str]]) -> None:
        """Does nothing."""


def void(_: object) -> None:
    """Drop a result."""


_Verb = tuple[Callable[[World, list[str], dict[str, list[str]]], None], frozenset[str], int, int]


def _verb(
    method: Callable[[World, list[str], dict[str, list[str]]], None], least: int, most: int, *options: str
) -> _Verb:
    return method, frozenset(options), least, most


_MANY = 1 << 30
VERBS: dict[str, _Verb] = {
    "_breakpoint": _verb(World.breakpoint, 0, _MANY),
    "_breakpoint:": _verb(World.breakpoint, 0, _MANY),
    "add-nodes": _verb(
        World.add_nodes, 1, 1, "voters", "learners", "index", "content", "inflight", "inflight-bytes",
        "async-storage-writes", "prevote", "checkquorum", "coalesce", "max-committed-size-per-ready",
        "max-message-bytes", "max-uncommitted-bytes", "disable-conf-change-validation", "step-down-on-removal",
        "read-only", "election-tick", "heartbeat-tick",
    ),
    "campaign": _verb(World.campaign, 1, 1),
    "compact": _verb(World.compact, 2, 2),
    "deliver-msgs": _verb(World.deliver_msgs, 0, _MANY, "drop", "type"),
    "duplicate-msgs": _verb(World.duplicate_msgs, 1, _MANY, "type"),
    "forget-leader": _verb(World.forget_leader, 1, 1),
    "log-level": _verb(World.log_level, 1, 1),
    "process-append-thread": _verb(World.process_append_thread, 1, _MANY),
    "process-apply-thread": _verb(World.process_apply_thread, 1, _MANY),
    "process-ready": _verb(World.process_ready, 1, _MANY),
    "propose": _verb(World.propose, 1, 2),
    "raft-log": _verb(World.raft_log, 1, 1),
    "raft-state": _verb(World.raft_state, 0, 0),
    "read-index": _verb(World.read_index, 2, 2),
    "report-snapshot": _verb(World.report_snapshot, 2, 2, "ok"),
    "report-unreachable": _verb(World.report_unreachable, 2, 2),
    "restart": _verb(World.restart, 1, 1, "wiped"),
    "send-snapshot": _verb(World.send_snapshot, 2, 2),
    "set-randomized-election-timeout": _verb(World.set_timeout, 1, 2, "timeout"),
    "stabilize": _verb(World.stabilize, 0, _MANY, "log-level"),
    "status": _verb(World.status, 1, 1),
    "tick": _verb(World.tick, 2, 2),
    "tick-election": _verb(World.tick_election, 1, 1),
    "tick-heartbeat": _verb(World.tick_heartbeat, 1, 1),
    "transfer-leadership": _verb(World.transfer_leadership, 0, 0, "from", "to"),
}  # fmt: skip
SCRIPT_VERBS = frozenset(VERBS) | {"propose-conf-change"}
