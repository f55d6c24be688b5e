"""What the handlers of a mount did and how long each took. Pure; nanoseconds come in.

A histogram has four buckets to a power of two, from a microsecond up, so a quantile is right within a fifth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

BUCKETS = 128  # up to two hours

OPERATIONS = (
    "lookup forget getattr setattr readlink mknod mkdir unlink rmdir symlink rename link access create open read write"
    " flush fsync release opendir readdir releasedir fsyncdir setxattr getxattr listxattr removexattr statfs"
).split()  # the handlers of fusefs.mount.operations
REQUESTS = "getlk setlk flock fallocate lseek copy_file_range".split()  # those of fusefs.mount.requests
_UNIT_BITS = 10  # the unit is 1,024 ns


class OperationProfile(msgspec.Struct):
    """One kind of request since the mount began. ``bytes``: of data read or written."""

    count: int = 0
    errors: int = 0
    bytes: int = 0
    total_ns: int = 0
    max_ns: int = 0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)

    def add(self, took_ns: int) -> None:
        """Count one request."""
        self.count += 1
        self.total_ns += took_ns
        if took_ns > self.max_ns:
            self.max_ns = took_ns
        self.buckets[bucket_of(took_ns)] += 1

    def quantile_s(self, q: float) -> float:
        """What a share ``q`` of the requests did not exceed; 0 where there was none."""
        return min(quantile_s(self.buckets, q), self.max_ns / 1e9)

    def since(self, before: OperationProfile) -> OperationProfile:
        """What was added since; the longest one as far as the histogram tells."""
        buckets = [now - then for now, then in zip(self.buckets, before.buckets)]
        longest = max((i for i, count in enumerate(buckets) if count), default=-1)
        return OperationProfile(
            self.count - before.count,
            self.errors - before.errors,
            self.bytes - before.bytes,
            self.total_ns - before.total_ns,
            min(self.max_ns, end_ns(longest)) if longest >= 0 else 0,
            buckets,
        )


class MountProfile(msgspec.Struct):
    """The document that a mount process gives to ``fusefs profile``."""

    mount: str
    elapsed_s: float  # since the mount began
    operations: dict[str, OperationProfile]
    statistics: dict[str, float]  # gauges and counters of the caches and the session, by dotted name


class Profile:
    """The operations of one mount."""

    def __init__(self, names: Iterable[str] = (*OPERATIONS, *REQUESTS)) -> None:
        self.operations = {name: OperationProfile() for name in names}

    @property
    def count(self) -> int:
        """Of all requests answered."""
        return sum(row.count for row in self.operations.values())


def bucket_of(took_ns: int) -> int:
    """The bucket that a duration is counted in."""
    units = took_ns >> _UNIT_BITS
    if units < 4:
        return max(units, 0)
    bits = units.bit_length()
    return min(4 * (bits - 2) + (units >> (bits - 3) & 3), BUCKETS - 1)


def end_ns(bucket: int) -> int:
    """The end of a bucket."""
    if bucket < 4:
        return bucket + 1 << _UNIT_BITS
    return (5 + bucket % 4 << bucket // 4 - 1) << _UNIT_BITS


def quantile_s(buckets: Sequence[int], q: float) -> float:
    """The end of the bucket in which a share ``q`` is reached."""
    wanted = q * sum(buckets)
    seen = 0
    for index, count in enumerate(buckets):
        seen += count
        if count and seen >= wanted:
            return end_ns(index) / 1e9
    return 0.0


def flat(tree: object, prefix: str = "") -> dict[str, float]:
    """The numbers of a tree of statistics by dotted name."""
    if isinstance(tree, dict):
        found: dict[str, float] = {}
        for key, value in tree.items():
            found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(tree, (int, float)):
        return {prefix: float(tree)}
    return {}
