"""A model that answers badly, under a whole system: another try, or a failure in words; the conversation goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from tests.support.provider import (
    CUT,
    DONE,
    END,
    HANG,
    OPEN_STREAM,
    Request,
    Step,
    answer,
    chunk,
    event,
    provider,
    response,
)
from tests.support.socket_client import Client, connected
from tests.support.users import guest

from duologue.bench.system import System

BAD: dict[str, list[Step]] = {
    "garbage": [response(200, b"\x00\xff rubbish")],
    "no HTTP": [b"\x00\xff no HTTP at all\r\n\r\n"],
    "HTML": [response(200, b"<html><body>Bad gateway</body></html>", "Content-Type: text/html")],
    "half a chunk": [OPEN_STREAM, chunk(event("half a ")), chunk(b'data: {"choices":[{"del'), END],
    "half an HTTP chunk": [OPEN_STREAM, chunk(event("half a ")), b"40\r\ndata: {", CUT],
    "garbage in the stream": [OPEN_STREAM, chunk(b"data: {]\n\n"), END],
    "empty stream": [OPEN_STREAM, END],
    "only done": [OPEN_STREAM, chunk(DONE), END],
    "200 with an error": [response(200, b'{"error":{"message":"inside details"}}')],
    "error in the stream": [OPEN_STREAM, chunk(event("so ")), chunk(b'data: {"error":{"message":"inside"}}\n\n'), END],
    "500": [response(500, b"inside details")],
    "429": [response(429, b"{}", "Retry-After: 0")],
    "cut before the answer": [CUT],
    "silence before the first token": [OPEN_STREAM, HANG],
    "silence after it": [OPEN_STREAM, chunk(event("half a ")), HANG],
}
BEGUN = ("half a chunk", "half an HTTP chunk", "error in the stream", "silence after it")
"""Those that may have been shown in part before they fail."""
SECRETS = ("inside", "html", "rubbish", "127.0.0.1", "Traceback")


class _Moods:
    """Chooses what the provider plays: `<kind>: once` is answered badly once, `<kind>: twice` always, others well."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def choose(self, request: Request) -> Sequence[Step]:
        said = str(request.body["messages"][-1]["content"])
        kind, _, times = said.partition(": ")
        self.asked[said] += 1
        bad = times == "twice" or (times == "once" and self.asked[said] == 1)
        return BAD[kind] if bad else answer("a good ", "answer")


@pytest.fixture
def moods() -> _Moods:
    """What the provider plays."""
    return _Moods()


@pytest_asyncio.fixture(loop_scope="session")
async def settings(moods: _Moods) -> AsyncIterator[dict[str, str]]:
    """A system with a provider of these moods."""
    async with provider(choose=moods.choose) as model:
        yield {
            "OPENAI_BASE_URL": model.base_url,
            "MODEL_MAX_TRIES": "2",
            "MODEL_FIRST_TOKEN_TIMEOUT_SECONDS": "1",
            "MODEL_SILENCE_TIMEOUT_SECONDS": "0.3",
            "USER_RATE_LIMIT_MAX_REQUESTS": "10000",
        }


async def _outcome(client: Client, content: str) -> list[dict[str, Any]]:
    """Say something; return all frames up to its outcome."""
    await client.send(type="message", id=content, content=content)
    seen = [await client.until("echo")]
    while seen[-1]["type"] not in ("response", "error"):
        seen.append(await client.receive())
    return seen


def _text(seen: list[dict[str, Any]]) -> str:
    """Return what a client shows that follows the protocol's rules for `delta` and `reset`."""
    attempt, text = 0, ""
    for frame in seen:
        if frame.get("attempt", 0) > attempt:
            attempt, text = frame["attempt"], ""
        if frame["type"] == "delta" and frame["attempt"] == attempt:
            text += frame["content"]
    return text


async def test_bad_answers_of_a_model_are_tried_again_or_told_and_the_conversation_goes_on(
    system: System, moods: _Moods
) -> None:
    async with connected(system.ws_url, await guest(system.url)) as client:
        for kind in BAD:
            recovered = await _outcome(client, f"{kind}: once")
            assert recovered[-1]["type"] == "response", kind
            assert recovered[-1]["content"] == "a good answer", kind
            assert "a good answer".startswith(_text(recovered)), kind
            attempt = recovered[-1]["attempt"]
            assert attempt == 1 or kind in BEGUN, kind
            assert attempt == 2 or kind != "silence after it", kind
            resets = [(frame["attempt"], frame["reason"]) for frame in recovered if frame["type"] == "reset"]
            assert resets == ([(2, "retry")] if attempt == 2 else []), kind

            error = (await _outcome(client, f"{kind}: twice"))[-1]
            assert (error["code"], error["temporary"]) == ("generation_failed", True), kind
            assert error["message_id"]
            assert error["event_id"]
            assert not any(secret in error["message"] for secret in SECRETS), error["message"]

            assert (await _outcome(client, f"{kind}: after"))[-1]["content"] == "a good answer", kind
            assert moods.asked[f"{kind}: once"] == 2, kind
            assert moods.asked[f"{kind}: twice"] >= 2, kind
