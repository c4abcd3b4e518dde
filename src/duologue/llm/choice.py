"""Which model a reply asks next, and when: the one asked for first, then the fallback chain.

No I/O and no waiting: the caller makes the tries, tells how they end, and waits as long as it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from duologue.llm.breaker import CircuitBreaker, Permit
from duologue.llm.port import KeyRefused, LanguageModel, ModelFailure, ModelRefused, ModelTemporaryError, ModelUnknown
from duologue.llm.retry import RetryPolicy

Action = Literal["retry", "next_model", "given_up"]
SwitchReason = Literal["exhausted", "breaker_open", "key_refused", "model_unknown"]


@dataclass(frozen=True, slots=True)
class Provider:
    """One address with one key, and the breaker before it."""

    model: LanguageModel
    breaker: CircuitBreaker

    @property
    def name(self) -> str:
        """Its name in logs and metrics."""
        return self.breaker.provider

    @classmethod
    def of(cls, model: LanguageModel) -> Provider:
        """Return a provider with a breaker of the usual bounds."""
        return cls(model, CircuitBreaker(model.provider))


class Candidate(NamedTuple):
    """A model that may answer. `model` None: the one that its provider is configured with."""

    provider: Provider
    model: str | None

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return self.model or self.provider.model.name


@dataclass(frozen=True, slots=True)
class ModelChain:
    """The provider that is asked first, and the models that stand in for it, in their order."""

    first: Provider
    fallbacks: Sequence[Candidate] = ()

    @classmethod
    def of(cls, model: LanguageModel) -> ModelChain:
        """Return a chain of one model."""
        return cls(Provider.of(model))

    @property
    def providers(self) -> Sequence[Provider]:
        """Every provider once, in the order in which they are asked."""
        return list(dict.fromkeys((self.first, *(fallback.provider for fallback in self.fallbacks))))

    @property
    def open_breakers(self) -> int:
        """How many providers are spared, or on trial, as they failed."""
        return sum(provider.breaker.state != "closed" for provider in self.providers)

    def candidates(self, asked: str | None) -> list[Candidate]:
        """Return the models that may answer a request, in their order, each once.

        Args:
            asked: the model that the request names; None: the first provider's own.
        """
        by_name: dict[tuple[int, str], Candidate] = {}
        for candidate in (Candidate(self.first, asked), *self.fallbacks):
            by_name.setdefault((id(candidate.provider), candidate.name), candidate)
        return list(by_name.values())


class Step(NamedTuple):
    """What follows a try that failed or could not be made: `action` after `seconds`, `reason` if it is `next_model`."""

    action: Action
    seconds: float = 0.0
    reason: SwitchReason | None = None


@dataclass(slots=True)
class _Standing:
    """A candidate: when it first failed or was held back, its tries so far, and when the next may be made."""

    candidate: Candidate
    since: float | None = None
    tries: int = 0
    not_before: float = 0.0


_NOT_AVAILABLE = "the language model is not available"


class ModelChoice:
    """The way of one reply through its candidates.

    Each has the tries of `policy`, and its time from when it first fails or is held back: an answer that breaks off
    late is worth another try as well, and so is one that a process which was stopped for a while has missed. One
    that is exhausted, whose key is refused or that is unknown is left for good; one whose breaker lets nothing
    through is left at once for the next, and stays a candidate. If no breaker lets anything through, the reply
    waits for the first that will, as long as that candidate's time allows. A request refused for itself ends it
    all.

    Args:
        candidates: at least one, in their order.
        policy: of each candidate.
        asker: what it is for, to the breakers.
        clock: seconds, from any start.
        draw: draws from [0, 1).
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        policy: RetryPolicy,
        *,
        asker: str,
        clock: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._asker = asker
        self._clock = clock
        self._draw = draw
        self._left = [_Standing(candidate) for candidate in candidates]
        self._at = self._left[0]
        self._failure: ModelFailure | None = None

    @property
    def candidate(self) -> Candidate:
        """The one to ask now."""
        return self._at.candidate

    @property
    def failure(self) -> ModelFailure:
        """What to tell when nothing is left: a failure that may pass before one that will not."""
        return self._failure or ModelTemporaryError(_NOT_AVAILABLE, cause="breaker_open")

    def admit(self) -> Permit | None:
        """Return the permit for a try at the candidate; None if no request may leave: then see `held_back`."""
        return self.candidate.provider.breaker.admit(self._asker)

    def held_back(self) -> Step:
        """Return what follows as no request may leave to the candidate."""
        self._begin_time(self._at)
        refusal = self.candidate.provider.breaker.refusal
        if refusal is None:
            return self._turn("breaker_open")
        return self._leave(refusal, "key_refused")  # known without asking: its time is not waited for

    def failed(self, failure: ModelFailure) -> Step:
        """Take how a try at the candidate failed, and return what follows."""
        at = self._at
        at.tries += 1
        self._begin_time(at)
        delay = self._policy.next_delay(at.tries, self._elapsed(at), failure, self._draw)
        if delay is not None:
            self._keep(failure)
            at.not_before = self._clock() + delay
            is_open = at.candidate.provider.breaker.wait_seconds() > 0  # perhaps by this very failure
            return self.held_back() if is_open else Step("retry", delay)
        reason = _reason_to_leave(failure)
        if reason is not None:
            return self._leave(failure, reason)
        self._keep(failure)
        return Step("given_up")

    def _leave(self, failure: ModelFailure, reason: SwitchReason) -> Step:
        self._keep(failure)
        self._left.remove(self._at)
        return self._turn(reason)

    def _turn(self, reason: SwitchReason) -> Step:
        """Turn to the first candidate that may be asked now, else to the one that may be asked soonest."""
        waits = [(standing, self._wait_seconds(standing)) for standing in self._left]
        fitting = [(standing, wait) for standing, wait in waits if self._has_time(standing, wait)]
        if not fitting:
            return Step("given_up")
        chosen, seconds = min(fitting, key=lambda pair: pair[1])
        action: Action = "retry" if chosen is self._at else "next_model"
        self._at = chosen
        return Step(action, seconds, reason if action == "next_model" else None)

    def _wait_seconds(self, standing: _Standing) -> float:
        """Return for how long to leave it alone; more than its breaker says, so that not all come at once."""
        seconds = standing.candidate.provider.breaker.wait_seconds()
        if seconds > 0:
            seconds += self._draw() * self._policy.base_seconds
        return max(seconds, standing.not_before - self._clock(), 0.0)

    def _has_time(self, standing: _Standing, wait: float) -> bool:
        return self._elapsed(standing) + wait <= self._policy.total_seconds

    def _begin_time(self, standing: _Standing) -> None:
        if standing.since is None:
            standing.since = self._clock()

    def _elapsed(self, standing: _Standing) -> float:
        return 0.0 if standing.since is None else self._clock() - standing.since

    def _keep(self, failure: ModelFailure) -> None:
        if isinstance(failure, ModelTemporaryError) or not isinstance(self._failure, ModelTemporaryError):
            self._failure = failure


def _reason_to_leave(failure: ModelFailure) -> SwitchReason | None:
    """Return why the next model may do better, None if the request itself is at fault."""
    match failure:
        case KeyRefused():
            return "key_refused"
        case ModelUnknown():
            return "model_unknown"
        case ModelRefused():
            return None
        case _:
            return "exhausted"
