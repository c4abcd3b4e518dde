"""Frames from clients: which are taken, and which code names the fault of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.protocol import frames
from duologue.protocol.codes import ErrorCode
from duologue.protocol.parsing import MAX_DEPTH, Bounds, FrameRefused, parse_frame

BOUNDS = Bounds()


def _message(**fields: Any) -> str:
    return json.dumps({"type": "message", "content": "Hello"} | fields)


def _refusal(text: str) -> FrameRefused:
    with pytest.raises(FrameRefused) as refusal:
        parse_frame(text, BOUNDS)
    return refusal.value


def test_message_with_every_field_is_taken() -> None:
    fields: dict[str, Any] = {
        "id": "k",
        "conversation_id": "c",
        "character_id": "a",
        "model": "m",
        "metadata": {"a": [1, {"b": None}]},
        "userid": "ann",
    }
    assert parse_frame(_message(**fields), BOUNDS) == frames.Message(content="Hello", **fields)


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('{"content":"Hello"}', frames.Message(content="Hello")),
        ('{"content":"Hello","extra":{"a":1}}', frames.Message(content="Hello")),
        ('{"type":"message","content":"Hello","id":null}', frames.Message(content="Hello")),
        ('{"type":"stop","message_id":"m"}', frames.Stop(message_id="m")),
        ('{"type":"regenerate","message_id":"m","attempt":2}', frames.Regenerate(message_id="m", attempt=2)),
        (
            '{"type":"typing","conversation_id":"c","active":true}',
            frames.ClientTyping(conversation_id="c", active=True),
        ),
        ('{"type":"resume","last_event_id":"e:1"}', frames.Resume(last_event_id="e:1")),
        ('{"type":"auth","token":"t"}', frames.Auth(token="t")),
        ('{"type":"ping"}', frames.Ping()),
        ('{"type":"message","content":"\\ud83d\\ude00"}', frames.Message(content="😀")),
        ('{"type":"message","content":"\\\\u0000"}', frames.Message(content="\\u0000")),
        ('{"type":"message","content":"' + "[{" * 500 + '"}', frames.Message(content="[{" * 500)),
        ('{"type":"message","content":"\\"' + "[" * 500 + '"}', frames.Message(content='"' + "[" * 500)),
    ],
)
def test_frame_is_read(text: str, frame: frames.ClientFrame) -> None:
    assert parse_frame(text, BOUNDS) == frame


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ErrorCode.INVALID_JSON),
        ("hello", ErrorCode.INVALID_JSON),
        ('{"type":"ping"', ErrorCode.INVALID_JSON),
        ('{"type":"ping"} {}', ErrorCode.INVALID_JSON),
        ('{"type":"message","content":"cut', ErrorCode.INVALID_JSON),
        ('{"type":"message","content":"a","metadata":{"n":NaN}}', ErrorCode.INVALID_JSON),
        ("1" * 5000, ErrorCode.INVALID_JSON),
        ("[]", ErrorCode.INVALID_FRAME),
        ("null", ErrorCode.INVALID_FRAME),
        ('"message"', ErrorCode.INVALID_FRAME),
        ("{}", ErrorCode.INVALID_FRAME),
        ('{"id":"k"}', ErrorCode.INVALID_FRAME),
        ('{"type":7}', ErrorCode.INVALID_FRAME),
        ('{"type":null,"content":"a"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":7}', ErrorCode.INVALID_FRAME),
        ('{"content":7}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"a","metadata":[]}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"a","metadata":{"n":1e999}}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"a\\u0000"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"\\\\\\u0000"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"a\x00"}', ErrorCode.INVALID_FRAME),
        ('{"type":"ping","extra":"\\u0000"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"\\ud800"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"\\udc00\\ud800 and more"}', ErrorCode.INVALID_FRAME),
        ('{"content":"\\ud800"}', ErrorCode.INVALID_FRAME),
        ('{"type":"message","content":"a","metadata":{"\\ud800":1}}', ErrorCode.INVALID_FRAME),
        ('{"type":"ping","extra":"\\ud800"}', ErrorCode.INVALID_FRAME),
        ('{"type":"hello"}', ErrorCode.UNKNOWN_TYPE),
        ('{"type":"","content":"a"}', ErrorCode.UNKNOWN_TYPE),
        ('{"type":"connection"}', ErrorCode.UNKNOWN_TYPE),
        ('{"type":"resume"}', ErrorCode.INVALID_FRAME),
        ('{"type":"ping","id":""}', ErrorCode.INVALID_FRAME),
        ('{"type":"stop","message_id":"' + "m" * 300 + '"}', ErrorCode.INVALID_FRAME),
    ],
)
def test_bad_frame_is_refused_by_its_fault(text: str, code: ErrorCode) -> None:
    assert _refusal(text).code == code


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"content": ""}, ErrorCode.CONTENT_EMPTY),
        ({"content": " \n\t\u00a0"}, ErrorCode.CONTENT_EMPTY),
        ({"content": "x" * 8001}, ErrorCode.CONTENT_TOO_LONG),
        ({"content": " " * 8001}, ErrorCode.CONTENT_TOO_LONG),
        ({"metadata": {"a": "x" * 1018}}, ErrorCode.INVALID_FRAME),
        ({"conversation_id": "c" * 257}, ErrorCode.INVALID_FRAME),
        ({"type": "hello"}, ErrorCode.UNKNOWN_TYPE),
        ({"content": "a\x00"}, ErrorCode.INVALID_FRAME),
        ({"content": "\ud800"}, ErrorCode.INVALID_FRAME),
    ],
)
def test_refusal_tells_the_frames_own_id(fields: dict[str, Any], code: ErrorCode) -> None:
    refusal = _refusal(_message(id="k", **fields))
    assert (refusal.code, refusal.client_id) == (code, "k")


@pytest.mark.parametrize("client_id", ["", "x" * 65, 7, "\ud800", ["k"]])
def test_id_that_cannot_be_told_back_is_left_out(client_id: object) -> None:
    refusal = _refusal(_message(id=client_id))
    assert (refusal.code, refusal.client_id) == (ErrorCode.INVALID_FRAME, None)


def test_longest_content_id_and_metadata_are_taken() -> None:
    metadata = {"a": "x" * (1024 - len('{"a":""}'))}
    frame = parse_frame(_message(content="x" * 8000, id="i" * 64, metadata=metadata), BOUNDS)
    assert isinstance(frame, frames.Message)
    assert (len(frame.content), frame.metadata) == (8000, metadata)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded_also_in_fields_that_are_ignored(opening: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return '{"type":"ping","extra":' + opening * (depth - 1) + "1" + closing * (depth - 1) + "}"

    assert parse_frame(nested(MAX_DEPTH), BOUNDS) == frames.Ping()
    for depth in (MAX_DEPTH + 1, 1000, 5000):
        assert _refusal(nested(depth)).code == ErrorCode.INVALID_FRAME


def test_depth_that_never_closes_is_refused_without_recursion() -> None:
    assert _refusal("[" * 60_000).code == ErrorCode.INVALID_FRAME
    assert _refusal('{"a":' * 10_000).code == ErrorCode.INVALID_FRAME


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.text()
    | _JSON.map(json.dumps)
    | st.dictionaries(
        st.sampled_from(["type", "content", "id", "metadata", "message_id", "token"]),
        _JSON | st.sampled_from(["message", "ping", "stop"]),
    ).map(json.dumps)
)
def test_any_text_is_a_frame_or_a_refusal_that_can_be_told(text: str) -> None:
    try:
        parse_frame(text, BOUNDS)
    except FrameRefused as refusal:
        frames.encode(
            frames.Error(
                code=ErrorCode(refusal.code), message=str(refusal), userid="u", temporary=False, id=refusal.client_id
            )
        )


@given(st.text(min_size=1, max_size=8000).filter(lambda text: text.strip() and "\0" not in text))
def test_any_content_comes_through_unchanged(content: str) -> None:
    for ascii_only in (True, False):
        frame = parse_frame(json.dumps({"content": content}, ensure_ascii=ascii_only), BOUNDS)
        assert isinstance(frame, frames.Message)
        assert frame.content == content
