"""Requests are read as JSON says, also where they are not parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from duologue.bench.mock_llm import request
from duologue.bench.mock_llm.request import ChatRequest, last_said, read_chat
from duologue.domain.errors import Rejected
from duologue.llm.openai_compatible import open_openai_compatible
from duologue.llm.port import ModelRequest, PromptMessage

_STREAMED = '],"stream":true,"stream_options":{"include_usage":true}'


def _compact(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def _as_json_says(body: bytes) -> ChatRequest:
    """Read a request with the library of Python."""
    asked = json.loads(body)
    options = asked.get("stream_options") or {}
    model = json.dumps(asked.get("model", "mock"), ensure_ascii=False).encode()
    return ChatRequest(model, streams=bool(asked.get("stream")), has_usage=bool(options.get("include_usage")))


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.7}, {"user": "u-1", "max_tokens": 500}, {"temperature": 1e-9, "user": ""}]
)
async def test_what_duologue_sends_is_read_without_parsing(fields: dict[str, Any]) -> None:
    said = [PromptMessage("system", "be brief"), PromptMessage("user", 'say "ü\\"\n')]
    async with open_openai_compatible(base_url="http://127.0.0.1:1/v1", model="gpt-9") as model:
        body = model._body(ModelRequest(messages=said, **fields))
    assert request._read_usual(body) == ChatRequest(b'"gpt-9"', streams=True, has_usage=True) == _as_json_says(body)


@pytest.mark.parametrize(
    "body",
    [
        _compact({"model": "m", "messages": []}),
        _compact({"model": "m", "messages": [], "stream": True}),
        _compact({"model": "m", "messages": [], "stream": False, "stream_options": {"include_usage": True}}),
        _compact({"model": "m", "messages": [], "stream": True, "stream_options": {"include_usage": False}}),
        _compact({"model": "m", "messages": [], "stream": True, "stream_options": None}),
        _compact({"model": "m", "messages": [], "stream": None}),
        _compact({"messages": [], "stream": True}),
        _compact({"stream": True, "stream_options": {"include_usage": True}, "messages": [], "model": "m"}),
        _compact({"model": 'a"b\\', "messages": [], "stream": True, "stream_options": {"include_usage": True}}),
        _compact({"model": "ü", "messages": [], "stream": True, "stream_options": {"include_usage": True}}),
        # a text that reads as the end of a streaming request
        _compact({"model": "m", "messages": [{"role": "user", "content": "[" + _STREAMED + "}"}]}),
        _compact({"model": "m", "messages": [{"role": "user", "content": "\\" + _STREAMED + '}\\"}'}]}),
        _compact({"model": "m", "messages": [], "user": _STREAMED + "}"}),
        # what reads as its end, deeper within
        b'{"model":"m","messages":[{"parts":[' + _STREAMED.encode() + b"}]}",
        b'{"model":"m","messages":[{"parts":[' + _STREAMED.encode() + b',"n":1}],"stream":false}',
        b'{"model":"m","messages":[],"metadata":{"parts":[' + _STREAMED.encode() + b"}}",
        b'{"model":"m","messages":[' + _STREAMED.encode() + b',"tools":[{"stream":false}]}',
        b' {"model": "m", "messages": [], "stream": true}\n',
    ],
)
def test_request_of_any_form_is_read_as_json_says(body: bytes) -> None:
    assert read_chat(body) == _as_json_says(body)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"hello", "invalid_json"),
        (b'{"messages":[]', "invalid_json"),
        (b'{"messages":[]} x', "invalid_json"),
        (b'{"model":"m","messages":[]' + _STREAMED[1:].encode(), "invalid_json"),
        (b'\xff{"messages":[]}', "invalid_json"),
        (b"{" + b'"a":[' * 100_000, "invalid_json"),
        (b"{}", "invalid_value"),
        (b"[]", "invalid_value"),
        (b'{"model":"m","stream":true}', "invalid_value"),
        (b'{"messages":"hello"}', "invalid_value"),
        (b'{"messages":["hello"]}', "invalid_value"),
        (b'{"messages":[],"model":3}', "invalid_value"),
        (b'{"messages":[],"stream":"yes"}', "invalid_value"),
        (_compact({"messages": [], "model": "m" * 257}), "invalid_value"),
    ],
)
def test_body_that_is_no_request_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_chat(body)
    assert caught.value.code == code


def test_last_said_is_the_latest_text_of_the_user() -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    body = _compact({"messages": [{"role": role, "content": content} for role, content in said]})
    assert last_said(body) == "c"


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "x"}], [{"role": "user", "content": None}]])
def test_last_said_where_the_user_said_nothing_is_empty(messages: list[Any]) -> None:
    assert not last_said(_compact({"messages": messages}))
