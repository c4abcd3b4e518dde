"""Bad input to a whole system: each gets its code, the socket lives where it should, other users notice nothing."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import jwt
import pytest
from tests.support.model_server import ModelServer
from tests.support.socket_client import Client, connected
from tests.support.users import guest, unique
from websockets.asyncio.client import connect

from duologue.bench.process import DuologueProcess
from duologue.bench.system import System


@pytest.fixture
def system_settings() -> dict[str, str]:
    """The limits as they are by default."""
    return {}


@asynccontextmanager
async def _bystander(system: System, model_server: ModelServer) -> AsyncIterator[None]:
    """Another user, who is being answered all the while and gets the whole answer in order."""
    await model_server.configure(tokens=60, tps=60)
    async with connected(system.ws_url, await guest(system.url)) as client:
        await client.send(type="message", content="Hello")
        await client.until("delta")
        yield
        response = await client.until("response")
        assert response["attempt"] == 1
        await client.ping()
        await model_server.configure(tokens=2, tps=0.0)  # what the other user left queued ends soon


BAD_FRAMES: list[tuple[str | bytes, str]] = [
    ("not json", "invalid_json"),
    ("[1, 2, 3]", "invalid_frame"),
    (b"\x00\xff\x00", "invalid_frame"),
    ('{"type":"message","content":"a","deep":' + "[" * 50 + "]" * 50 + "}", "invalid_frame"),
    ("[" * 60_000, "invalid_frame"),
    ('{"type":"message","content":"a\\u0000b"}', "invalid_frame"),
    ('{"type":"message","content":"a\\ud800b"}', "invalid_frame"),
    (json.dumps({"type": "message", "content": "a", "metadata": {"a": "x" * 2000}}), "invalid_frame"),
    (json.dumps({"type": "message", "content": "x" * 8001}), "content_too_long"),
    (json.dumps({"type": "message", "content": "  "}), "content_empty"),
    (json.dumps({"type": "dance"}), "unknown_type"),
    (json.dumps({"type": "message", "content": "a", "userid": "somebody"}), "userid_mismatch"),
    (json.dumps({"type": "message", "content": "a", "conversation_id": "made-up"}), "conversation_not_found"),
    (json.dumps({"type": "message", "content": "a", "character_id": "nobody"}), "character_not_found"),
    (json.dumps({"type": "message", "content": "a", "model": "unknown"}), "model_not_allowed"),
]


async def test_bad_frames_are_named_and_the_socket_lives(system: System, model_server: ModelServer) -> None:
    async with (
        _bystander(system, model_server),
        connected(system.ws_url, await guest(system.url)) as client,
    ):
        for text, code in BAD_FRAMES:
            await client.send_text(text)
            error = await client.receive()
            assert (error["type"], error["code"], error["userid"]) == ("error", code, client.connection["userid"]), (
                text[:60]
            )
            assert error["temporary"] is False
        await client.send(type="message", id="good", content="Hello")
        assert (await client.until("ack"))["id"] == "good"
        assert (await client.until("response"))["content"]


ODD_TEXTS = [
    "\x01\x1b[31m\x7f\x85",
    "\u202eright to left\u2028\u2029\ufeff\u200b!",
    "\U0001f600" * 8000,
    "\ufffe\uffff\U0010ffff",
    '","event_id":"x:1","content":"',
    "</script><img src=x onerror=alert(1)>\\u0000",
    "'; DROP TABLE messages; --",
    "%s %d {0} ${HOME} \r\n\r\nGET / HTTP/1.1",
]


async def test_odd_texts_come_back_as_they_were(system: System, model_server: ModelServer) -> None:
    await model_server.configure(tokens=1, echo=True)
    async with connected(system.ws_url, await guest(system.url), conversation_id="new") as client:
        for text in ODD_TEXTS:
            await client.send_text(json.dumps({"type": "message", "content": text}, ensure_ascii=False))
            assert (await client.until("echo"))["content"] == text
            assert text in (await client.until("response"))["content"]


async def test_frame_of_a_megabyte_closes_with_1009(system: System, model_server: ModelServer) -> None:
    token = await guest(system.url)
    async with _bystander(system, model_server):
        for size in (64 * 1024 + 1, 1024 * 1024):
            async with connected(system.ws_url, token) as client:
                await client.send_text("x" * size)
                assert await client.closed() == 1009


async def _end(url: str) -> tuple[str, int]:
    async with connect(url) as socket:
        client = Client(socket)
        error = await client.receive()
        return error["code"], await client.closed()


async def test_bad_tokens_are_told_why_before_the_close(system: System) -> None:
    secret = system.jwt_secret
    ann = unique("ann")
    token = await guest(system.url, ann)
    expired = jwt.encode({"sub": ann, "exp": 1_700_000_000}, secret, algorithm="HS256")
    forged = jwt.encode({"sub": ann, "exp": 4_000_000_000}, "x" * 40, algorithm="HS256")
    ends = {
        "/ws": ("invalid_token", 4401),
        "/ws?token=nonsense": ("invalid_token", 4401),
        f"/ws?token={expired}&userid={ann}": ("invalid_token", 4401),
        f"/ws?token={forged}": ("invalid_token", 4401),
        f"/ws?token={token}&userid=bob": ("userid_mismatch", 4403),
        f"/ws?token={token}&conversation_id=made-up": ("conversation_not_found", 1008),
        f"/ws/nobody?token={token}": ("character_not_found", 1008),
    }
    for path, end in ends.items():
        assert await _end(system.ws_url + path) == end, path


async def test_eleventh_socket_of_one_user_closes_the_oldest(system: System, model_server: ModelServer) -> None:
    token = await guest(system.url)
    async with connected(system.ws_url, token) as client:
        server = system.server(client.connection["server_id"])  # each counts for itself
    async with _bystander(system, model_server), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.ws_url, token)) for _ in range(11)]
        assert (await clients[0].receive())["code"] == "too_many_connections"
        assert await clients[0].closed() == 4429
        for client in clients[1:]:
            await client.ping()


async def test_hundred_messages_a_second_are_limited_for_that_user_alone(
    system: System, model_server: ModelServer
) -> None:
    async with (
        _bystander(system, model_server),
        connected(system.ws_url, await guest(system.url)) as client,
    ):
        for number in range(100):
            await client.send(type="message", id=f"{number}", content="Hello")
        answers: list[dict[str, Any]] = []
        while len(answers) < 100:
            frame = await client.receive()
            if frame["type"] in ("ack", "error"):
                answers.append(frame)
        refused = [frame for frame in answers if frame["type"] == "error"]
        assert len(refused) >= 35
        assert {frame["code"] for frame in refused} == {"rate_limited"}
        assert all(frame["temporary"] and frame["retry_after"] > 0 and frame["id"] for frame in refused)
        await client.ping()


def _memory_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123  # a file of the kernel
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


async def test_client_that_never_reads_is_closed_with_1013_and_memory_stays_bounded(
    system: System, model_server: ModelServer
) -> None:
    token = await guest(system.url)
    async with (
        _bystander(system, model_server),
        connected(system.ws_url, token) as slow,
        connected(system.ws_url, token) as talker,
    ):
        server = system.server(slow.connection["server_id"])
        before = _memory_kb(server.pid)
        slow.socket.transport.pause_reading()
        text = json.dumps({"type": "ping", "id": "x" * 64})  # whose answers nobody reads
        async with aiohttp.ClientSession() as session:
            closed = await _slow_readers(session, server)
            while await _slow_readers(session, server) == closed:
                for _ in range(1000):
                    await slow.send_text(text)
        slow.socket.transport.resume_reading()
        assert await slow.closed() == 1013
        assert _memory_kb(server.pid) - before < 64 * 1024
        await talker.ping()


async def _slow_readers(session: aiohttp.ClientSession, server: DuologueProcess) -> float:
    async with session.get(f"{server.url}/metrics") as response:
        return float(re.findall(r"^duologue_slow_readers_total (\S+)", await response.text(), re.MULTILINE)[0])
