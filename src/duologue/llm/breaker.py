"""A circuit breaker before one provider: when its answers fail, it is left alone for a while and then tried by a few.

The pattern is Michael T. Nygard's (*Release It!*, "Circuit Breaker"; also
https://martinfowler.com/bliki/CircuitBreaker.html), the share of failures within a window as resilience4j has it.
Closed, it lets every try through and looks at how the latest ended. Too many failures open it: no request leaves, for
a time that doubles with each opening in a row. Then it is half open: a few tries at once go through as probes. Enough
of them answered close it, one that fails opens it again.

It has no timers and does nothing but count: whoever wants to ask, asks it first (`admit`).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO, WARNING
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, TypeGuard

import structlog

from duologue.llm.port import KeyRefused, ModelTemporaryError
from duologue.observability.metrics import BREAKER_STATE, BREAKER_TRANSITIONS

_log = structlog.get_logger(__name__)

State = Literal["closed", "half_open", "open"]

_STATE_NUMBERS: Final[dict[State, int]] = {"closed": 0, "half_open": 1, "open": 2}
_MAX_COUNTED: Final = 200
"""Tries that are looked back at: under load the latest say enough."""

_RATE_LIMITED: Final = "http_429"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and for how long.

    Attributes:
        failure_share: of the tries looked back at; from this share on it opens. Below it repeating a try is the better
            answer: seven tries of which half fail are lost once in a hundred and twenty-eight times.
        min_tries: before there are so many nothing is judged.
        min_askers: that have to have failed, so that one request that a provider stumbles over by itself, however often
            it is repeated, does not take the others' provider away.
        window_seconds: how far it looks back.
        open_seconds: the longest that its first opening lasts; each in a row may last twice as long as the one before.
        max_open_seconds: the longest that any lasts.
        probes: tries at once while half open, and answers that close it.
        probe_wait_seconds: after which to ask again while as many probes are under way.
    """

    failure_share: float = 0.8
    min_tries: int = 10
    min_askers: int = 2
    window_seconds: float = 60.0
    open_seconds: float = 5.0
    max_open_seconds: float = 20.0
    probes: int = 3
    probe_wait_seconds: float = 0.5


class _Ended(NamedTuple):
    """A try that has ended."""

    at: float
    failed: bool
    asker: str


class CircuitBreaker:
    """The breaker of one provider in this process.

    Args:
        provider: its name in logs and metrics.
        policy: when it opens, and for how long.
        clock: seconds, from any start, never going back.
        draw: draws from [0, 1), so that processes that open together do not probe together.
    """

    def __init__(
        self,
        provider: str,
        policy: BreakerPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.provider = provider
        self._policy = policy or BreakerPolicy()
        self._clock = clock
        self._draw = draw
        self._state: State = "closed"
        self._stretch = 0
        self._latest: deque[_Ended] = deque()
        self._failures = 0
        self._openings = 0
        self._open_until = 0.0
        self._probing = 0
        self._passed = 0
        self._refusal: KeyRefused | None = None
        BREAKER_STATE.labels(provider).set(_STATE_NUMBERS["closed"])

    @property
    def state(self) -> State:
        """How it stands now."""
        if self._state == "open" and self._clock() >= self._open_until:
            self._turn("half_open")
        return self._state

    @property
    def refusal(self) -> KeyRefused | None:
        """The refusal of the key that opened it, None while it is closed or if something else did."""
        return self._refusal

    def admit(self, asker: str) -> Permit | None:
        """Return the permit for one try, None if none may leave now. Use it as a context around the try.

        Args:
            asker: for what the try is made, such as a reply: tells repeated tries from those for others.
        """
        state = self.state
        if state == "open" or (state == "half_open" and self._probing >= self._policy.probes):
            return None
        self._probing += state == "half_open"
        return Permit(self, self._stretch, asker, probe=state == "half_open")

    def wait_seconds(self) -> float:
        """Return after what time it is worth asking again: 0 if a try may leave now."""
        state = self.state
        if state == "open":
            return self._open_until - self._clock()
        if state == "half_open" and self._probing >= self._policy.probes:
            return self._policy.probe_wait_seconds
        return 0.0

    # What permits report. Those of an earlier stretch are about how the provider was then, and count for nothing.

    def answered(self, stretch: int) -> None:
        """A probe's answer has begun, which is all that it was to find out: answers may take minutes."""
        if stretch != self._stretch:
            return
        self._probing -= 1
        self._passed += 1
        if self._passed >= self._policy.probes:
            self._openings = 0
            self._refusal = None
            self._turn("closed")

    def given_back(self, stretch: int) -> None:
        """A probe has ended without telling anything."""
        if stretch == self._stretch:
            self._probing -= 1

    def ended(self, stretch: int, asker: str, failure: Exception | None) -> None:
        """A try has ended well, or with a failure that counts."""
        if stretch != self._stretch:
            return
        if self._state == "half_open":
            if failure is not None:
                self._open(failure)
            return
        self._count(asker, failed=failure is not None)
        if failure is not None and self._has_failed():
            self._open(failure)

    def _count(self, asker: str, *, failed: bool) -> None:
        now = self._clock()
        self._latest.append(_Ended(now, failed, asker))
        self._failures += failed
        while self._latest[0].at <= now - self._policy.window_seconds or len(self._latest) > _MAX_COUNTED:
            self._failures -= self._latest.popleft().failed

    def _has_failed(self) -> bool:
        tries, policy = len(self._latest), self._policy
        if tries < policy.min_tries or self._failures < policy.failure_share * tries:
            return False
        return len({ended.asker for ended in self._latest if ended.failed}) >= policy.min_askers

    def _open(self, failure: Exception) -> None:
        longest = min(self._policy.open_seconds * 2.0 ** min(self._openings, 32), self._policy.max_open_seconds)
        seconds = longest * (0.5 + self._draw() / 2)
        self._openings += 1
        self._open_until = self._clock() + seconds
        self._refusal = failure if isinstance(failure, KeyRefused) else None
        self._turn("open", seconds=round(seconds, 1), openings=self._openings, error=str(failure))

    def _turn(self, state: State, **why: object) -> None:
        self._state = state
        self._stretch += 1
        self._latest.clear()
        self._failures = self._probing = self._passed = 0
        BREAKER_STATE.labels(self.provider).set(_STATE_NUMBERS[state])
        BREAKER_TRANSITIONS.labels(self.provider, state).inc()
        _log.log(WARNING if state == "open" else INFO, "breaker_turned", provider=self.provider, state=state, **why)


class Permit:
    """One try that a breaker lets through. A context: how the try ends is told by how it is left.

    Left in peace it was a good try. A temporary failure or a refused key counts against the provider. A 429 counts for
    nothing: it is about one model or one key's share, comes from a provider that is well, and says by itself when to
    come back. So do a refusal of this one request, and a try that somebody ended.
    """

    __slots__ = ("_asker", "_breaker", "_probe", "_stretch")

    def __init__(self, breaker: CircuitBreaker, stretch: int, asker: str, *, probe: bool) -> None:
        self._breaker = breaker
        self._stretch = stretch
        self._asker = asker
        self._probe = probe

    def answered(self) -> None:
        """The first piece of the answer has come."""
        if self._probe:
            self._probe = False
            self._breaker.answered(self._stretch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.answered()
            self._breaker.ended(self._stretch, self._asker, None)
        elif counts_against(error):
            self._breaker.ended(self._stretch, self._asker, error)
        elif self._probe:
            self._breaker.given_back(self._stretch)


def counts_against(error: BaseException) -> TypeGuard[Exception]:
    """Tell whether a failed try says something about its provider, and not about this one request."""
    if isinstance(error, ModelTemporaryError):
        return error.cause != _RATE_LIMITED
    return isinstance(error, KeyRefused)
