"""The mock provider, asked by the client that the product uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from duologue.bench.mock_llm import STAMP_PATTERN, MockConfig, MockServer, main, serve
from duologue.domain.clock import wall_clock
from duologue.llm.openai_compatible import ModelTimeouts, OpenAICompatible, open_openai_compatible
from duologue.llm.port import Chunk, Finished, ModelRequest, ModelTemporaryError, PromptMessage

_DEADLINE = 10.0


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


async def test_mixed_faults_come_at_their_rates() -> None:
    server = await serve(MockConfig(rate_429=0.2, rate_cut=0.1), seed=1)
    faults = [server.draw_fault() for _ in range(2000)]
    await server.aclose()
    assert 300 < faults.count("429") < 500
    assert 130 < faults.count("cut") < 270
    assert set(faults) == {"429", "cut", ""}


async def test_reply_whose_client_leaves_is_abandoned() -> None:
    async with _mock(tokens=1000, tps=100) as (server, model):
        async with aclosing(model.stream(ModelRequest(messages=[]))) as events:
            await anext(events)
        async with asyncio.timeout(_DEADLINE):
            while server.stats.in_flight:  # noqa: ASYNC110  # the mock has no event for it
                await asyncio.sleep(0)
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
        request = b'POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 15\r\n\r\n{"messages":[]}'
        for index in range(len(request)):
            writer.write(request[index : index + 1])
            await writer.drain()
        writer.write(request + request)
        async with asyncio.timeout(_DEADLINE):
            for _ in range(3):
                assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


def test_command_line_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--tokenz", "3"])
    assert "--tokenz" in capsys.readouterr().err
