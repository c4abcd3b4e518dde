"""What differs from reply to reply, drawn by a seed."""

from __future__ import annotations

import random
from typing import Final, Literal

from duologue.bench.mock_llm.config import LEAST_SHARE_OF_TPS, LEAST_TOKENS, MockConfig

Fault = Literal["", "429", "500", "cut", "silence"]

_FAULTS: Final[tuple[Fault, ...]] = ("429", "500", "cut", "silence")


class Draws:
    """The same seed draws the same for the same requests in the same order. What has no spread is not drawn."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  # it chooses faults, not secrets

    def fault(self, config: MockConfig) -> Fault:
        """Return what goes wrong with a request, mostly nothing."""
        rates = (config.rate_429, config.rate_500, config.rate_cut, config.rate_silence)
        if not any(rates):
            return ""
        draw = self._random.random()
        for fault, rate in zip(_FAULTS, rates, strict=True):
            if draw < rate:
                return fault
            draw -= rate
        return ""

    def tokens(self, config: MockConfig) -> int:
        """Return how long a reply is."""
        spread = config.tokens_spread
        return max(LEAST_TOKENS, config.tokens + (self._random.randint(-spread, spread) if spread else 0))

    def first_token_seconds(self, config: MockConfig) -> float:
        """Return the time from a request to its first token."""
        return max(0.0, config.ttft_ms + self._around(config.ttft_spread_ms)) / 1000

    def tokens_per_second(self, config: MockConfig) -> float:
        """Return a reply's speed, 0 if it leaves at once."""
        return max(LEAST_SHARE_OF_TPS * config.tps, config.tps + self._around(config.tps_spread)) if config.tps else 0.0

    def _around(self, spread: float) -> float:
        return self._random.uniform(-spread, spread) if spread else 0.0
