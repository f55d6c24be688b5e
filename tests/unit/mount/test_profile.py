"""The profile of a mount: its histogram, its document, its socket."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fusefs.cli.cmd_profile import document_of, lines_of
from fusefs.mount.observe import mount_metrics, read_profile, serve_profile
from fusefs.mount.profile import BUCKETS, MountProfile, OperationProfile, Profile, bucket_of, end_ns, flat
from node.wire.errors import Code, FsError

from .attrs import until


@given(st.integers(0, 3600 * 10**9))
def test_a_duration_lies_in_its_bucket(took_ns: int) -> None:
    bucket = bucket_of(took_ns)
    assert 0 <= bucket < BUCKETS
    assert took_ns < end_ns(bucket)
    assert bucket == 0 or took_ns >= end_ns(bucket - 1)


@given(st.lists(st.integers(1000, 10**10), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_right_within_a_bucket(durations: list[int], q: float) -> None:
    row = OperationProfile()
    for took_ns in durations:
        row.add(took_ns)
    wanted = sorted(durations)[max(0, -(-int(q * len(durations) * 1000) // 1000) - 1)]
    assert wanted / 1e9 <= row.quantile_s(q) * 1.0001 + 1e-6 or row.quantile_s(q) * 1e9 >= wanted * 0.79
    assert row.quantile_s(1.0) == max(durations) / 1e9


def test_what_was_added_since() -> None:
    row, before = OperationProfile(), OperationProfile()
    for took_ns in (10**9, 2000):
        row.add(took_ns)
    for took_ns in (10**9,):
        before.add(took_ns)
    added = row.since(before)
    assert added.count == 1 and added.total_ns == 2000 and added.max_ns < 10_000


def test_statistics_are_flattened() -> None:
    assert flat({"a": {"b": 1, "c": "text", "d": True}, "e": 2.5}) == {"a.b": 1.0, "a.d": 1.0, "e": 2.5}


def profile() -> Profile:
    made = Profile(["lookup", "read"])
    made.operations["read"].add(1_500_000)
    made.operations["read"].bytes += 4096
    return made


def document(made: Profile) -> MountProfile:
    return MountProfile("/mnt", 2.0, made.operations, {"cache.bytes": 5.0})


async def test_the_socket_gives_it_to_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_profile, path, lambda: document(profile()))
        with trio.fail_after(30):
            await until(lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o600)
            for _ in range(20):
                seen = await trio.to_thread.run_sync(read_profile, path)
        nursery.cancel_scope.cancel()
    assert seen.operations["read"].count == 1 and seen.statistics == {"cache.bytes": 5.0}
    assert not path.exists()
    with pytest.raises(FsError) as error:
        read_profile(path)
    assert error.value.code is Code.UNREACHABLE


def test_what_is_printed() -> None:
    seen = document(profile())
    shown = document_of(seen)
    assert list(shown["operations"]) == ["read"]
    assert shown["operations"]["read"] | {"p50_s": 0, "p99_s": 0} == {
        "count": 1, "errors": 0, "bytes": 4096, "total_s": 0.0015, "p50_s": 0, "p99_s": 0, "max_s": 0.0015
    }  # fmt: skip
    lines = lines_of(seen.operations, seen.elapsed_s)
    assert len(lines) == 2 and lines[1].split()[:3] == ["read", "1", "0.5"]


def test_metrics_show_operations_and_caches() -> None:
    text = mount_metrics(profile(), lambda: {"cache.bytes": 5.0}).render().decode()
    assert 'fusefs_mount_operation_seconds_bucket{le="0.0025",operation="read"} 1.0' in text
    assert 'fusefs_mount_operation_bytes_total{operation="read"} 4096.0' in text
    assert "fusefs_mount_client_cache_bytes 5.0" in text
