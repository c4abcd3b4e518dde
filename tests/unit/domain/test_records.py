"""Records: what goes in comes out, and what cannot be read is told apart from what can."""

from typing import Any

import msgspec
import pytest

from duologue.domain.errors import RecordUnreadable
from duologue.domain.records import (
    MAX_RECORD_BYTES,
    MessageSubmitted,
    Origin,
    OutcomeRecord,
    RegenerateRequested,
    ReplyCompleted,
    ReplyFailed,
    StopRequested,
    Usage,
    decode_incoming,
    decode_outcome,
    encode,
    origin_of,
)

_USER: dict[str, Any] = {"tenant": "default", "user_id": "ada", "uid": "u1"}
_SUBMITTED = MessageSubmitted(
    **_USER, message_id="m", conversation_id="c", client_id="1", content="hi", submitted_at=1, correlation_id="x"
)


@pytest.mark.parametrize(
    "record",
    [
        _SUBMITTED,
        StopRequested(**_USER, message_id="m", conversation_id="c", requested_at=1, correlation_id="x"),
        RegenerateRequested(
            **_USER, message_id="m", conversation_id="c", attempt=1, requested_at=1, correlation_id="x"
        ),
    ],
)
def test_incoming_record_encoded_and_decoded_is_the_same(
    record: MessageSubmitted | StopRequested | RegenerateRequested,
) -> None:
    assert decode_incoming(encode(record)) == record


_OUTCOME: dict[str, Any] = {
    **_USER, "reply_id": "r", "message_id": "m", "conversation_id": "c", "correlation_id": "x"
}  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        ReplyCompleted(
            **_OUTCOME, attempt=1, generation=1, completed_at=1, content="hi", model="m", finish_reason="stop",
            processing_time_ms=1, usage=Usage(1, 2, 3), metadata={"a": [1]},
        ),
        ReplyFailed(
            **_OUTCOME, attempt=1, generation=1, completed_at=1, reason="it rained", cause="http_500", temporary=True
        ),
    ],
)  # fmt: skip
def test_outcome_record_encoded_and_decoded_is_the_same(record: OutcomeRecord) -> None:
    assert decode_outcome(encode(record)) == record


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\xff\xfe", b"{", b"[]", b"null", b"{}", b'{"type":"message_submitted"}', b'{"type":"unheard_of"}',
        b"[" * 100_000, b"x" * (MAX_RECORD_BYTES + 1),
        msgspec.json.encode(msgspec.to_builtins(_SUBMITTED) | {"v": 2}),
    ],
)  # fmt: skip
def test_incoming_record_malformed_or_newer_is_unreadable(value: bytes) -> None:
    with pytest.raises(RecordUnreadable):
        decode_incoming(value)


@pytest.mark.parametrize(
    ("value", "attempt"),
    [(b'{"type":"reply_failed","attempt":3}', 3), (b'{"type":"regenerate_requested","attempt":3}', None)],
)
def test_origin_has_the_attempt_of_an_outcome_alone(value: bytes, attempt: int | None) -> None:
    assert origin_of(value).attempt == attempt


@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        b"",
        b"[]",
        b"[" * 10_000,
        b'{"uid":7}',
        b'{"uid":"' + b"x" * 65 + b'"}',
        b'{"uid":"a\\u0000b"}',
        b'{"uid":"u","x":"' + b"y" * (4 * MAX_RECORD_BYTES) + b'"}',
    ],
    ids=["bytes", "empty", "list", "deep", "number", "long", "nul", "huge"],
)
def test_origin_of_what_tells_none_is_unknown(value: bytes) -> None:
    assert origin_of(value) == Origin()
