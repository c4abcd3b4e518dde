"""The reader of streamed answers: every split of every byte, and what providers get wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.domain.records import Usage
from duologue.llm.answer import MAX_ANSWER_CHARACTERS, MAX_LINE_BYTES, AnswerReader
from duologue.llm.port import Finished, ModelRefused, ModelTemporaryError

DONE = b"data: [DONE]\n\n"


def _event(content: Any = None, finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def _read(*pieces: bytes) -> tuple[str, Finished]:
    reader = AnswerReader("asked-for")
    text = "".join([reader.feed(piece) for piece in pieces]) + reader.end()
    return text, reader.finish()


def _cause(*pieces: bytes) -> str:
    with pytest.raises(ModelTemporaryError) as caught:
        _read(*pieces)
    return caught.value.cause


def test_reader_of_a_whole_answer_returns_text_reason_model_and_usage() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    text, finished = _read(_event("Hello", model="real"), _event(" you"), _event(None, "stop"), last, DONE)
    assert text == "Hello you"
    assert finished == Finished("stop", "real", Usage(3, 2, 5))


@given(st.data(), st.sampled_from([b"\n", b"\r\n"]))
def test_reader_whatever_the_splits_returns_the_same_text(data: st.DataObject, line_end: bytes) -> None:
    stream = (_event("Grüße ") + b": a comment\n\n" + b"event: x\nid: 1\n" + _event("🦊!", "stop") + DONE).replace(
        b"\n", line_end
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    text, finished = _read(*pieces)
    assert (text, finished.finish_reason) == ("Grüße 🦊!", "stop")


def test_reader_of_several_events_in_one_piece_returns_their_text_together() -> None:
    assert AnswerReader("m").feed(_event("a") + _event("b") + _event("c")) == "abc"


@pytest.mark.parametrize(
    ("said", "told"),
    [("length", "length"), ("content_filter", "content_filter"), ("tool_calls", "stop"), ("eos", "stop")],
)
def test_reader_maps_finish_reasons_to_those_of_the_protocol(said: str, told: str) -> None:
    assert _read(_event("x"), _event(None, said), DONE)[1].finish_reason == told


def test_reader_without_finish_reason_but_with_done_says_stop() -> None:
    assert _read(_event("x"), DONE)[1].finish_reason == "stop"


def test_reader_without_done_but_with_finish_reason_has_ended() -> None:
    assert _read(_event("x", "stop"))[1].finish_reason == "stop"


def test_reader_of_a_last_line_without_its_end_takes_it() -> None:
    assert _read(_event("x"), _event("y", "stop").rstrip())[0] == "xy"


def test_reader_ignores_reasoning_but_counts_it_as_life() -> None:
    reader = AnswerReader("m")
    reasoning = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    assert reader.feed(reasoning) == ""
    assert reader.alive
    assert reader.feed(b": ping\n\n") == ""
    assert not reader.alive


def test_reader_takes_content_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert _read(_event(parts), DONE)[0] == "ab"


def test_reader_of_bad_usage_keeps_the_answer() -> None:
    text, finished = _read(_event("x", "stop", usage={"prompt_tokens": None, "completion_tokens": 2.0}), DONE)
    assert (text, finished.usage) == ("x", Usage(0, 2, 2))


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (["a\0b"], "a\ufffdb"),
        (["\ud83d", "\ude00"], "😀"),
        (["x\ud83d", "\ude00y"], "x😀y"),
        (["\ud83d", "y"], "\ufffdy"),
        (["\ud83d", "é"], "\ufffdé"),
        (["\ude00"], "\ufffd"),
        (["a\ud83d"], "a\ufffd"),
        (["\ud83d\ude00"], "😀"),
    ],
)
def test_reader_replaces_what_can_not_be_stored(contents: list[str], text: str) -> None:
    assert _read(*[_event(content) for content in contents], DONE)[0] == text


@given(st.lists(st.text(st.characters(), min_size=1), min_size=1))
def test_reader_of_any_text_returns_what_can_be_stored(contents: list[str]) -> None:
    text, _ = _read(*[_event(content) for content in contents], DONE)
    text.encode()
    assert "\0" not in text


def test_reader_of_bytes_that_are_not_utf8_replaces_them() -> None:
    assert _read(b'data: {"choices":[{"delta":{"content":"a\xf0\x9fb"}}]}\n\n', DONE)[0] == "a\ufffdb"


@pytest.mark.parametrize(
    ("stream", "cause"),
    [
        (b"", "empty_stream"),
        (b"\n\n", "empty_stream"),
        (DONE, "empty_stream"),
        (_event("", "stop") + DONE, "empty_stream"),
        (_event("half an answer"), "stream_cut"),
        (_event("x") + b'data: {"choices":[{"del', "stream_cut"),
        (b'data: {"choices":[{"del', "stream_cut"),
        (b"data: {not json}\n\n", "garbage"),
        (b'data: {"choices": "none"}\n\n', "garbage"),
        (b"\x00\xff\xfe rubbish\n", "garbage"),
        (b'{"choices": []}', "garbage"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "garbage"),
        (b"<!DOCTYPE html>\n<html><body>Bad gateway</body></html>", "html"),
        (b'data: {"error": {"message": "overloaded"}}\n\n', "error_in_stream"),
        (b'{"error": {"message": "overloaded"}}', "error_in_stream"),
        (b'[{\n "error": {\n  "code": 503}\n}]', "http_503"),
        (b'data: {"error": {"code": "429"}}\n\n', "http_429"),
    ],
)
def test_reader_of_what_is_no_answer_says_what_it_was(stream: bytes, cause: str) -> None:
    assert _cause(stream) == cause


def test_reader_of_an_error_after_text_fails() -> None:
    assert _cause(_event("x"), b'data: {"error": "boom"}\n\n') == "error_in_stream"


def test_reader_of_a_refusal_inside_the_stream_says_so() -> None:
    with pytest.raises(ModelRefused):
        _read(b'data: {"error": {"code": 401, "message": "bad key sk-123"}}\n\n')


def test_reader_ignores_rubbish_after_the_finish_reason() -> None:
    assert _read(_event("x", "stop"), b"data: rubbish\n\n", b'data: {"error": 1}\n\n')[0] == "x"


def test_reader_of_an_empty_answer_that_was_filtered_has_ended() -> None:
    assert _read(_event(None, "content_filter"), DONE)[1].finish_reason == "content_filter"


def test_reader_of_an_endless_line_fails() -> None:
    reader = AnswerReader("m")
    for _ in range(MAX_LINE_BYTES // 65536):
        reader.feed(b"x" * 65536)
    with pytest.raises(ModelTemporaryError) as caught:
        reader.feed(b"x")
    assert caught.value.cause == "line_too_long"


def test_reader_of_an_endless_answer_ends_it_with_length() -> None:
    reader = AnswerReader("m")
    text = reader.feed(_event("x" * (MAX_ANSWER_CHARACTERS - 1)))
    text += reader.feed(_event("yz"))
    assert reader.done
    assert len(text) == MAX_ANSWER_CHARACTERS
    assert reader.finish().finish_reason == "length"
