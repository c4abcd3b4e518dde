"""Which model is asked next, and when: with a clock and breakers of the test's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from duologue.llm.breaker import BreakerPolicy, CircuitBreaker
from duologue.llm.choice import Candidate, ModelChain, ModelChoice, Provider, Step, SwitchReason
from duologue.llm.port import KeyRefused, ModelFailure, ModelRefused, ModelTemporaryError, ModelUnknown, PromptTooLong
from duologue.llm.retry import RetryPolicy
from duologue.llm.scripted import ScriptedModel

UNWELL = ModelTemporaryError("away", cause="http_503", retry_after_seconds=0.0)
KEY = KeyRefused("the key was refused", cause="http_401")
UNKNOWN = ModelUnknown("no such model", cause="http_404")
BREAKER = BreakerPolicy(failure_share=0.5, min_tries=1, min_askers=1, open_seconds=10.0, probes=1)
TRIES = 3


class Bench:
    """A choice among providers `a`, `b`, … of one model each, and its time. Draws are 0: nothing is added to a wait."""

    def __init__(self, names: str = "ab") -> None:
        self.now = 0.0
        self.providers = {name: self._provider(name) for name in names}
        self.choice = self.begin()

    def begin(self) -> ModelChoice:
        """Begin anew, as the next reply does."""
        candidates = [Candidate(provider, None) for provider in self.providers.values()]
        policy = RetryPolicy(max_tries=TRIES, total_seconds=60.0)
        self.choice = ModelChoice(candidates, policy, asker="reply", clock=lambda: self.now, draw=lambda: 0.0)
        return self.choice

    def open(self, *names: str) -> None:
        """Open the breakers of these for 10 s each."""
        for name in names:
            self.fail(self.providers[name], UNWELL)

    def fail(self, provider: Provider, failure: ModelFailure) -> None:
        permit = provider.breaker.admit("another")
        assert permit is not None
        permit.__exit__(type(failure), failure, None)

    @property
    def at(self) -> str:
        return self.choice.candidate.name

    def _provider(self, name: str) -> Provider:
        breaker = CircuitBreaker(name, BREAKER, clock=lambda: self.now, draw=lambda: 1.0)
        return Provider(ScriptedModel(name=name), breaker)


@pytest.fixture
def bench() -> Bench:
    """Two providers, all well."""
    return Bench()


def _after(choice: ModelChoice, failures: Sequence[ModelFailure]) -> list[Step]:
    return [choice.failed(failure) for failure in failures]


def test_temporary_failure_is_tried_again_at_the_same_model(bench: Bench) -> None:
    assert bench.choice.failed(UNWELL) == Step("retry", 0.0)
    assert bench.at == "a"


def test_exhausted_model_is_followed_by_the_next_at_once_with_tries_of_its_own(bench: Bench) -> None:
    steps = _after(bench.choice, [UNWELL] * TRIES)
    assert [step.action for step in steps] == ["retry", "retry", "next_model"]
    assert (steps[-1].seconds, steps[-1].reason, bench.at) == (0.0, "exhausted", "b")
    steps = _after(bench.choice, [UNWELL] * TRIES)
    assert [step.action for step in steps] == ["retry", "retry", "given_up"]
    assert bench.choice.failure is UNWELL


def test_model_out_of_time_is_followed_by_the_next_with_a_time_of_its_own(bench: Bench) -> None:
    assert bench.choice.failed(UNWELL).action == "retry"
    bench.now = 60.1
    assert bench.choice.failed(UNWELL).reason == "exhausted"
    bench.now = 100.0
    assert bench.choice.failed(UNWELL).action == "retry"
    bench.now = 160.1
    assert bench.choice.failed(UNWELL).action == "given_up"


def test_answer_that_breaks_off_after_longer_than_the_time_is_tried_again(bench: Bench) -> None:
    bench.now = 300.0
    assert bench.choice.failed(UNWELL) == Step("retry", 0.0)
    assert bench.at == "a"


def test_wait_that_a_provider_asks_for_is_waited_for_or_too_long(bench: Bench) -> None:
    later = ModelTemporaryError("slower", cause="http_429", retry_after_seconds=30.0)
    assert bench.choice.failed(later) == Step("retry", 30.0)
    bench.now = 31.0
    assert bench.choice.failed(later) == Step("next_model", 0.0, "exhausted")


@pytest.mark.parametrize(("failure", "reason"), [(KEY, "key_refused"), (UNKNOWN, "model_unknown")])
def test_failure_of_this_model_alone_is_followed_by_the_next_at_once(
    bench: Bench, failure: ModelFailure, reason: SwitchReason
) -> None:
    assert bench.choice.failed(failure) == Step("next_model", 0.0, reason)
    assert bench.at == "b"


@pytest.mark.parametrize(
    "failure", [ModelRefused("no", cause="http_400"), PromptTooLong("long", cause="prompt_too_long")], ids=str
)
def test_refused_request_is_followed_by_no_model(bench: Bench, failure: ModelFailure) -> None:
    assert bench.choice.failed(failure) == Step("given_up")
    assert bench.choice.failure is failure


def test_chain_of_refused_keys_tells_the_last(bench: Bench) -> None:
    last = KeyRefused("another", cause="http_403")
    assert [step.action for step in _after(bench.choice, [KEY, last])] == ["next_model", "given_up"]
    assert bench.choice.failure is last


def test_failure_that_may_pass_is_told_before_one_that_will_not(bench: Bench) -> None:
    steps = _after(bench.choice, [*[UNWELL] * TRIES, KEY])
    assert steps[-1].action == "given_up"
    assert bench.choice.failure is UNWELL


def test_open_breaker_with_another_model_left_sends_there_at_once(bench: Bench) -> None:
    bench.open("a")
    assert bench.choice.admit() is None
    assert bench.choice.held_back() == Step("next_model", 0.0, "breaker_open")
    assert bench.at == "b"
    assert bench.choice.admit() is not None


def test_failure_that_opens_the_breaker_sends_to_the_next_model_at_once(bench: Bench) -> None:
    bench.open("a")
    assert bench.choice.failed(UNWELL) == Step("next_model", 0.0, "breaker_open")


def test_wait_that_a_provider_asks_for_is_waited_for_also_if_its_breaker_opens_for_less() -> None:
    bench = Bench("a")
    bench.open("a")
    failure = ModelTemporaryError("away", cause="http_503", retry_after_seconds=30.0)
    assert bench.choice.failed(failure) == Step("retry", 30.0)


def test_open_breaker_of_the_only_model_is_waited_for() -> None:
    bench = Bench("a")
    bench.open("a")
    assert bench.choice.held_back() == Step("retry", 10.0)
    bench.now += 10.0
    assert bench.choice.admit() is not None


def test_open_breaker_beyond_the_time_of_the_only_model_gives_up() -> None:
    bench = Bench("a")
    bench.open("a")
    assert bench.choice.held_back().action == "retry"
    bench.now = 55.0
    bench.open("a")
    assert bench.choice.held_back() == Step("given_up")
    assert bench.choice.failure.cause == "breaker_open"
    assert isinstance(bench.choice.failure, ModelTemporaryError)


def test_open_breakers_of_all_models_are_waited_for_at_the_one_that_ends_first() -> None:
    bench = Bench("abc")
    bench.open("b")
    bench.now += 4.0
    bench.open("a", "c")
    assert bench.choice.held_back() == Step("next_model", 6.0, "breaker_open")
    assert bench.at == "b"


def test_model_that_was_passed_over_is_asked_when_the_others_are_exhausted(bench: Bench) -> None:
    bench.open("a")
    bench.choice.held_back()
    bench.now += 10.0
    _after(bench.choice, [UNWELL] * TRIES)
    assert bench.at == "a"
    assert bench.choice.admit() is not None


def test_model_that_was_passed_over_keeps_the_time_that_it_had(bench: Bench) -> None:
    bench.open("a")
    bench.choice.held_back()
    bench.now = 60.1
    assert _after(bench.choice, [UNWELL] * TRIES)[-1] == Step("given_up")


def test_probes_under_way_are_waited_for_a_little() -> None:
    bench = Bench("a")
    bench.open("a")
    bench.now += 10.0
    probe = bench.choice.admit()
    assert probe is not None
    with probe:
        assert bench.choice.admit() is None
        assert bench.choice.held_back() == Step("retry", BREAKER.probe_wait_seconds)
    assert bench.choice.admit() is not None


def test_breaker_that_a_refused_key_has_opened_is_not_waited_for(bench: Bench) -> None:
    bench.fail(bench.providers["a"], KEY)
    assert bench.choice.held_back() == Step("next_model", 0.0, "key_refused")
    bench.fail(bench.providers["b"], KEY)
    assert bench.choice.held_back() == Step("given_up")
    assert bench.choice.failure is KEY


def test_candidates_of_a_chain_begin_with_the_model_asked_for_and_have_each_once() -> None:
    first, second = (Provider.of(ScriptedModel(name=name)) for name in ("one", "two"))
    chain = ModelChain(first, [Candidate(first, "big"), Candidate(second, "big"), Candidate(first, "small")])
    assert list(chain.providers) == [first, second]
    named = [(candidate.provider.name, candidate.model) for candidate in chain.candidates(None)]
    assert named == [("one", None), ("one", "big"), ("two", "big"), ("one", "small")]
    named = [(candidate.provider.name, candidate.model) for candidate in chain.candidates("small")]
    assert named == [("one", "small"), ("one", "big"), ("two", "big")]
    assert chain.candidates("one")[0] == Candidate(first, "one")
