"""The client of providers against a real socket: what it sends, what it makes of good answers and of bad ones."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import structlog
from tests.support.provider import CUT, DONE, END, HANG, OPEN_STREAM, Step, answer, chunk, event, provider, response

from duologue.domain.errors import StartRefused
from duologue.llm.openai_compatible import ModelTimeouts, open_openai_compatible
from duologue.llm.port import (
    Chunk,
    Finished,
    ModelEvent,
    ModelRefused,
    ModelRequest,
    ModelTemporaryError,
    PromptMessage,
)

REQUEST = ModelRequest(messages=[PromptMessage("user", "hello")])
SHORT = 0.1
_DEADLINE = 10.0


async def _ask(base_url: str, request: ModelRequest = REQUEST, **options: Any) -> list[ModelEvent]:
    async with open_openai_compatible(base_url=base_url, model="configured", **options) as model:
        return [event async for event in model.stream(request)]


async def _cause_of(script: list[Step], **options: Any) -> str:
    async with provider(script) as it:
        with pytest.raises(ModelTemporaryError) as caught:
            await _ask(it.base_url, **options)
    return caught.value.cause


def _text(events: list[ModelEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Chunk))


async def test_answer_is_streamed_and_ends_with_finished() -> None:
    async with provider(answer("Good ", "morning")) as it:
        events = await _ask(it.base_url)
    assert _text(events) == "Good morning"
    assert events[-1] == Finished("stop", "real-model", None)


async def test_answer_arrives_piece_by_piece() -> None:
    more = asyncio.Event()
    script: list[Step] = [OPEN_STREAM, chunk(event("first")), more, chunk(event("second", "stop")), chunk(DONE) + END]
    async with provider(script) as it, open_openai_compatible(base_url=it.base_url, model="m") as model:
        events = model.stream(REQUEST)
        assert await anext(events) == Chunk("first")
        more.set()
        assert await anext(events) == Chunk("second")
        assert isinstance(await anext(events), Finished)


async def test_request_carries_key_prompt_and_options() -> None:
    request = ModelRequest(
        messages=[PromptMessage("system", "be kind"), PromptMessage("user", "hi")],
        model="named",
        temperature=0.5,
        max_tokens=9,
        user="u1",
    )
    async with provider(answer("x")) as it:
        await _ask(it.base_url, request, api_key="sk-test")
    sent = it.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == "Bearer sk-test"
    assert sent.body == {
        "model": "named",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 9,
        "user": "u1",
    }


async def test_request_without_a_key_has_no_authorization() -> None:
    async with provider(answer("x")) as it:
        await _ask(it.base_url)
    assert "authorization" not in it.requests[0].headers
    assert it.requests[0].body["model"] == "configured"


async def test_requests_after_one_another_share_a_connection() -> None:
    async with provider(answer("x")) as it, open_openai_compatible(base_url=it.base_url, model="m") as model:
        for _ in range(3):
            assert _text([event async for event in model.stream(REQUEST)]) == "x"
    assert [request.connection for request in it.requests] == [1, 1, 1]


async def test_kept_connection_that_the_provider_closes_is_replaced_at_once() -> None:
    async with (
        provider(answer("x"), [CUT], answer("y")) as it,
        open_openai_compatible(base_url=it.base_url, model="m") as model,
    ):
        for text in ("x", "y"):
            assert _text([event async for event in model.stream(REQUEST)]) == text
    assert [request.connection for request in it.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        pytest.param([response(200, b"\x00\xff rubbish")], "garbage", id="garbage"),
        pytest.param([b"\x00\xff no HTTP at all\r\n\r\n"], "garbage", id="no HTTP"),
        pytest.param([response(200, b"<html>hello</html>")], "html", id="HTML"),
        pytest.param([OPEN_STREAM, chunk(b'data: {"choices":[{"del'), END], "stream_cut", id="half a chunk"),
        pytest.param([OPEN_STREAM, chunk(event("x")), b"40\r\ndata: {", CUT], "stream_cut", id="half an HTTP chunk"),
        pytest.param([OPEN_STREAM, chunk(b"data: {]\n\n"), END], "garbage", id="garbage JSON"),
        pytest.param([OPEN_STREAM, END], "empty_stream", id="empty stream"),
        pytest.param([OPEN_STREAM, chunk(DONE), END], "empty_stream", id="only done"),
        pytest.param([response(200, b'{"error":{"message":"no"}}')], "error_in_stream", id="200 with an error"),
        pytest.param([OPEN_STREAM, chunk(b'data: {"error":{}}\n\n'), END], "stream_cut", id="empty error"),
        pytest.param([OPEN_STREAM, chunk(b'data: {"error":"x"}\n\n'), END], "error_in_stream", id="error event"),
        pytest.param([response(500, b"oops")], "http_500", id="500"),
        pytest.param([response(503)], "http_503", id="503"),
        pytest.param([OPEN_STREAM, chunk(event("x")), CUT], "stream_cut", id="cut"),
        pytest.param([OPEN_STREAM, chunk(event("x")), END], "stream_cut", id="end without a reason"),
        pytest.param([CUT], "connection_lost", id="cut before the answer"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Le", CUT], "connection_lost", id="cut in the head"),
    ],
)
async def test_bad_answer_is_a_temporary_error_with_its_cause(script: list[Step], cause: str) -> None:
    assert await _cause_of(script) == cause


@pytest.mark.parametrize(
    ("script", "timeouts", "cause"),
    [
        pytest.param([HANG], ModelTimeouts(first_token=SHORT), "timeout_first_token", id="no head"),
        pytest.param([OPEN_STREAM, HANG], ModelTimeouts(first_token=SHORT), "timeout_first_token", id="no token"),
        pytest.param(
            [OPEN_STREAM, chunk(event("")), HANG], ModelTimeouts(first_token=SHORT), "timeout_first_token", id="no text"
        ),
        pytest.param(
            [OPEN_STREAM, chunk(event("x")), HANG], ModelTimeouts(silence=SHORT), "timeout_silence", id="silence"
        ),
        pytest.param([OPEN_STREAM, chunk(event("x")), HANG], ModelTimeouts(whole=SHORT), "timeout_whole", id="whole"),
        pytest.param(
            [response(500, b"half").replace(b": 4", b": 9"), HANG], ModelTimeouts(), "http_500", id="500 body"
        ),
    ],
)
async def test_slow_answer_is_a_temporary_error_with_its_cause(
    script: list[Step], timeouts: ModelTimeouts, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duologue.llm.openai_compatible._ERROR_BODY_SECONDS", SHORT)
    assert await _cause_of(script, timeouts=timeouts) == cause


async def test_provider_that_nobody_runs_is_a_temporary_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ModelTemporaryError) as caught:
        await _ask(f"http://127.0.0.1:{port}/v1")
    assert caught.value.cause == "connection_failed"


async def test_provider_that_accepts_no_connection_is_a_connect_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # the kernel's queue of connections is full: it answers no more
        for it in waiting:
            it.setblocking(False)
            it.connect_ex(address)
        with pytest.raises(ModelTemporaryError) as caught:
            await _ask(f"http://127.0.0.1:{address[1]}/v1", timeouts=ModelTimeouts(connect=SHORT, first_token=5))
        for it in waiting:
            it.close()
    assert caught.value.cause == "timeout_connect"


async def test_too_many_requests_tells_how_long_to_wait() -> None:
    async with provider([response(429, b"{}", "Retry-After: 7")]) as it:
        with pytest.raises(ModelTemporaryError) as caught:
            await _ask(it.base_url)
    assert (caught.value.cause, caught.value.retry_after_seconds) == ("http_429", 7.0)


async def test_refused_key_is_told_by_stream_and_check_until_a_request_succeeds() -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-secret"}}'
    async with (
        provider([response(401, body)], answer("x")) as it,
        open_openai_compatible(base_url=it.base_url, model="m", api_key="sk-secret") as model,
    ):
        await model.check()
        with structlog.testing.capture_logs() as logs, pytest.raises(ModelRefused, match="refused the key") as caught:
            await anext(model.stream(REQUEST))
        assert "sk-secret" not in f"{caught.value}{logs}"
        with pytest.raises(ModelRefused):
            await model.check()
        assert _text([event async for event in model.stream(REQUEST)]) == "x"
        await model.check()


@pytest.mark.parametrize("status", [302, 400, 404, 422])
async def test_refused_request_does_not_spoil_the_check(status: int) -> None:
    async with (
        provider([response(status, b"{}", "Location: /elsewhere")]) as it,
        open_openai_compatible(base_url=it.base_url, model="m") as model,
    ):
        with pytest.raises(ModelRefused) as caught:
            await anext(model.stream(REQUEST))
        await model.check()
    assert caught.value.cause == f"http_{status}"
    assert len(it.requests) == 1


async def test_answer_that_is_whole_but_never_closed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.llm.openai_compatible._TAIL_SECONDS", SHORT)
    async with provider([OPEN_STREAM, chunk(event("x", "stop")), HANG]) as it:
        events = await _ask(it.base_url)
    assert (_text(events), events[-1]) == ("x", Finished("stop", "real-model"))


async def test_answer_that_is_whole_and_then_cut_ends() -> None:
    async with provider([OPEN_STREAM, chunk(event("x", "length")), CUT]) as it:
        assert (await _ask(it.base_url))[-1] == Finished("length", "real-model")


async def test_silence_while_the_reader_is_busy_is_not_counted() -> None:
    more = asyncio.Event()
    script: list[Step] = [OPEN_STREAM, chunk(event("x")), more, chunk(event("y", "stop")) + chunk(DONE) + END]
    timeouts = ModelTimeouts(silence=SHORT)
    async with (
        provider(script) as it,
        open_openai_compatible(base_url=it.base_url, model="m", timeouts=timeouts) as model,
    ):
        events = model.stream(REQUEST)
        assert await anext(events) == Chunk("x")
        await asyncio.sleep(2 * SHORT)  # the subject itself: a reader slower than the model may be
        more.set()
        assert await anext(events) == Chunk("y")
        assert isinstance(await anext(events), Finished)


async def test_closing_the_answer_ends_the_providers_request() -> None:
    async with (
        provider([OPEN_STREAM, chunk(event("x")), HANG]) as it,
        open_openai_compatible(base_url=it.base_url, model="m") as model,
    ):
        async with aclosing(model.stream(REQUEST)) as events:
            await anext(events)
        async with asyncio.timeout(1):
            await it.requests[0].gone.wait()


@pytest.mark.parametrize("script", [[HANG], [OPEN_STREAM, HANG]], ids=["before the head", "after the head"])
async def test_cancelling_the_reader_ends_the_providers_request(script: list[Step]) -> None:
    async with provider(script) as it, open_openai_compatible(base_url=it.base_url, model="m") as model:
        reader = asyncio.ensure_future(anext(model.stream(REQUEST)))
        async with asyncio.timeout(_DEADLINE):
            await it.asked(1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        async with asyncio.timeout(1):
            await it.requests[0].gone.wait()


@pytest.mark.parametrize("url", ["ftp://x/v1", "localhost:8000/v1", "http://", "nonsense"])
async def test_address_that_is_none_refuses_the_start(url: str) -> None:
    with pytest.raises(StartRefused, match="OPENAI_BASE_URL"):
        async with open_openai_compatible(base_url=url, model="m"):
            pass


@pytest.mark.parametrize("key", ["sk test", "sk-test\n", "clé"])
async def test_key_that_is_none_refuses_the_start_without_showing_it(key: str) -> None:
    with pytest.raises(StartRefused, match="OPENAI_API_KEY") as caught:
        async with open_openai_compatible(base_url="", model="m", api_key=key):
            pass
    assert key not in str(caught.value)


async def test_timeouts_of_one_try_are_the_documented_ones() -> None:
    assert ModelTimeouts() == replace(ModelTimeouts(), connect=5, first_token=30, silence=20, whole=300)
