"""Searching for the highest rate that holds."""

from __future__ import annotations

import pytest
from tests.support.bench_reports import latency, step

from duologue.bench.scenarios.sustained import held, rates


def searched(limit: float, *, start: float = 200, up: float = 100, resolution: float = 25) -> list[float]:
    """Return the rates that are tried of a system that holds up to `limit`."""
    search = rates(start, up, resolution)
    tried = [next(search)]
    try:
        while True:
            tried.append(search.send(tried[-1] <= limit))
    except StopIteration:
        return tried


def test_search_goes_up_by_steps_and_then_between_the_last_two() -> None:
    assert searched(430) == [200, 300, 400, 500, 450, 425]


def test_search_goes_down_when_the_first_rate_does_not_hold() -> None:
    assert searched(60) == [200, 100, 50, 75]


@pytest.mark.parametrize("limit", [10, 199, 640, 1234])
def test_search_ends_within_its_resolution_of_the_limit(limit: float) -> None:
    best = max((rate for rate in searched(limit) if rate <= limit), default=0)
    assert limit - 25 <= best <= limit


def test_rate_holds_within_its_bound_answered_and_drained() -> None:
    good = {"first_token": latency(100, 900)}
    assert held(step(latencies=good), 1000)
    assert not held(step(latencies=good), 800)
    assert not held(step(latencies=good, unanswered=1), 1000)
    assert not held(step(latencies=good, refused=1), 1000)
    assert not held(step(latencies=good, drained_after_seconds=2.5), 1000)
    assert not held(step(latencies={}), 1000)
