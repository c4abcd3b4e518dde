"""How the mock answers: declared here once for the command's options, `POST /config` and the documentation."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec

from duologue.bench.fields import means
from duologue.domain.errors import Rejected

LEAST_TOKENS: Final = 1
LEAST_SHARE_OF_TPS: Final = 0.1


class MockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the mock answers. Read it from outside with `configured`, which also holds each value to its range."""

    tokens: Annotated[int, means("Tokens of a reply; each is one chunk.", ge=1, le=100_000)] = 8
    tokens_spread: Annotated[
        int,
        means(
            "A reply has `tokens` plus or minus up to this many, each number as likely; never below 1.",
            ge=0,
            le=100_000,
        ),
    ] = 0
    ttft_ms: Annotated[float, means("Milliseconds from a request to its first token.", ge=0, le=600_000)] = 0.0
    ttft_spread_ms: Annotated[
        float,
        means(
            "Milliseconds: the first token takes `ttft_ms` plus or minus up to this; never below 0.", ge=0, le=600_000
        ),
    ] = 0.0
    tps: Annotated[
        float,
        means("Tokens a second of one reply after its first; 0 sends the whole reply at once.", ge=0, le=100_000),
    ] = 0.0
    tps_spread: Annotated[
        float,
        means(
            "Tokens a second: each reply has a speed of its own, `tps` plus or minus up to this;"
            " never below a tenth of `tps`.",
            ge=0,
            le=100_000,
        ),
    ] = 0.0
    rate_429: Annotated[float, means("Share of requests that are refused with HTTP 429.", ge=0, le=1)] = 0.0
    rate_500: Annotated[float, means("Share of requests that fail with HTTP 500.", ge=0, le=1)] = 0.0
    rate_cut: Annotated[float, means("Share of replies in whose middle the connection is closed.", ge=0, le=1)] = 0.0
    rate_silence: Annotated[
        float, means("Share of replies that stop in their middle while the connection stays open.", ge=0, le=1)
    ] = 0.0
    retry_after_seconds: (
        Annotated[
            int, means("Seconds in the header `Retry-After` of a 429 and a 500; none without it.", ge=0, le=3_600)
        ]
        | None
    ) = None
    stamp: Annotated[bool, means("Each chunk's text is the time at which it left, as `@1700000000.123456`.")] = False
    echo: Annotated[bool, means("The first chunk repeats what the user said last.")] = False
    record: Annotated[bool, means("Count what users say, for `GET /stats`; kept in memory until `POST /reset`.")] = (
        False
    )

    def __post_init__(self) -> None:
        rates = (self.rate_429, self.rate_500, self.rate_cut, self.rate_silence)
        if math.fsum(rates) > 1 + 1e-9:
            raise ValueError(
                f"the rates of 429, 500, cut and silence are shares of the same requests: together"
                f" at most 1, not {math.fsum(rates):g}"
            )


def configured(changes: dict[str, Any], since: MockConfig | None = None) -> MockConfig:
    """Return a configuration with some values changed.

    Raises:
        Rejected: a name is unknown, a value is outside its range, or the rates exceed 1 together.
    """
    try:
        return msgspec.convert({**msgspec.to_builtins(since or MockConfig()), **changes}, MockConfig)
    except msgspec.ValidationError as error:
        raise Rejected("invalid_config", str(error).replace("`$.", "`")) from error
