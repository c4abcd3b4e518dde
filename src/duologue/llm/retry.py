"""When a failed try at a model is repeated. The loop around it is the ai-consumer's, which must claim a new attempt
before a repeat if text was shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from duologue.domain.errors import Retryable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Source: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/

    Attributes:
        max_tries: at one reply, the first included.
        total_seconds: from the first failure; no further try begins after it.
        base_seconds: upper end of the first delay; each later one's is twice its predecessor's.
        max_delay_seconds: upper end of every drawn delay; what a provider asks for may be longer.
    """

    max_tries: int = 7
    total_seconds: float = 60.0
    base_seconds: float = 0.5
    max_delay_seconds: float = 20.0

    def next_delay(
        self, tries_made: int, elapsed_seconds: float, error: Exception, random: Callable[[], float]
    ) -> float | None:
        """Return how long to wait before the next try, None to give up.

        Args:
            tries_made: those that failed, at least 1.
            elapsed_seconds: since the first failure.
            error: of the latest try; only a `Retryable` is repeated.
            random: draws from [0, 1).

        Returns:
            Seconds: drawn from [0, base · 2^(tries_made-1)), on top of the wait that the provider asked for, so that
            those it refused together do not come back together. None also if that would end after `total_seconds`.
        """
        if not isinstance(error, Retryable) or tries_made >= self.max_tries:
            return None
        ceiling = min(self.base_seconds * 2.0 ** min(tries_made - 1, 32), self.max_delay_seconds)
        left = self.total_seconds - elapsed_seconds
        asked = error.retry_after_seconds
        if asked is not None:
            return None if asked > left else min(asked + random() * self.base_seconds, left)
        delay = random() * ceiling
        return delay if delay <= left else None
