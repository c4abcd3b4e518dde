"""Whose word on a client's address is taken: at a real server, over HTTP and over sockets."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Scope
from starlette.websockets import WebSocket
from tests.support.api import open_api
from websockets.asyncio.client import connect

from duologue.api.client_address import client_address
from duologue.config import Settings
from duologue.listener import bind
from duologue.runner import http_server
from duologue.websocket_server.transport import SocketProtocol

_GARBAGE = [
    b"",
    b", ,",
    b"unknown",
    b"\xff\xfe",
    b"x" * 10_000,
    b"9" * 10_000,
    b"[::1",
    b"[2001:db8::1]x",
    b"1.2.3.4:" + b"9" * 5000,
    b"1.2.3.4.5",
    b"::ffff:300.1.1.1",
    b"*",
    b"203.0.113.7\tor so",
]


def _seen(scope: Scope) -> dict[str, str]:
    return {"address": client_address(scope), "scheme": scope["scheme"]}


async def _tell(request: Request) -> JSONResponse:
    return JSONResponse(_seen(request.scope))


async def _tell_socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json(_seen(socket.scope))
    await socket.close()


@asynccontextmanager
async def _serving(app: ASGIApp, trusted: str, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve an application as a role does; yields the port."""
    with bind(host, 0) as listener:
        server = http_server(app, Settings.model_validate({"trusted_proxies": trusted}), SocketProtocol)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


def _app() -> FastAPI:
    return FastAPI(routes=[Route("/", _tell), WebSocketRoute("/", _tell_socket)])


async def _asked(port: int, *headers: tuple[bytes, bytes]) -> dict[str, str]:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{port}/", headers=list(headers))
    assert answer.status_code == 200
    seen: dict[str, str] = answer.json()
    return seen


async def _asked_by_socket(port: int, *headers: tuple[str, str]) -> dict[str, str]:
    async with connect(f"ws://127.0.0.1:{port}/", additional_headers=headers) as connection:
        seen: dict[str, str] = json.loads(await connection.recv())
        return seen


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8,127.0.0.2"])
async def test_peer_that_is_not_trusted_is_taken_for_what_it_is(trusted: str) -> None:
    async with _serving(_app(), trusted) as port:
        seen = await _asked(port, (b"X-Forwarded-For", b"203.0.113.7"), (b"X-Forwarded-Proto", b"https"))
        assert seen == {"address": "127.0.0.1", "scheme": "http"}
        seen = await _asked_by_socket(port, ("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https"))
        assert seen == {"address": "127.0.0.1", "scheme": "ws"}


@pytest.mark.parametrize("trusted", ["127.0.0.1", " 127.0.0.0/8 , ::1 ", "127.0.0.1/8"])
async def test_trusted_proxy_is_believed_for_requests_and_sockets(trusted: str) -> None:
    async with _serving(_app(), trusted) as port:
        seen = await _asked(port, (b"X-Forwarded-For", b"203.0.113.7"), (b"X-Forwarded-Proto", b"https"))
        assert seen == {"address": "203.0.113.7", "scheme": "https"}
        seen = await _asked_by_socket(port, ("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "https"))
        assert seen == {"address": "203.0.113.7", "scheme": "wss"}
        assert await _asked(port) == {"address": "127.0.0.1", "scheme": "http"}


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ([b"198.51.100.9, 203.0.113.7"], "203.0.113.7"),
        ([b"198.51.100.9, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ([b"198.51.100.9", b"203.0.113.7"], "203.0.113.7"),
        ([b"nonsense, 203.0.113.7, 10.1.2.3, 127.0.0.1"], "203.0.113.7"),
        ([b"203.0.113.7, nonsense"], "unknown"),
        ([b"203.0.113.7:4711"], "203.0.113.7"),
        ([b"2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        ([b"[2001:DB8:1:2::9]:443"], "2001:db8:1:2::/64"),
        ([b"::ffff:203.0.113.7"], "203.0.113.7"),
        ([b"fe80::1%eth0"], "fe80::/64"),
    ],
)
async def test_nearest_address_that_is_no_trusted_proxy_counts(forwarded: Sequence[bytes], address: str) -> None:
    async with _serving(_app(), "127.0.0.1,10.0.0.0/8") as port:
        seen = await _asked(port, *((b"X-Forwarded-For", value) for value in forwarded))
    assert seen["address"] == address


@pytest.mark.parametrize("value", _GARBAGE, ids=range(len(_GARBAGE)))
async def test_garbage_from_a_trusted_proxy_does_no_harm(value: bytes) -> None:
    async with _serving(_app(), "127.0.0.1") as port:
        seen = await _asked(port, (b"X-Forwarded-For", value), (b"X-Forwarded-Proto", value))
    assert seen["address"] in ("127.0.0.1", "unknown")
    assert seen["scheme"] == "http"


async def test_trusted_ipv4_proxy_is_known_on_a_listener_for_both_families() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with _serving(_app(), "127.0.0.0/8", host="::") as port:
        assert (await _asked(port))["address"] == "127.0.0.1"
        assert (await _asked(port, (b"X-Forwarded-For", b"203.0.113.7")))["address"] == "203.0.113.7"


async def _statuses(http: httpx.AsyncClient, addresses: Sequence[str]) -> list[int]:
    """Ask for a token of a new guest for each address; return the statuses."""
    statuses = []
    for address in addresses:
        guest = secrets.token_hex(8)
        answer = await http.post(f"/token?userid={guest}", headers={"X-Forwarded-For": address})
        statuses.append(answer.status_code)
    return statuses


async def test_tokens_are_limited_by_the_address_that_a_trusted_proxy_tells(folder: Path, valkey: str) -> None:
    async with (
        open_api(folder, valkey, token_rate_limit_max_requests=1) as api,
        _serving(api.app, "127.0.0.1") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        one, other = "203.0.113.7", "203.0.113.8"
        # What the client itself has put in front changes nothing, nor does another address of the same IPv6 network.
        assert await _statuses(http, [one, other, f"192.0.2.1, {one}"]) == [200, 200, 429]
        assert await _statuses(http, ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]) == [200, 429, 200]
        assert await _statuses(http, ["nonsense", "x" * 10_000]) == [200, 429]


async def test_tokens_are_limited_by_the_peer_where_no_proxy_is_trusted(folder: Path, valkey: str) -> None:
    async with (
        open_api(folder, valkey, token_rate_limit_max_requests=1) as api,
        _serving(api.app, "") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        assert await _statuses(http, ["203.0.113.7", "203.0.113.8"]) == [200, 429]
