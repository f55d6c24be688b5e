"""What -o means, what reaches libfuse, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.mount.options import MountOptions, kernel_options, parse_options, split_options
from node.host.exitcodes import UsageError


def test_nothing_given() -> None:
    assert parse_options([]) == MountOptions()
    assert parse_options([""]) == MountOptions()


def test_own_options() -> None:
    options = parse_options(["timeout=250ms,key=/etc/k.key", "ro"])
    assert options.timeout_s == 0.25
    assert options.key == Path("/etc/k.key")
    assert options.read_only


def test_locks_are_the_clusters_unless_told() -> None:
    assert not parse_options(["locks=cluster"]).local_locks
    assert parse_options(["locks=local"]).local_locks
    with pytest.raises(UsageError, match="locks=global: must be cluster or local"):
        parse_options(["locks=global"])


def test_the_last_word_wins() -> None:
    options = parse_options(["ro,nosuid,timeout=1s", "rw,suid,timeout=2s"])
    assert not options.read_only
    assert options.kernel == ("suid",)
    assert options.timeout_s == 2.0


@pytest.mark.parametrize(
    "text",
    [
        "defaults", "rw,noatime,relatime,nodiratime,strictatime,lazytime", "_netdev,nofail,noauto,user,users",
        "x-systemd.automount,x-systemd.idle-timeout=3s,X-mount.mkdir", "user=anna,comment=hello", "default_permissions",
    ],
)
def test_words_for_others_change_nothing(text: str) -> None:
    assert parse_options([text]) == MountOptions()


@pytest.mark.parametrize("text", ["frobnicate", "timeout", "key", "ro=1", "allow_root", "nodefault_permissions"])
def test_unknown_words_are_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"unknown mount option: {text}$"):
        parse_options(["rw," + text])
    assert parse_options(["rw," + text], sloppy=True) == MountOptions()


@pytest.mark.parametrize("text", ["timeout=", "timeout=soon", "timeout=0s", "timeout=301s", "key="])
def test_bad_values(text: str) -> None:
    with pytest.raises(UsageError, match=text.split("=")[0]):
        parse_options([text])


def test_a_backslash_keeps_a_comma() -> None:
    assert list(split_options(r"key=/a\,b,ro")) == ["key=/a,b", "ro"]
    assert list(split_options("a\\")) == ["a\\"]


def test_root_serves_everybody_with_devices_and_setuid() -> None:
    words = kernel_options(parse_options([]), source="/c", privileged=True)
    assert words == {"fsname=/c", "subtype=fusefs", "allow_other", "default_permissions", "suid", "dev"}


def test_root_may_say_no() -> None:
    words = kernel_options(parse_options(["noallow_other,nosuid,nodev,noexec,ro"]), source="/c", privileged=True)
    assert words == {"fsname=/c", "subtype=fusefs", "default_permissions", "nosuid", "nodev", "noexec", "ro"}


def test_others_serve_themselves() -> None:
    words = kernel_options(parse_options([]), source="/c", privileged=False)
    assert words == {"fsname=/c", "subtype=fusefs", "default_permissions"}
    words = kernel_options(parse_options(["allow_other"]), source="/c", privileged=False)
    assert "allow_other" in words


def test_a_comma_in_the_source_is_escaped() -> None:
    assert r"fsname=/a\,b\\c" in kernel_options(MountOptions(), source="/a,b\\c", privileged=False)
