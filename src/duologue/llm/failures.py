"""What a provider's failure means: another try, or none. See docs/guarantees.md, "Failure"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from duologue.llm.port import (
    KeyRefused,
    ModelFailure,
    ModelRefused,
    ModelTemporaryError,
    ModelUnknown,
    PromptTooLong,
)

MAX_RETRY_AFTER_SECONDS: Final = 3600.0

_TEMPORARY_STATUSES: Final = frozenset({408, 409, 429})
_KEY_STATUSES: Final = frozenset({401, 402, 403})
_SPENT: Final = "insufficient_quota"
"""OpenAI's code in a 429 that no waiting ends: the account has no money left."""
_MODERATED: Final = re.compile(rb"moderation|content_policy|content_filter|flagged")
"""Words of a 403 that is about what was said, as of OpenRouter's, and not about the key."""
_UNKNOWN_MODEL: Final = re.compile(
    rb"model_not_found|invalid_model|unknown_model|[Mm]odel [Nn]ot [Ee]xist|not a valid model"
)
"""What providers write that do not answer 404 for a model that they do not have."""
_TOO_LONG: Final = re.compile(rb"context_length_exceeded|exceed_context_size|maximum context length|context window")
"""What OpenAI, llama.cpp, vLLM and others write when a prompt does not fit."""
_SHORT_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def temporary(cause: str, message: str, *, retry_after_seconds: float | None = None) -> ModelTemporaryError:
    """Return the error for a try that failed and may succeed when repeated."""
    return ModelTemporaryError(message, cause=cause, retry_after_seconds=retry_after_seconds)


def failure_of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, model: str, now: datetime | None = None
) -> ModelFailure:
    """Return what an HTTP answer other than 2xx means.

    The message is fit for users: of the body it tells the provider's short error code at most, since providers
    repeat parts of keys and addresses in their texts.
    """
    cause = f"http_{status}"
    if status == 429 and _SPENT in _short_code(body):
        return KeyRefused("the account with the provider of the language model is spent (HTTP 429)", cause="key_spent")
    if status in _TEMPORARY_STATUSES or status >= 500:
        after = retry_after_seconds(headers, now or datetime.now(UTC))
        return temporary(cause, f"the language model is not available (HTTP {status})", retry_after_seconds=after)
    if status in _KEY_STATUSES and not (status == 403 and _MODERATED.search(body)):
        return KeyRefused(f"the provider of the language model refused the key (HTTP {status})", cause=cause)
    if status == 404 or _UNKNOWN_MODEL.search(body):
        return ModelUnknown(
            f"the provider does not know the model {model!r} or its address (HTTP {status})", cause=cause
        )
    if _TOO_LONG.search(body):
        return PromptTooLong("the conversation is longer than the language model takes", cause="prompt_too_long")
    detail = _short_code(body)
    return ModelRefused(f"the language model refused the request (HTTP {status}{detail})", cause=cause)


def failure_of_error(error: object, *, model: str) -> ModelFailure:
    """Return what an error object inside an answer of status 200 means; a status among its fields counts as one."""
    status = _status_in(error)
    if status is not None:
        return failure_of_status(status, {}, msgspec.json.encode({"error": error}), model=model)
    return temporary("error_in_stream", "the language model reported an error")


def error_in(body: bytes) -> object | None:
    """Return the error object of a JSON body, None if it is not JSON or has none."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(decoded, list) and decoded:  # Gemini wraps its errors in a list
        decoded = decoded[0]
    return decoded.get("error") if isinstance(decoded, dict) else None


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the wait that a provider asks for: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).

    Args:
        headers: of the answer; names in lower case or a case-insensitive mapping.
        now: with a time zone.

    Returns:
        Seconds between 0 and `MAX_RETRY_AFTER_SECONDS`; None without a readable header.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:  # OpenAI's finer one
        return _capped(milliseconds / 1000)
    value = headers.get("retry-after")
    if (seconds := _number(value)) is not None:
        return _capped(seconds)
    if value is None:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return _capped((moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())


def _capped(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and number == number else None  # noqa: PLR0124  # NaN is no number


def _status_in(error: object) -> int | None:
    if not isinstance(error, dict):
        return None
    for name in ("code", "status", "status_code"):
        value: Any = error.get(name)
        if isinstance(value, str) and value.isdecimal():
            value = int(value[:4])
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


def _short_code(body: bytes) -> str:
    error = error_in(body)
    codes = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
    code = next((code for code in codes if isinstance(code, str) and _SHORT_CODE.fullmatch(code)), None)
    return f", {code}" if code else ""
