"""The circuit breaker, with a clock and draws of the test's own."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from prometheus_client import REGISTRY

from duologue.llm.breaker import BreakerPolicy, CircuitBreaker, Permit
from duologue.llm.port import KeyRefused, ModelRefused, ModelTemporaryError, ModelUnknown, PromptTooLong

POLICY = BreakerPolicy(
    failure_share=0.5, min_tries=4, min_askers=1, window_seconds=60.0, open_seconds=8.0, max_open_seconds=20.0, probes=2
)
UNWELL = ModelTemporaryError("away", cause="http_503")
_names = count()


class Bench:
    """A breaker and its time. Its openings last as long as they may, unless `drawn` is less."""

    def __init__(self, policy: BreakerPolicy = POLICY) -> None:
        self.now = 1000.0
        self.drawn = 1.0
        self.provider = f"provider-{next(_names)}"
        self.breaker = CircuitBreaker(self.provider, policy, clock=lambda: self.now, draw=lambda: self.drawn)

    def state(self) -> str:
        return self.breaker.state

    def permit(self, asker: str = "reply") -> Permit:
        permit = self.breaker.admit(asker)
        assert permit is not None
        return permit

    def end(self, *failures: BaseException | None) -> None:
        """Make tries that end so, one after the other."""
        for failure in failures:
            end(self.permit(), failure)

    def open(self) -> None:
        self.end(*[UNWELL] * POLICY.min_tries)
        assert self.state() == "open"

    def half_open(self) -> None:
        self.open()
        self.now += self.breaker.wait_seconds()
        assert self.state() == "half_open"

    def metric(self, name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"provider": self.provider, **labels})


def end(permit: Permit, failure: BaseException | None) -> None:
    if failure is None:
        with permit:
            return
    permit.__exit__(type(failure), failure, None)


@pytest.fixture
def bench() -> Bench:
    """A closed breaker."""
    return Bench()


def test_breaker_with_good_tries_stays_closed(bench: Bench) -> None:
    bench.end(*[None] * 100)
    assert bench.state() == "closed"
    assert bench.breaker.wait_seconds() == 0.0


def test_breaker_below_its_least_tries_stays_closed_whatever_fails(bench: Bench) -> None:
    bench.end(*[UNWELL] * (POLICY.min_tries - 1))
    assert bench.state() == "closed"


def test_breaker_at_its_share_of_failures_opens_and_lets_nothing_through(bench: Bench) -> None:
    bench.end(None, None, UNWELL)
    assert bench.state() == "closed"
    bench.end(UNWELL)
    assert bench.state() == "open"
    assert bench.breaker.admit("reply") is None
    assert bench.breaker.wait_seconds() == 8.0


def test_breaker_below_its_share_of_failures_stays_closed(bench: Bench) -> None:
    for _ in range(50):
        bench.end(None, None, UNWELL)
    assert bench.state() == "closed"


def test_failures_that_are_older_than_the_window_are_forgotten(bench: Bench) -> None:
    bench.end(UNWELL, UNWELL, UNWELL)
    bench.now += POLICY.window_seconds
    bench.end(UNWELL)
    assert bench.state() == "closed"


def test_memory_of_tries_under_load_is_bounded_and_follows_the_latest(bench: Bench) -> None:
    bench.end(*[None] * 10_000)
    bench.end(*[UNWELL] * 99)
    assert bench.state() == "closed"
    bench.end(UNWELL)
    assert bench.state() == "open"


@pytest.mark.parametrize(
    "failure",
    [
        ModelRefused("bad request", cause="http_400"),
        PromptTooLong("too long", cause="prompt_too_long"),
        ModelUnknown("unknown", cause="http_404"),
        ModelTemporaryError("slower", cause="http_429", retry_after_seconds=1.0),
        asyncio.CancelledError(),
        GeneratorExit(),
        RuntimeError("a bug"),
    ],
    ids=lambda failure: f"{type(failure).__name__} {getattr(failure, 'cause', '')}",
)
def test_what_says_nothing_of_the_provider_counts_for_nothing(bench: Bench, failure: BaseException) -> None:
    bench.end(*[failure] * 50)
    assert bench.state() == "closed"
    bench.end(UNWELL, UNWELL, UNWELL)
    assert bench.state() == "closed", "they would have counted as tries"
    bench.end(UNWELL)
    bench.now += bench.breaker.wait_seconds()
    for _ in range(5):
        bench.end(failure)
        assert bench.state() == "half_open"


def test_refused_keys_open_it_and_are_told_while_it_is_open(bench: Bench) -> None:
    refusal = KeyRefused("the key", cause="http_401")
    bench.end(*[refusal] * POLICY.min_tries)
    assert bench.state() == "open"
    assert bench.breaker.refusal is refusal
    bench.now += bench.breaker.wait_seconds()
    bench.end(None, None)
    assert bench.state() == "closed"
    assert bench.breaker.refusal is None


def test_opening_for_another_reason_tells_no_refusal(bench: Bench) -> None:
    bench.open()
    assert bench.breaker.refusal is None


def test_half_open_lets_as_many_through_at_once_as_there_are_probes(bench: Bench) -> None:
    bench.half_open()
    probes = [bench.permit() for _ in range(POLICY.probes)]
    assert bench.breaker.admit("reply") is None
    assert bench.breaker.wait_seconds() == POLICY.probe_wait_seconds
    end(probes[0], asyncio.CancelledError())
    assert bench.breaker.wait_seconds() == 0.0
    bench.permit()
    assert bench.breaker.admit("reply") is None


def test_probes_that_are_answered_close_it(bench: Bench) -> None:
    bench.half_open()
    first, second = bench.permit(), bench.permit()
    with first, second:
        first.answered()
        assert bench.state() == "half_open"
        assert bench.breaker.wait_seconds() == 0.0, "its place is free, though its answer goes on"
        second.answered()
        second.answered()
        assert bench.state() == "closed"


def test_one_probe_that_is_answered_does_not_close_it(bench: Bench) -> None:
    bench.half_open()
    with bench.permit() as probe:
        probe.answered()
        probe.answered()
    assert bench.state() == "half_open"
    bench.end(None)
    assert bench.state() == "closed"


def test_probe_that_fails_opens_it_again_even_after_it_has_begun_to_answer(bench: Bench) -> None:
    bench.half_open()
    probe = bench.permit()
    probe.answered()
    end(probe, UNWELL)
    assert bench.state() == "open"


def test_openings_in_a_row_last_longer_up_to_a_bound_and_begin_anew_after_closing(bench: Bench) -> None:
    bench.open()
    lasting = []
    for _ in range(4):
        lasting.append(bench.breaker.wait_seconds())
        bench.now += lasting[-1]
        bench.end(UNWELL)
    assert lasting == [8.0, 16.0, 20.0, 20.0]
    bench.now += bench.breaker.wait_seconds()
    bench.end(None, None)
    assert bench.state() == "closed"
    bench.open()
    assert bench.breaker.wait_seconds() == 8.0


@pytest.mark.parametrize(("drawn", "seconds"), [(0.0, 4.0), (0.5, 6.0)])
def test_opening_lasts_between_half_and_all_of_its_time(bench: Bench, drawn: float, seconds: float) -> None:
    bench.drawn = drawn
    bench.open()
    assert bench.breaker.wait_seconds() == seconds
    bench.now += seconds - 0.001
    assert bench.state() == "open"
    bench.now += 0.001
    assert bench.state() == "half_open"


def test_tries_of_an_earlier_stretch_change_nothing_when_they_end(bench: Bench) -> None:
    late = [bench.permit() for _ in range(6)]
    bench.half_open()
    probe = bench.permit()
    end(late[0], None)
    end(late[1], UNWELL)
    assert bench.state() == "half_open"
    end(probe, UNWELL)
    end(late[2], None)
    assert bench.state() == "open"
    bench.now += bench.breaker.wait_seconds()
    bench.end(None, None)
    for permit in late[3:]:
        end(permit, UNWELL)
    bench.end(UNWELL, UNWELL, UNWELL)
    assert bench.state() == "closed"


def test_metrics_follow_its_state_and_count_its_turns(bench: Bench) -> None:
    assert bench.metric("duologue_breaker_state") == 0
    bench.open()
    assert bench.metric("duologue_breaker_state") == 2
    bench.now += bench.breaker.wait_seconds()
    bench.end(None)
    assert bench.metric("duologue_breaker_state") == 1
    bench.end(None)
    assert bench.metric("duologue_breaker_state") == 0
    turns = [
        bench.metric("duologue_breaker_transitions_total", state=state) for state in ("open", "half_open", "closed")
    ]
    assert turns == [1, 1, 1]


def test_failures_of_one_asker_alone_do_not_open_it_and_those_of_a_second_do() -> None:
    bench = Bench(BreakerPolicy())
    bench.end(*[UNWELL] * 100)
    assert bench.state() == "closed"
    end(bench.permit("another"), UNWELL)
    assert bench.state() == "open"
