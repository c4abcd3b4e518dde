from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from duologue.client.tokens import (
    FixedToken,
    GuestToken,
    GuestTokens,
    ServerUnreachable,
    TokenFile,
    TokenRefused,
)


class TokenDesk:
    """Issues tokens over HTTP as the server does, and remembers what it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.keys: list[str | None] = []
        self.status = 200

    async def issue(self, request: web.Request) -> web.Response:
        self.asked.append((request.query["userid"], request.headers.get("Authorization")))
        self.keys.append(request.headers.get("Idempotency-Key"))
        if self.status != 200:
            return web.json_response({"detail": "not now"}, status=self.status)
        return web.json_response({"token": f"t{len(self.asked)}", "expires_in": 600})


@pytest.fixture
def desk() -> TokenDesk:
    return TokenDesk()


@pytest.fixture
async def server(desk: TokenDesk) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/token", desk.issue)
    async with TestServer(app) as running:
        yield str(running.make_url("")).rstrip("/")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_guest_token_is_asked_for_once_and_kept(
    desk: TokenDesk, server: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    file = TokenFile(tmp_path / "sub" / "tokens.json")
    tokens = GuestTokens(http, server, "ada", file=file)
    assert await tokens.token() == "t1"
    assert await tokens.token() == "t1"
    assert await GuestTokens(http, server, "ada", file=file).token() == "t1"
    assert desk.asked == [("ada", None)]


async def test_token_asked_for_again_after_a_failure_is_asked_for_with_the_same_key(
    desk: TokenDesk, server: str, http: aiohttp.ClientSession
) -> None:
    tokens, other = GuestTokens(http, server, "ada"), GuestTokens(http, server, "ada")
    desk.status = 503
    with pytest.raises(ServerUnreachable):
        await tokens.token()
    desk.status = 200
    await tokens.token()
    await other.token()
    first, second, others = desk.keys
    assert first == second != others
    assert first is not None
    assert len(first) >= 16


async def test_expired_and_renewed_tokens_prove_the_name_with_the_old_one(
    desk: TokenDesk, server: str, http: aiohttp.ClientSession
) -> None:
    now = 1000.0
    tokens = GuestTokens(http, server, "ada", clock=lambda: now)
    await tokens.token()
    assert await tokens.token(renew=True) == "t2"
    now += 600
    assert await tokens.token() == "t3"
    assert [header for _, header in desk.asked] == [None, "Bearer t1", "Bearer t2"]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (409, TokenRefused, "belongs to somebody else"),
        (403, TokenRefused, "not now"),
        (429, ServerUnreachable, "not now"),
        (503, ServerUnreachable, "not now"),
    ],
)
async def test_refusal_tells_why(
    desk: TokenDesk, server: str, http: aiohttp.ClientSession, status: int, error: type[Exception], words: str
) -> None:
    desk.status = status
    with pytest.raises(error, match=words):
        await GuestTokens(http, server, "ada").token()


async def test_server_that_is_not_there_is_unreachable(http: aiohttp.ClientSession) -> None:
    with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        await GuestTokens(http, "http://127.0.0.1:9", "ada").token()


async def test_fixed_token_cannot_be_renewed() -> None:
    assert await FixedToken("t").token() == "t"
    with pytest.raises(TokenRefused):
        await FixedToken("t").token(renew=True)


def test_token_file_is_private_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    file.save("http://a", "ada", GuestToken("t", 5.0))
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.json", "tokens.lock"}
    assert file.load("http://a", "ada") == GuestToken("t", 5.0)
    assert file.load("http://a", "bob") is None
    assert file.load("http://b", "ada") is None


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"http://a": {"ada": 3}}', '{"http://a": 3}'])
def test_token_file_that_is_damaged_counts_as_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens.json").write_text(content)
    file = TokenFile(tmp_path / "tokens.json")
    assert file.load("http://a", "ada") is None
    file.save("http://a", "bob", GuestToken("t", 5.0))
    assert file.load("http://a", "bob") == GuestToken("t", 5.0)


def test_token_file_loses_nothing_to_concurrent_writers(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"

    def save(number: int) -> None:
        TokenFile(path).save("http://a", f"user{number}", GuestToken("t", 1.0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(40)))
    assert len(json.loads(path.read_text())["http://a"]) == 40
