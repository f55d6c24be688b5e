"""The ``-o`` options of a mount: which there are, what each means, which only mount(8) and fstab need. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from node.host.exitcodes import UsageError
from node.host.units import parse_duration
from node.wire.limits import DEADLINE_S_MAX

# Meant for mount(8), fstab and systemd; they reach a helper all the same and change nothing here. The atime variants
# are among them because the kernel leaves atime to the filesystem, default_permissions because it is always on.
_IGNORED = frozenset(
    "defaults rw auto noauto nofail _netdev user users nouser owner group async loud silent mand nomand"
    " atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime"
    " iversion noiversion default_permissions".split()
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")

# Flags of the mount that the kernel keeps; the last word of a pair wins.
_KERNEL_PAIRS = {
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
}
_KERNEL_FLAGS = frozenset({"sync", "dirsync"})


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What ``-o`` asked for. None where the default is the configuration's or depends on who mounts."""

    key: Path | None = None
    timeout_s: float | None = None
    leases: bool | None = None
    local_locks: bool = False
    cache_names: bool = True
    write_through: bool = True
    read_only: bool = False
    allow_other: bool | None = None
    fast_loop: bool = True
    keep_awake: bool = False
    http: str = ""
    kernel: tuple[str, ...] = ()


def split_options(text: str) -> Iterator[str]:
    """Cut a comma-separated list; a backslash keeps the next character, so that ``key=`` can name any file."""
    word: list[str] = []
    characters = iter(text)
    for character in characters:
        if character == ",":
            yield "".join(word)
            word.clear()
        else:
            word.append(next(characters, "\\") if character == "\\" else character)
    yield "".join(word)


def parse_options(texts: Iterable[str], *, sloppy: bool = False) -> MountOptions:
    """Read the arguments of ``-o``. UsageError names the first that nobody knows, unless ``sloppy`` (mount -s)."""
    found = _Found()
    for text in texts:
        for word in split_options(text):
            if word and not found.take(word.strip()) and not sloppy:
                raise UsageError(f"unknown mount option: {word}")
    return found.options()


class _Found:
    """Options as they are met, the last one winning."""

    def __init__(self) -> None:
        self.key: Path | None = None
        self.timeout_s: float | None = None
        self.leases = ""
        self.locks = ""
        self.writes = ""
        self.loop = ""
        self.wakeup = ""
        self.http = ""
        self.flags: dict[str, bool] = {}
        self.kernel: dict[str, str] = {}

    def take(self, word: str) -> bool:
        """Note one option; False when it is unknown."""
        name, equals, value = word.partition("=")
        if equals and name == "key":
            self.key = Path(_given(name, value))
        elif equals and name == "timeout":
            self.timeout_s = _timeout_s(_given(name, value))
        elif equals and name == "leases":
            self.leases = _one_of(name, value, "on", "off", "attributes")
        elif equals and name == "locks":
            self.locks = _one_of(name, value, "cluster", "local")
        elif equals and name == "writes":
            self.writes = _one_of(name, value, "through", "close")
        elif equals and name == "loop":
            self.loop = _one_of(name, value, "fast", "stock")
        elif equals and name == "wakeup":
            self.wakeup = _one_of(name, value, "fast", "stock")
        elif equals and name == "http":
            self.http = _given(name, value)
        elif word in ("ro", "rw"):
            self.flags["ro"] = word == "ro"
        elif word in ("allow_other", "noallow_other"):
            self.flags["allow_other"] = word == "allow_other"
        else:
            return self._take_kernel(word) or word in _IGNORED or word.startswith(_IGNORED_PREFIXES)
        return True

    def _take_kernel(self, word: str) -> bool:
        for positive, negative in _KERNEL_PAIRS.items():
            if word in (positive, negative):
                self.kernel[positive] = word
                return True
        if word in _KERNEL_FLAGS:
            self.kernel[word] = word
            return True
        return False

    def options(self) -> MountOptions:
        return MountOptions(
            key=self.key,
            timeout_s=self.timeout_s,
            leases=self.leases != "off" if self.leases else None,
            local_locks=self.locks == "local",
            cache_names=self.leases != "attributes",
            write_through=self.writes != "close",
            read_only=self.flags.get("ro", False),
            allow_other=self.flags.get("allow_other"),
            fast_loop=self.loop != "stock",
            keep_awake=self.wakeup == "fast",
            http=self.http,
            kernel=tuple(self.kernel.values()),
        )


def _given(name: str, value: str) -> str:
    if not value:
        raise UsageError(f"mount option {name}= needs a value")
    return value


def _one_of(name: str, value: str, *known: str) -> str:
    if value not in known:
        raise UsageError(f"mount option {name}={value}: must be {', '.join(known[:-1])} or {known[-1]}")
    return value


def _timeout_s(text: str) -> float:
    try:
        timeout_s = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"mount option timeout={text}: {error}") from None
    if not 0 < timeout_s <= DEADLINE_S_MAX:
        raise UsageError(f"mount option timeout={text}: must be above 0s and at most {DEADLINE_S_MAX:g}s")
    return timeout_s


def kernel_options(options: MountOptions, *, source: str, privileged: bool) -> set[str]:
    """Return what libfuse is given. The kernel checks permissions, always; root serves everybody by default.

    As mount(8) does, a mount made by root honours devices and setuid unless told not to. ``source`` is ASCII.
    """
    everybody = privileged if options.allow_other is None else options.allow_other
    words = {f"fsname={_escape(source)}", "subtype=fusefs", "default_permissions"}
    if everybody:
        words.add("allow_other")
    if options.read_only:
        words.add("ro")
    chosen = set(options.kernel)
    if privileged:
        chosen |= {yes for yes, no in _KERNEL_PAIRS.items() if no not in chosen}
    return words | (chosen - {"exec"})


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")
