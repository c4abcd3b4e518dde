"""What statuses and headers of a provider mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from duologue.llm.failures import (
    MAX_RETRY_AFTER_SECONDS,
    failure_of_error,
    failure_of_status,
    retry_after_seconds,
)
from duologue.llm.port import KeyRefused, ModelRefused, ModelTemporaryError, ModelUnknown, PromptTooLong

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_status_that_may_pass_is_temporary(status: int) -> None:
    failure = failure_of_status(status, {}, b"", model="m")
    assert isinstance(failure, ModelTemporaryError)
    assert failure.cause == f"http_{status}"


@pytest.mark.parametrize("status", [301, 400, 402, 404, 413, 422])
def test_status_that_will_not_change_is_refused(status: int) -> None:
    failure = failure_of_status(status, {}, b"", model="m")
    assert isinstance(failure, ModelRefused)
    assert failure.cause == f"http_{status}"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_is_named_as_the_reason_and_never_shown(status: int) -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-123","code":"invalid_api_key"}}'
    failure = failure_of_status(status, {}, body, model="m")
    assert isinstance(failure, ModelRefused)
    assert "refused the key" in str(failure)
    assert "sk-123" not in str(failure)


def test_refused_request_tells_the_short_code_but_not_the_text() -> None:
    body = b'{"error":{"message":"at http://10.0.0.1","code":"unsupported_parameter"}}'
    failure = failure_of_status(400, {}, body, model="m")
    assert "unsupported_parameter" in str(failure)
    assert "10.0.0.1" not in str(failure)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":"x"}', b'{"error":{"code":"spaces are no code"}}'])
def test_refused_request_with_any_body_is_described_by_its_status(body: bytes) -> None:
    assert str(failure_of_status(400, {}, body, model="m")).endswith("(HTTP 400)")


@pytest.mark.parametrize("error", [{"code": 429}, {"status": 500}, {"code": "503"}, {"status_code": 408}])
def test_error_object_with_a_status_counts_as_that(error: object) -> None:
    assert failure_of_error(error, model="m").cause.startswith("http_")


@pytest.mark.parametrize(
    "error", ["boom", {"code": "server_error"}, {"code": 7}, {"code": None}, [1], {"code": "99999"}]
)
def test_error_object_without_a_status_is_temporary(error: object) -> None:
    failure = failure_of_error(error, model="m")
    assert isinstance(failure, ModelTemporaryError)
    assert failure.cause == "error_in_stream"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "999999"}, MAX_RETRY_AFTER_SECONDS),
        ({"retry-after": "inf"}, MAX_RETRY_AFTER_SECONDS),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
    ],
)
def test_retry_after_is_read_in_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == seconds


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"code":"context_length_exceeded","message":"too long"}}',
        b'{"error":{"code":400,"message":"does not fit","type":"exceed_context_size_error"}}',
        b'{"error":{"message":"This model\'s maximum context length is 8192 tokens."}}',
    ],
)
def test_prompt_that_does_not_fit_is_told_apart_from_other_refusals(body: bytes) -> None:
    failure = failure_of_status(400, {}, body, model="m")
    assert isinstance(failure, PromptTooLong)
    assert failure.cause == "prompt_too_long"


@pytest.mark.parametrize("status", [401, 402, 403])
def test_refused_key_is_told_apart_since_another_provider_may_answer(status: int) -> None:
    assert isinstance(failure_of_status(status, {}, b"{}", model="m"), KeyRefused)


def test_spent_account_counts_as_a_refused_key_and_is_not_waited_for() -> None:
    body = b'{"error":{"code":"insufficient_quota","message":"You exceeded your current quota"}}'
    failure = failure_of_status(429, {"retry-after": "1"}, body, model="m")
    assert isinstance(failure, KeyRefused)
    assert failure.cause == "key_spent"


def test_forbidden_for_what_was_said_is_about_the_request_and_not_the_key() -> None:
    body = b'{"error":{"code":403,"message":"Your input was flagged","metadata":{"reasons":["x"]}}}'
    failure = failure_of_status(403, {}, body, model="m")
    assert isinstance(failure, ModelRefused)
    assert not isinstance(failure, KeyRefused)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b""),
        (400, b'{"error":{"code":"model_not_found"}}'),
        (400, b'{"error":{"message":"Model Not Exist"}}'),
        (422, b'{"error":{"type":"invalid_model"}}'),
    ],
)
def test_unknown_model_is_told_apart_since_another_may_answer(status: int, body: bytes) -> None:
    assert isinstance(failure_of_status(status, {}, body, model="m"), ModelUnknown)
