"""What is drawn for a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from duologue.bench.mock_llm import MockConfig
from duologue.bench.mock_llm.draws import Draws

_MANY = 4000


def _drawn(draw: Callable[[Draws, MockConfig], float], config: MockConfig, seed: int = 1) -> list[float]:
    draws = Draws(seed)
    return [draw(draws, config) for _ in range(_MANY)]


def test_tokens_with_a_spread_have_each_length_as_often() -> None:
    counts = Counter(_drawn(Draws.tokens, MockConfig(tokens=10, tokens_spread=2)))
    assert set(counts) == {8, 9, 10, 11, 12}
    assert all(0.15 < count / _MANY < 0.25 for count in counts.values())


def test_tokens_with_a_spread_beyond_their_number_are_never_fewer_than_one() -> None:
    counts = Counter(_drawn(Draws.tokens, MockConfig(tokens=2, tokens_spread=5)))
    assert set(counts) == {1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize(
    ("draw", "config", "least", "most"),
    [
        (Draws.first_token_seconds, MockConfig(ttft_ms=300, ttft_spread_ms=100), 0.2, 0.4),
        (Draws.tokens_per_second, MockConfig(tps=50, tps_spread=20), 30.0, 70.0),
    ],
    ids=["ttft", "tps"],
)
def test_draw_with_a_spread_is_uniform_around_its_middle(
    draw: Callable[[Draws, MockConfig], float], config: MockConfig, least: float, most: float
) -> None:
    drawn = _drawn(draw, config)
    fifth = (most - least) / 5
    assert least <= min(drawn) < least + fifth / 10
    assert most - fifth / 10 < max(drawn) <= most
    counts = Counter(min(int((value - least) / fifth), 4) for value in drawn)
    assert all(0.15 < counts[part] / _MANY < 0.25 for part in range(5))


@pytest.mark.parametrize(
    ("draw", "config", "floor"),
    [
        (Draws.first_token_seconds, MockConfig(ttft_ms=10, ttft_spread_ms=40), 0.0),
        (Draws.tokens_per_second, MockConfig(tps=50, tps_spread=200), 5.0),
    ],
    ids=["ttft", "tps"],
)
def test_draw_with_a_spread_beyond_its_middle_stops_at_its_floor(
    draw: Callable[[Draws, MockConfig], float], config: MockConfig, floor: float
) -> None:
    drawn = _drawn(draw, config)
    assert min(drawn) == floor
    assert 0.25 < drawn.count(floor) / _MANY < 0.45  # 30 of 80 and 155 of 400 parts lie below it
    assert max(drawn) > floor


def test_draw_without_a_spread_is_what_was_set() -> None:
    config = MockConfig(tokens=5, ttft_ms=20, tps=0.05)
    assert set(_drawn(Draws.tokens, config)) == {5}
    assert set(_drawn(Draws.first_token_seconds, config)) == {0.02}
    assert set(_drawn(Draws.tokens_per_second, config)) == {0.05}


def test_speed_of_replies_that_leave_at_once_has_no_spread() -> None:
    assert set(_drawn(Draws.tokens_per_second, MockConfig(tps=0, tps_spread=10))) == {0.0}


def test_mixed_faults_come_at_their_rates() -> None:
    draws, config = Draws(1), MockConfig(rate_429=0.2, rate_cut=0.1)
    counts = Counter(draws.fault(config) for _ in range(_MANY))
    assert set(counts) == {"429", "cut", ""}
    assert 0.17 < counts["429"] / _MANY < 0.23
    assert 0.08 < counts["cut"] / _MANY < 0.12


def test_rates_that_make_one_leave_nothing_well() -> None:
    config = MockConfig(rate_429=0.25, rate_500=0.25, rate_cut=0.25, rate_silence=0.25)
    draws = Draws(1)
    assert {draws.fault(config) for _ in range(_MANY)} == {"429", "500", "cut", "silence"}


def test_same_seed_draws_the_same_and_another_something_else() -> None:
    config = MockConfig(tokens=100, tokens_spread=50)
    assert _drawn(Draws.tokens, config, seed=7) == _drawn(Draws.tokens, config, seed=7)
    assert _drawn(Draws.tokens, config, seed=7) != _drawn(Draws.tokens, config, seed=8)
