"""How long replies take, as estimated from those that ended and those that run."""

from __future__ import annotations

import pytest

from duologue.ai_consumer.service_times import FIRST_GUESS_SECONDS, MAX_MODELS, ServiceTimes


def ended(times: ServiceTimes, seconds: float, model: str = "", count: int = 1) -> None:
    for _ in range(count):
        times.began("key", model, 0.0)
        times.ended("key", seconds)


def test_reply_before_any_has_ended_is_guessed() -> None:
    assert ServiceTimes().mean(0.0) == ServiceTimes().expected("any", 0.0) == FIRST_GUESS_SECONDS


def test_average_after_the_first_replies_has_left_the_guess_and_then_follows_slowly() -> None:
    times = ServiceTimes()
    ended(times, 10.0, count=9)
    assert times.mean(0.0) == pytest.approx(9.2)
    ended(times, 0.2)
    assert 8.0 < times.mean(0.0) < 8.5


def test_models_of_different_length_have_averages_of_their_own() -> None:
    times = ServiceTimes()
    ended(times, 1.0, "quick", 50)
    ended(times, 60.0, "slow", 50)
    assert times.expected("quick", 0.0) == pytest.approx(1.0, abs=0.1)
    assert times.expected("slow", 0.0) == pytest.approx(60.0, abs=1)


def test_mean_while_models_of_different_length_run_is_that_of_how_often_a_slot_gets_free() -> None:
    times = ServiceTimes()
    ended(times, 1.0, "quick", 100)
    ended(times, 9.0, "slow", 100)
    for number in range(4):
        times.began(number, "quick" if number % 2 else "slow", 100.0)
    assert times.mean(100.0) == pytest.approx(4 / (2 / 1 + 2 / 9), rel=0.05)


def test_model_that_has_stopped_is_noticed_before_a_reply_ends() -> None:
    times = ServiceTimes()
    ended(times, 1.0, "m", 50)
    times.began("a", "m", 100.0)
    times.began("b", "m", 110.0)
    assert times.expected("m", 110.5) == pytest.approx(5.5, abs=0.1)
    assert times.mean(125.0) == pytest.approx(20.0)


def test_remaining_time_of_a_running_reply_is_what_its_age_leaves() -> None:
    times = ServiceTimes()
    ended(times, 10.0, "m", 100)
    times.began("a", "m", 50.0)
    assert times.remaining("a", 57.0) == pytest.approx(3.0, abs=0.1)
    assert times.remaining("a", 80.0) == 0.0


def test_slot_left_without_an_outcome_teaches_nothing_and_is_free() -> None:
    times = ServiceTimes()
    times.began("a", "m", 0.0)
    times.left("a")
    times.ended("a", 1000.0)
    assert (times.running, times.mean(2000.0)) == (0, FIRST_GUESS_SECONDS)


def test_models_that_come_and_go_are_not_all_kept() -> None:
    times = ServiceTimes()
    for number in range(3 * MAX_MODELS):
        ended(times, 1.0, f"model-{number}")
    assert len(times._by_model) == MAX_MODELS
