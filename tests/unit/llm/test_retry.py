"""The table of retries."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.llm.port import ModelRefused, ModelTemporaryError
from duologue.llm.retry import RetryPolicy

POLICY = RetryPolicy()
_draws = st.floats(0, 1, exclude_max=True)


def _error(retry_after: float | None = None) -> ModelTemporaryError:
    return ModelTemporaryError("away", cause="http_503", retry_after_seconds=retry_after)


@given(st.integers(1, 6), st.floats(0, 60), _draws)
def test_delay_never_passes_its_ceiling_nor_the_time_left(tries: int, elapsed: float, draw: float) -> None:
    delay = POLICY.next_delay(tries, elapsed, _error(), lambda: draw)
    if delay is not None:
        assert 0 <= delay <= min(POLICY.base_seconds * 2 ** (tries - 1), POLICY.max_delay_seconds)
        assert elapsed + delay <= POLICY.total_seconds + 1e-9


@given(st.integers(7, 1_000_000), st.floats(0, 60), _draws)
def test_delay_after_the_last_try_is_none(tries: int, elapsed: float, draw: float) -> None:
    assert POLICY.next_delay(tries, elapsed, _error(), lambda: draw) is None


@given(st.floats(0, 60), st.floats(0, 3600), _draws)
def test_delay_honours_retry_after_or_gives_up(elapsed: float, asked: float, draw: float) -> None:
    delay = POLICY.next_delay(1, elapsed, _error(asked), lambda: draw)
    if asked > POLICY.total_seconds - elapsed:
        assert delay is None
    else:
        assert delay is not None
        assert asked <= delay
        assert elapsed + delay <= POLICY.total_seconds + 1e-9


@given(st.floats(60.001, 1e6), _draws)
def test_delay_when_the_time_is_over_is_none(elapsed: float, draw: float) -> None:
    assert POLICY.next_delay(1, elapsed, _error(), lambda: draw) is None
    assert POLICY.next_delay(1, elapsed, _error(0.0), lambda: draw) is None


@pytest.mark.parametrize("error", [ModelRefused("no", cause="http_401"), ValueError("a bug")])
def test_delay_of_what_will_not_change_is_none(error: Exception) -> None:
    assert POLICY.next_delay(1, 0.0, error, random.random) is None


def test_whole_run_of_failures_makes_seven_tries_within_a_minute() -> None:
    for seed in range(50):
        draw, elapsed, tries = random.Random(seed).random, 0.0, 1
        while (delay := POLICY.next_delay(tries, elapsed, _error(), draw)) is not None:
            elapsed += delay
            tries += 1
        assert tries == 7
        assert elapsed <= 60
