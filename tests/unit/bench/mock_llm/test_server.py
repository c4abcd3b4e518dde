"""The mock provider, asked by the client that the product uses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from duologue.bench.mock_llm import STAMP_PATTERN, MockConfig
from duologue.bench.mock_llm.server import MockServer, serve
from duologue.domain.clock import wall_clock
from duologue.domain.errors import StartRefused
from duologue.llm.openai_compatible import ModelTimeouts, OpenAICompatible, open_openai_compatible
from duologue.llm.port import Chunk, Finished, ModelRequest, ModelTemporaryError, PromptMessage

_DEADLINE = 10.0
_ASKED = {"model": "gpt-9", "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def _mock(**config: Any) -> AsyncIterator[tuple[MockServer, OpenAICompatible]]:
    server = await serve(MockConfig(**config), seed=1)
    try:
        timeouts = ModelTimeouts(silence=0.1)
        async with open_openai_compatible(base_url=server.base_url, model="m", timeouts=timeouts) as model:
            yield server, model
    finally:
        await server.aclose()


async def _ask(model: OpenAICompatible, content: str = "hello") -> tuple[list[str], Finished]:
    request = ModelRequest(messages=[PromptMessage("user", content)])
    events = [event async for event in model.stream(request)]
    finished = events.pop()
    assert isinstance(finished, Finished)
    return [event.text for event in events if isinstance(event, Chunk)], finished


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE):
        while not condition():  # noqa: ASYNC110  # the mock has no event for it
            await asyncio.sleep(0)


async def _call(server: MockServer, method: str, path: str, **options: Any) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, **options) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("timing", [{}, {"ttft_ms": 5}, {"tps": 500}, {"ttft_ms": 5, "tps": 500}])
async def test_reply_has_its_tokens_whatever_the_timing(timing: dict[str, Any]) -> None:
    async with _mock(tokens=12, **timing) as (server, model):
        texts, finished = await _ask(model)
        assert "".join(texts) == "word " * 12
        assert finished.usage is not None
        assert finished.usage.completion_tokens == 12
        assert (server.stats.requests, server.stats.completed, server.stats.in_flight) == (1, 1, 0)


async def test_replies_spread_around_their_length() -> None:
    async with _mock(tokens=10, tokens_spread=3) as (_, model):
        lengths = {(await _ask(model))[1].usage.completion_tokens for _ in range(60)}  # type: ignore[union-attr]
    assert lengths == set(range(7, 14))


async def test_stamped_reply_tells_when_each_piece_left() -> None:
    async with _mock(tokens=5, tps=500, stamp=True) as (_, model):
        texts, _ = await _ask(model)
    stamps = [float(stamp) for stamp in STAMP_PATTERN.findall("".join(texts))]
    assert len(stamps) == 5
    assert stamps == sorted(stamps)
    assert abs(stamps[0] - wall_clock() / 1000) < _DEADLINE


async def test_echoing_reply_begins_with_what_was_said() -> None:
    async with _mock(tokens=2, echo=True) as (_, model):
        assert "".join((await _ask(model, 'say "ü"'))[0]).startswith('say "ü" ')


async def test_recording_mock_counts_each_content() -> None:
    async with _mock(record=True) as (server, model):
        for content in ("a", "b", "a"):
            await _ask(model, content)
        status, stats = await _call(server, "GET", "/stats")
    assert status == 200
    assert stats["contents"] == {"a": 2, "b": 1}
    assert (stats["requests"], stats["pieces"]) == (3, 24)
    assert stats["cpu_seconds"] > 0


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("rate_429", "http_429"),
        ("rate_500", "http_500"),
        ("rate_cut", "stream_cut"),
        ("rate_silence", "timeout_silence"),
    ],
)
@pytest.mark.parametrize("tokens", [1, 8])
async def test_faulty_mock_fails_as_it_is_told(fault: str, cause: str, tokens: int) -> None:
    async with _mock(tokens=tokens, retry_after_seconds=3, **{fault: 1.0}) as (_, model):
        with pytest.raises(ModelTemporaryError) as caught:
            await _ask(model)
    assert caught.value.cause == cause
    assert caught.value.retry_after_seconds == (3 if fault in {"rate_429", "rate_500"} else None)


async def test_reply_whose_client_leaves_is_abandoned() -> None:
    async with _mock(tokens=1000, tps=100) as (server, model):
        async with aclosing(model.stream(ModelRequest(messages=[]))) as events:
            await anext(events)
        await _until(lambda: server.stats.in_flight == 0)
        assert (server.stats.abandoned, server.stats.completed) == (1, 0)


async def test_settings_change_while_it_runs() -> None:
    async with _mock() as (server, model):
        assert (await _call(server, "POST", "/config", json={"rate_500": 1}))[0] == 200
        with pytest.raises(ModelTemporaryError):
            await _ask(model)
        assert (await _call(server, "POST", "/config", json={"rate_500": 0, "tokens": 3}))[0] == 200
        assert "".join((await _ask(model))[0]) == "word " * 3
        assert (await _call(server, "POST", "/config", json={"tokenz": 1}))[0] == 400
        await _call(server, "POST", "/reset")
        assert server.stats.requests == 0


async def test_unknown_path_is_not_found_and_health_is_well() -> None:
    async with _mock() as (server, _):
        assert (await _call(server, "GET", "/health"))[0] == 200
        assert (await _call(server, "GET", "/nothing"))[0] == 404


async def test_request_in_single_bytes_and_two_at_once_are_answered() -> None:
    async with _mock(tokens=1) as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        request = b'POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 29\r\n\r\n{"messages":[],"stream":true}'
        for index in range(len(request)):
            writer.write(request[index : index + 1])
            await writer.drain()
        writer.write(request + request)
        async with asyncio.timeout(_DEADLINE):
            for _ in range(3):
                assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


@pytest.mark.parametrize("timing", [{}, {"ttft_ms": 5}, {"tps": 500}, {"ttft_ms": 5, "tps": 500}])
async def test_whole_answer_has_its_tokens_and_usage_whatever_the_timing(timing: dict[str, Any]) -> None:
    async with _mock(tokens=4, echo=True, **timing) as (server, _):
        status, answer = await _call(server, "POST", "/v1/chat/completions", json=_ASKED)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "hello " + "word " * 4
        assert (answer["model"], answer["usage"]["completion_tokens"]) == ("gpt-9", 4)
        assert (server.stats.completed, server.stats.pieces, server.stats.in_flight) == (1, 4, 0)


async def test_whole_answer_comes_no_sooner_than_a_streams_last_piece() -> None:
    async with _mock(tokens=5, ttft_ms=20, tps=100) as (server, _):
        began = asyncio.get_running_loop().time()
        await _call(server, "POST", "/v1/chat/completions", json=_ASKED)
        assert asyncio.get_running_loop().time() - began >= 0.06


async def test_whole_answer_that_is_cut_ends_before_its_end() -> None:
    async with _mock(rate_cut=1.0) as (server, _):
        with pytest.raises(aiohttp.ClientError):
            await _call(server, "POST", "/v1/chat/completions", json=_ASKED)
        assert (server.stats.cut, server.stats.in_flight) == (1, 0)


async def test_whole_answer_that_goes_silent_waits_for_its_client() -> None:
    async with _mock(rate_silence=1.0) as (server, _):
        with pytest.raises(TimeoutError):
            await _call(server, "POST", "/v1/chat/completions", json=_ASKED, timeout=aiohttp.ClientTimeout(0.2))
        assert server.stats.silent == 1
        await _until(lambda: server.stats.in_flight == 0)


async def test_models_are_listed() -> None:
    async with _mock() as (server, _):
        status, models = await _call(server, "GET", "/v1/models")
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["mock"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", b"hello", 400),
        ("POST", "/v1/chat/completions", b'{"model":"m"}', 400),
        ("POST", "/chat/completions", b'{"messages":[]}', 404),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/stats", b"", 405),
        ("POST", "/config", b"[]", 400),
    ],
)
async def test_request_that_is_wrong_is_told_so_in_openais_form(
    method: str, path: str, body: bytes, status: int
) -> None:
    async with _mock() as (server, _):
        answered, error = await _call(server, method, path, data=body)
        assert answered == status
        assert error["error"]["type"] == "invalid_request_error"
        assert error["error"]["message"]
        assert (await _call(server, "GET", "/health"))[0] == 200


async def test_path_with_a_query_is_the_path() -> None:
    async with _mock() as (server, _):
        assert (await _call(server, "GET", "/health?now=1"))[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"GET /health\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 4194304\r\n\r\n", b"413"),
    ],
)
async def test_what_is_not_understood_of_http_is_refused_and_closed(request_bytes: bytes, status: bytes) -> None:
    async with _mock() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes)
        async with asyncio.timeout(_DEADLINE):
            assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
        writer.close()


async def test_requests_by_the_thousand_at_once_are_all_answered() -> None:
    async with _mock() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /health HTTP/1.1\r\n\r\n" * 5000)
        async with asyncio.timeout(_DEADLINE):
            for _ in range(5000):
                await reader.readuntil(b'{"status":"ok"}')
        writer.close()


async def test_stats_tell_what_the_mock_costs_itself() -> None:
    async with _mock(tokens=4) as (server, model):
        await _ask(model)
        await _ask(model)
        stats = (await _call(server, "GET", "/stats"))[1]
        assert stats["cpu_us_per_request"] == pytest.approx(stats["cpu_seconds"] * 1e6 / 2, rel=1e-3)
        assert stats["cpu_us_per_piece"] == pytest.approx(stats["cpu_seconds"] * 1e6 / 8, rel=1e-3)
        assert stats["cpu_share"] == pytest.approx(stats["cpu_seconds"] / stats["seconds"], rel=1e-2)
        resetting = time.perf_counter()
        await _call(server, "POST", "/reset")
        after = (await _call(server, "GET", "/stats"))[1]
    assert (after["requests"], after["cpu_us_per_request"]) == (0, None)
    assert after["seconds"] <= time.perf_counter() - resetting


async def test_stopped_mock_has_closed_its_connections() -> None:
    server = await serve(MockConfig(tokens=100, tps=1))
    async with aiohttp.ClientSession() as session:
        url = f"{server.base_url}/chat/completions"
        async with session.post(url, json={**_ASKED, "stream": True}) as response:
            await response.content.readany()
            await server.aclose()
            with pytest.raises(aiohttp.ClientError):
                await response.read()
    assert server.stats.abandoned == 1


async def test_client_that_floods_while_it_is_answered_is_dropped() -> None:
    async with _mock(tokens=2, tps=0.1) as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 29\r\n\r\n{"messages":[],"stream":true}')
        async with asyncio.timeout(_DEADLINE):
            await reader.readuntil(b"word")
            writer.write(b"x" * 5_000_000)
        await _until(lambda: server.stats.in_flight == 0)
        writer.close()
        assert server.stats.abandoned == 1


async def test_mock_on_an_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(StartRefused, match=r"cannot listen on 192\.0\.2\.1:0: .*--host"):
        await serve(MockConfig(), host="192.0.2.1")
