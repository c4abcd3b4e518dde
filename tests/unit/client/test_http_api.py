from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from duologue.client.http_api import HttpApi, RequestRefused
from duologue.client.tokens import FixedToken, ServerUnreachable


class Api:
    """Answers as the API does, with 250 changed rows behind the cursor `0`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], str | None]] = []
        self.answer: web.Response | None = None

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, dict(request.query), request.headers.get("Authorization")))
        if self.answer is not None:
            return self.answer
        start, limit = int(request.query.get("after", 240)), int(request.query["limit"])
        items: list[dict[str, Any]] = [{"id": number} for number in range(start, min(start + limit, 250))]
        return web.json_response({"items": items, "next_cursor": str(start + len(items))})


@pytest.fixture
def answers() -> Api:
    return Api()


@pytest.fixture
async def api(answers: Api) -> AsyncIterator[HttpApi]:
    app = web.Application()
    app.router.add_get("/{path:.*}", answers.handle)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        yield HttpApi(http, str(server.make_url("")), FixedToken("t"))


async def test_changes_behind_a_cursor_are_read_to_their_end(api: HttpApi, answers: Api) -> None:
    rows, cursor = await api.changes("0")
    assert [row["id"] for row in rows] == list(range(250))
    assert cursor == "250"
    assert [query.get("after") for _, query, _ in answers.asked] == ["0", "100", "200"]
    assert {header for _, _, header in answers.asked} == {"Bearer t"}


async def test_changes_without_a_cursor_are_the_newest_page(api: HttpApi, answers: Api) -> None:
    rows, cursor = await api.changes(None)
    assert len(rows) == 10
    assert cursor == "250"
    assert len(answers.asked) == 1


async def test_conversation_id_cannot_leave_its_place_in_the_path(api: HttpApi, answers: Api) -> None:
    await api.messages("../a?b", limit=5)
    assert answers.asked[0][0] == "/conversations/../a?b/messages"


async def test_refusal_carries_status_and_reason(api: HttpApi, answers: Api) -> None:
    answers.answer = web.json_response({"detail": "There is no such conversation."}, status=404)
    with pytest.raises(RequestRefused, match="no such conversation") as refused:
        await api.conversation("c")
    assert refused.value.status == 404


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_server_in_trouble_counts_as_unreachable(api: HttpApi, answers: Api, status: int) -> None:
    answers.answer = web.json_response({"detail": "not now"}, status=status)
    with pytest.raises(ServerUnreachable):
        await api.characters()


async def test_answer_that_is_no_json_counts_as_unreachable(api: HttpApi, answers: Api) -> None:
    answers.answer = web.Response(text="<html>")
    with pytest.raises(ServerUnreachable):
        await api.characters()
