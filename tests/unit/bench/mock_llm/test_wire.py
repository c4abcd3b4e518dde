"""The bytes of answers, read by the rules of HTTP and of server-sent events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from duologue.bench.mock_llm import wire
from duologue.bench.mock_llm.wire import stream


def _body_of_chunks(data: bytes) -> bytes:
    """Return what HTTP's chunked coding carries (RFC 9112, 7.1), whole or so far."""
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        data = rest[length + 2 :]
    return body


def _events(data: bytes) -> list[Any]:
    head, _, chunks = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    lines = _body_of_chunks(chunks).split(b"\n\n")
    assert lines.pop() == b""
    assert all(line.startswith(b"data: ") for line in lines)
    return [line if line == b"data: [DONE]" else json.loads(line[6:]) for line in lines]


def _text(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


@pytest.mark.parametrize("has_usage", [False, True])
def test_stream_in_parts_is_the_stream_at_once(has_usage: bool) -> None:
    answer = stream(b'"gpt-9"', has_usage)
    parts = [answer.plain(1, True, 0), answer.plain(2, False, 0), answer.plain(1, False, 0), answer.plain(1, False, 5)]
    assert b"".join(parts) == answer.plain(5, True, 5) == answer.of(["word "] * 5, True, 5)


def test_stream_with_usage_ends_with_reason_usage_and_done() -> None:
    *pieces, reason, usage, done = _events(stream(b'"gpt-9"', True).plain(3, True, 3))
    assert _text(pieces) == "word word word "
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [piece["choices"][0]["finish_reason"] for piece in [*pieces, reason]] == [None, None, None, "stop"]
    assert (usage["choices"], usage["usage"]["completion_tokens"], usage["usage"]["total_tokens"]) == ([], 3, 4)
    assert done == b"data: [DONE]"
    assert {event["model"] for event in [*pieces, reason, usage]} == {"gpt-9"}


def test_stream_without_usage_tells_none() -> None:
    data = stream(b'"gpt-9"', False).plain(3, True, 3)
    assert b"usage" not in data
    assert _events(data)[-1] == b"data: [DONE]"


def test_stream_of_any_text_carries_it() -> None:
    answer = stream('"ü\\""'.encode(), True)
    data = answer.of(['say "ü"\n', "b"], True, 0) + answer.of(["c"], False, 3)
    *events, _ = _events(data)
    assert _text(events) == 'say "ü"\nbc'
    assert events[0]["model"] == 'ü"'


def test_whole_answer_is_as_long_as_it_says() -> None:
    head, _, body = wire.whole_answer(b'"gpt-9"', 'a "b" ü', 2).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    answer = json.loads(body)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": 'a "b" ü'}
    assert (answer["model"], answer["object"], answer["usage"]["completion_tokens"]) == ("gpt-9", "chat.completion", 2)


def test_failure_has_the_form_of_openais_errors() -> None:
    head, _, body = wire.refusal("429", 7).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"Retry-After: 7" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert b"Retry-After" not in wire.refusal("500", None)
