"""What the arguments of verbs mean. Everything here raises ScriptError where it means nothing."""

from __future__ import annotations

from metadata.raft.core import Config, ReadMode
from metadata.raft.messages import ConfChangeItem, ConfChangeKind, ConfTransition, Kind
from tests.golden.raft import describe
from tests.golden.raft.script import ScriptError

UNLIMITED = 1 << 60
TRUTH = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}
LEVELS = ("debug", "info", "warn", "error", "fatal", "none")
LISTS = frozenset(("voters", "learners", "drop"))
CHANGES = {"v": ConfChangeKind.ADD_VOTER, "l": ConfChangeKind.ADD_LEARNER, "r": ConfChangeKind.REMOVE}
TRANSITIONS = {
    "auto": ConfTransition.AUTO,
    "implicit": ConfTransition.JOINT_AUTO_LEAVE,
    "explicit": ConfTransition.JOINT_EXPLICIT,
}


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ScriptError(f"{text!r} is not a number") from None


def truth(text: str) -> bool:
    try:
        return TRUTH[text.lower()]
    except KeyError:
        raise ScriptError(f"{text!r} is neither true nor false") from None


def level(name: str) -> str:
    if name.lower() not in LEVELS:
        raise ScriptError(f"log levels are {', '.join(LEVELS)}")
    return name.lower()


def kind(options: dict[str, list[str]]) -> Kind | None:
    if "type" not in options:
        return None
    found = describe.kind_named(options["type"][0])
    if found is None:
        raise ScriptError(f"unknown type of message {options['type'][0]!r}")
    return found


def item(word: str) -> ConfChangeItem:
    if len(word) < 2 or word[0] not in CHANGES:
        raise ScriptError(f"{word!r} is no change: v1 voter, l1 learner, r1 remove")
    return ConfChangeItem(CHANGES[word[0]], integer(word[1:]))


def config(member: int, index: int, options: dict[str, list[str]]) -> Config:
    def flag(name: str) -> bool:
        return truth(options.get(name, ["false"])[0])

    mode = options.get("read-only", ["safe"])[0]
    if mode not in ("safe", "lease-based"):
        raise ScriptError(f"read-only is safe or lease-based, not {mode!r}")

    def number(name: str, otherwise: int) -> int:
        return integer(options[name][0]) if name in options else otherwise

    try:
        return Config(
            member,
            election_ticks=number("election-tick", 3),
            heartbeat_ticks=number("heartbeat-tick", 1),
            max_message_bytes=number("max-message-bytes", UNLIMITED),
            max_inflight_messages=number("inflight", UNLIMITED),
            max_inflight_bytes=number("inflight-bytes", 0),
            max_uncommitted_bytes=number("max-uncommitted-bytes", UNLIMITED),
            max_apply_bytes=number("max-committed-size-per-ready", UNLIMITED),
            pre_vote=flag("prevote"),
            check_quorum=flag("checkquorum"),
            read_mode=ReadMode.LEASE if mode == "lease-based" else ReadMode.READ_INDEX,
            applied=index,
            async_storage=flag("async-storage-writes"),
            coalesce=flag("coalesce"),
            step_down_on_removal=flag("step-down-on-removal"),
            validate_conf_changes=not flag("disable-conf-change-validation"),
        )
    except ValueError as error:
        raise ScriptError(str(error)) from None
