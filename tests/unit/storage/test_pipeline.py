"""The downstream half of a put: every chain, every failure, no copy counted that is not there."""

from __future__ import annotations

import itertools

import pytest

from storage.pipeline import Finished, Pipeline, Send


def drive(
    chain: tuple[int, ...], down: set[int], blocks: int = 2, remaining_s: float = 10.0
) -> tuple[Finished, list[int]]:
    """Run a whole chain, each server with a pipeline of its own; return the outcome and who stored the put."""
    pipeline = Pipeline(chain, blocks)
    stored: list[int] = []
    while True:
        step = pipeline.step(remaining_s)
        if isinstance(step, Finished):
            return step, stored
        remaining_s -= 0.1
        if step.server in down:
            pipeline.not_answered()
            continue
        beyond, more = drive(step.forward, down, blocks, step.timeout_s)
        stored += [step.server, *more]
        pipeline.answered([count + 1 for count in beyond.copies], beyond.failed)


@pytest.mark.parametrize("length", range(5))
def test_every_set_of_failures(length: int) -> None:
    chain = tuple(range(1, length + 1))
    for count in range(length + 1):
        for down in itertools.combinations(chain, count):
            finished, stored = drive(chain, set(down))
            up = [server for server in chain if server not in down]
            assert stored == up
            assert finished.copies == (len(up),) * 2
            assert set(finished.failed) == set(down)


def test_what_is_sent() -> None:
    pipeline = Pipeline((4, 5, 6), 1)
    assert pipeline.step(8.0) == Send(4, (5, 6), 2.0)
    pipeline.not_answered()
    assert pipeline.step(6.0) == Send(5, (6,), 2.0)
    pipeline.answered([2], [])
    assert pipeline.step(5.0) == pipeline.step(0.0) == Finished((2,), (4,))


def test_no_time_left() -> None:
    pipeline = Pipeline((4, 5), 3)
    assert isinstance(pipeline.step(1.0), Send)
    pipeline.not_answered()
    assert pipeline.step(0.0) == Finished((0, 0, 0), (4, 5))


def test_an_empty_chain() -> None:
    assert Pipeline((), 2).step(1.0) == Finished((0, 0), ())


@pytest.mark.parametrize("copies", [(1,), (1, 1, 1), (3, 1), (-1, 0), ()])
def test_an_impossible_answer_counts_as_none(copies: tuple[int, ...]) -> None:
    pipeline = Pipeline((4, 5), 2)
    pipeline.step(1.0)
    pipeline.answered(copies, ())
    assert pipeline.step(1.0) == Send(5, (), 0.5)


def test_failures_that_are_none_of_its_business_are_dropped() -> None:
    pipeline = Pipeline((4, 5), 1)
    pipeline.step(1.0)
    pipeline.answered([1], [5, 99])
    assert pipeline.step(1.0) == Finished((1,), (5,))


def test_a_block_refused_by_one_server_only() -> None:
    """Server 4 had no space for the second block: it passes on what server 5 has of it."""
    pipeline = Pipeline((4, 5), 2)
    pipeline.step(1.0)
    pipeline.answered([2, 1], [])
    assert pipeline.step(1.0) == Finished((2, 1), ())


def test_misuse() -> None:
    pipeline = Pipeline((4,), 1)
    with pytest.raises(AssertionError):
        pipeline.answered([1], [])
    pipeline.step(1.0)
    with pytest.raises(AssertionError):
        pipeline.step(1.0)
