"""How the mock answers: declared here once for the command's options, `POST /config` and the documentation."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, inspect

from duologue.domain.errors import Rejected

LEAST_TOKENS: Final = 1
LEAST_SHARE_OF_TPS: Final = 0.1

_Milliseconds = Annotated[float, Meta(ge=0, le=600_000)]
_Rate = Annotated[float, Meta(ge=0, le=1)]
_Speed = Annotated[float, Meta(ge=0, le=100_000)]
_Tokens = Annotated[int, Meta(ge=1, le=100_000)]
_TokensSpread = Annotated[int, Meta(ge=0, le=100_000)]
_WholeSeconds = Annotated[int, Meta(ge=0, le=3_600)]


class MockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the mock answers. Read it from outside with `configured`, which also holds each value to its range."""

    tokens: Annotated[_Tokens, Meta(description="Tokens of a reply; each is one chunk.")] = 8
    tokens_spread: Annotated[
        _TokensSpread,
        Meta(description="A reply has `tokens` plus or minus up to this many, each number as likely; never below 1."),
    ] = 0
    ttft_ms: Annotated[_Milliseconds, Meta(description="Milliseconds from a request to its first token.")] = 0.0
    ttft_spread_ms: Annotated[
        _Milliseconds,
        Meta(description="Milliseconds: the first token takes `ttft_ms` plus or minus up to this; never below 0."),
    ] = 0.0
    tps: Annotated[
        _Speed, Meta(description="Tokens a second of one reply after its first; 0 sends the whole reply at once.")
    ] = 0.0
    tps_spread: Annotated[
        _Speed,
        Meta(
            description="Tokens a second: each reply has a speed of its own, `tps` plus or minus up to this;"
            " never below a tenth of `tps`."
        ),
    ] = 0.0
    rate_429: Annotated[_Rate, Meta(description="Share of requests that are refused with HTTP 429.")] = 0.0
    rate_500: Annotated[_Rate, Meta(description="Share of requests that fail with HTTP 500.")] = 0.0
    rate_cut: Annotated[_Rate, Meta(description="Share of replies in whose middle the connection is closed.")] = 0.0
    rate_silence: Annotated[
        _Rate, Meta(description="Share of replies that stop in their middle while the connection stays open.")
    ] = 0.0
    retry_after_seconds: Annotated[
        _WholeSeconds | None,
        Meta(description="Seconds in the header `Retry-After` of a 429 and a 500; none without it."),
    ] = None
    stamp: Annotated[
        bool, Meta(description="Each chunk's text is the time at which it left, as `@1700000000.123456`.")
    ] = False
    echo: Annotated[bool, Meta(description="The first chunk repeats what the user said last.")] = False
    record: Annotated[
        bool, Meta(description="Count what users say, for `GET /stats`; kept in memory until `POST /reset`.")
    ] = False

    def __post_init__(self) -> None:
        rates = (self.rate_429, self.rate_500, self.rate_cut, self.rate_silence)
        if math.fsum(rates) > 1 + 1e-9:
            raise ValueError(
                f"the rates of 429, 500, cut and silence are shares of the same requests: together"
                f" at most 1, not {math.fsum(rates):g}"
            )


class Setting(msgspec.Struct, frozen=True):
    """One field of `MockConfig`. `least` and `most` are None for a switch."""

    name: str
    kind: type[bool | int | float]
    default: Any
    least: float | None
    most: float | None
    meaning: str

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")


def configured(changes: dict[str, Any], since: MockConfig | None = None) -> MockConfig:
    """Return a configuration with some values changed.

    Raises:
        Rejected: a name is unknown, a value is outside its range, or the rates exceed 1 together.
    """
    try:
        return msgspec.convert({**msgspec.to_builtins(since or MockConfig()), **changes}, MockConfig)
    except msgspec.ValidationError as error:
        raise Rejected("invalid_config", str(error).replace("`$.", "`")) from error


def settings() -> list[Setting]:
    """Return what can be set, in the order of its declaration."""
    described = inspect.type_info(MockConfig)
    assert isinstance(described, inspect.StructType)  # noqa: S101
    return [_setting(field) for field in described.fields]


def _setting(field: inspect.Field) -> Setting:
    assert isinstance(field.type, inspect.Metadata)  # noqa: S101  # every field has its description
    meaning = (field.type.extra_json_schema or {})["description"]
    declared = field.type.type
    if isinstance(declared, inspect.UnionType):  # with None
        declared = next(each for each in declared.types if not isinstance(each, inspect.NoneType))
    if isinstance(declared, inspect.IntType | inspect.FloatType):
        kind = int if isinstance(declared, inspect.IntType) else float
        return Setting(field.name, kind, field.default, declared.ge, declared.le, meaning)
    return Setting(field.name, bool, field.default, None, None, meaning)
