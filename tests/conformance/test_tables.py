"""Every engine is the same ordered map: one suite, compared with a dict."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from metadata.state.tables import KEY_BYTES_MAX, Engine, SnapshotView
from metadata.store.disk import RealDisk
from metadata.store.engine_lmdb import LmdbEngine
from metadata.store.engine_memory import MemoryEngine

Maker = Callable[[], Engine]
KINDS = ["lmdb", "memory"]

keys = st.binary(min_size=1, max_size=3) | st.sampled_from([b"a" * KEY_BYTES_MAX, b"\xff" * KEY_BYTES_MAX, b"\0"])
bounds = st.binary(max_size=3) | st.sampled_from([b"\xff" * KEY_BYTES_MAX, b"\xff" * (KEY_BYTES_MAX + 1)])
values = st.binary(max_size=12) | st.integers(3000, 9000).map(bytes)


class Bench:
    """Makes engines of one kind, and reopens them as after a crash."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.made = 0

    def make(self) -> Engine:
        self.made += 1
        return self._open()

    def _open(self) -> Engine:
        if self.kind == "memory":
            return MemoryEngine()
        return LmdbEngine(RealDisk(), f"{self.path}/{self.made}", map_bytes=1 << 20)

    def reopen(self, engine: Engine) -> Engine:
        engine.close()
        return engine if isinstance(engine, MemoryEngine) else self._open()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


@pytest.fixture
def engine(bench: Bench) -> Iterator[Engine]:
    engine = bench.make()
    yield engine
    engine.close()


def everything(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.range(b"", b"\xff" * (KEY_BYTES_MAX + 1))


class EngineMachine(RuleBasedStateMachine):
    """Random use of an engine against two dicts: what it shows, and what a crash leaves."""

    bench: Bench

    @initialize()
    def begin(self) -> None:
        self.engine = self.bench.make()
        self.model: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.view_exit: Callable[[], object] | None = None
        self.view: SnapshotView | None = None
        self.viewed: dict[bytes, bytes] = {}

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self.engine.put(key, value)
        self.model[key] = value

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        assert self.engine.delete(key) is (self.model.pop(key, None) is not None)

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self.engine.get(key) == self.model.get(key)

    @rule(low=bounds, high=bounds, limit=st.integers(0, 4), reverse=st.booleans())
    def range(self, low: bytes, high: bytes, limit: int, reverse: bool) -> None:
        expected = sorted((item for item in self.model.items() if low <= item[0] < high), reverse=reverse)
        assert self.engine.range(low, high, limit, reverse=reverse) == (expected[:limit] if limit else expected)

    @rule()
    def commit(self) -> None:
        self.engine.commit()
        self.durable = self.model.copy()
        assert self.engine.statistics()["dirty"] == 0

    @rule()
    def crash(self) -> None:
        self.close_view()
        self.engine = self.bench.reopen(self.engine)
        self.model = self.durable.copy()

    @rule(items=st.dictionaries(keys, values, max_size=8))
    def replace(self, items: dict[bytes, bytes]) -> None:
        self.engine.replace(iter(sorted(items.items())))
        self.model, self.durable = items.copy(), items.copy()

    @rule()
    def open_view(self) -> None:
        self.close_view()
        manager = self.engine.snapshot()
        self.view = manager.__enter__()
        self.view_exit = lambda: manager.__exit__(None, None, None)
        self.viewed = self.durable.copy()

    @rule()
    def close_view(self) -> None:
        if self.view_exit is not None:
            self.view_exit()
            self.view_exit = self.view = None

    @rule(low=bounds, high=st.none() | bounds)
    def view_items(self, low: bytes, high: bytes | None) -> None:
        if self.view is not None:
            expected = sorted(i for i in self.viewed.items() if low <= i[0] and (high is None or i[0] < high))
            assert list(self.view.items(low, high)) == expected

    @invariant()
    def count(self) -> None:
        assert self.engine.statistics()["keys"] == len(self.model)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.close_view()
            assert everything(self.engine) == sorted(self.model.items())
            self.engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_engine_behaves_like_a_dict(kind: str, tmp_path: Path) -> None:
    bench = Bench(kind, tmp_path)

    class Machine(EngineMachine):
        pass

    Machine.bench = bench
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_uncommitted_changes_are_seen_at_once_and_lost_by_a_crash(bench: Bench) -> None:
    engine = bench.make()
    engine.put(b"kept", b"1")
    engine.commit()
    engine.put(b"kept", b"2")
    engine.put(b"lost", b"")
    assert engine.get(b"lost") == b"" and engine.get(b"kept") == b"2"
    engine = bench.reopen(engine)
    assert everything(engine) == [(b"kept", b"1")]
    engine.close()


def test_a_view_shows_the_commit_it_began_at(engine: Engine) -> None:
    engine.put(b"a", b"1")
    engine.commit()
    engine.put(b"b", b"uncommitted")
    with engine.snapshot() as view:
        engine.put(b"a", b"2")
        engine.commit()
        engine.replace([(b"z", b"9")])
        assert list(view.items()) == [(b"a", b"1")] and view.get(b"b") is None
    assert everything(engine) == [(b"z", b"9")]


def test_a_replacement_that_fails_leaves_the_old_state(bench: Bench) -> None:
    engine = bench.make()
    engine.put(b"old", b"1")
    engine.commit()
    engine.put(b"open", b"2")

    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield b"new", b"1"
        raise ConnectionError("the sender died")

    with pytest.raises(ConnectionError):
        engine.replace(broken())
    assert everything(engine) == [(b"old", b"1"), (b"open", b"2")]
    engine.commit()
    engine = bench.reopen(engine)
    assert everything(engine) == [(b"old", b"1"), (b"open", b"2")]
    engine.close()


def test_a_state_is_loaded_by_a_thread_while_the_engine_is_used(bench: Bench) -> None:
    engine = bench.make()
    engine.put(b"old", b"1")
    engine.commit()
    going, told = threading.Event(), []

    def items() -> Iterator[tuple[bytes, bytes]]:
        for index in range(2000):
            yield b"%06d" % index, bytes(100)
            if index == 1000:
                going.wait(30)

    loader = threading.Thread(target=lambda: told.append(engine.load(items())))
    loader.start()
    for index in range(100):
        engine.put(b"meanwhile", b"%d" % index)
        engine.commit()
    going.set()
    loader.join()
    with engine.snapshot() as view:
        engine.put(b"dropped", b"")
        engine.switch(told[0])
        assert list(view.items()) == [(b"meanwhile", b"99"), (b"old", b"1")]
    engine = bench.reopen(engine)
    assert engine.statistics()["keys"] == 2000 and engine.get(b"old") is None
    engine.close()


def test_a_load_that_is_not_switched_to_leaves_nothing(bench: Bench) -> None:
    engine = bench.make()
    engine.put(b"old", b"1")
    engine.commit()
    first = engine.load([(b"a", b"")])
    second = engine.load([(b"b", b"")])
    assert everything(engine) == [(b"old", b"1")]
    engine.switch(second)
    assert everything(engine) == [(b"b", b"")]
    with pytest.raises(AssertionError):
        engine.switch(first)
    engine.load([(b"c", b"")])
    engine = bench.reopen(engine)
    assert everything(engine) == [(b"b", b"")]
    engine.close()


@pytest.mark.parametrize("key", [b"", bytes(KEY_BYTES_MAX + 1)])
def test_keys_outside_the_bounds_are_refused(engine: Engine, key: bytes) -> None:
    for use in (engine.get, engine.delete, lambda key: engine.put(key, b"")):
        with pytest.raises(AssertionError):
            use(key)


@given(st.dictionaries(st.binary(min_size=1, max_size=KEY_BYTES_MAX), st.binary(max_size=40), max_size=30))
@settings(max_examples=20, deadline=None)
def test_memory_view_and_range_agree(items: dict[bytes, bytes]) -> None:
    engine = MemoryEngine()
    engine.replace(sorted(items.items()))
    with engine.snapshot() as view:
        assert list(view.items()) == engine.range(b"", b"\xff" * (KEY_BYTES_MAX + 1)) == sorted(items.items())
