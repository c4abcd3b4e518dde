"""The edge of HTTP: correlation ids, headers, bounds, and the form of every error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
import structlog
from fastapi import APIRouter, Query, Request
from prometheus_client import REGISTRY
from pydantic import BaseModel
from starlette.types import Message

from duologue.api.app import create_app
from duologue.api.edge import MAX_BODY_BYTES, HttpEdge
from duologue.domain.errors import LogUnavailable, RedisUnavailable, Rejected, StoreUnavailable


class _Body(BaseModel):
    password: str


def _router() -> APIRouter:
    api = APIRouter()

    @api.get("/fine")
    async def fine(limit: Annotated[int, Query(ge=1)] = 1) -> dict[str, int]:
        return {"limit": limit}

    @api.get("/bound")
    async def bound() -> dict[str, str]:
        return {"correlation_id": structlog.contextvars.get_contextvars()["correlation_id"]}

    @api.post("/body")
    async def body(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @api.post("/form")
    async def form(body: _Body) -> dict[str, str]:
        return {"length": str(len(body.password))}

    @api.get("/raise/{kind}")
    async def fail(kind: str) -> None:
        errors: dict[str, Exception] = {
            "token": Rejected("invalid_token", "the token has expired"),
            "foreign": Rejected("userid_mismatch", "another's"),
            "missing": Rejected("conversation_not_found", "no such conversation"),
            "limited": Rejected("rate_limited", "too many", retry_after_seconds=2.2),
            "fault": Rejected("invalid_cursor", "the cursor cannot be read"),
            "store": StoreUnavailable("postgresql://duologue:secret@db is away"),
            "redis": RedisUnavailable("away", retry_after_seconds=7),
            "log": LogUnavailable("away"),
            "bug": ZeroDivisionError("of no interest to clients"),
        }
        raise errors[kind]

    return api


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(title="Test", routers=[_router()]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_request_without_correlation_id_gets_one(http: httpx.AsyncClient) -> None:
    first, second = await http.get("/fine"), await http.get("/fine")
    assert len(first.headers["x-correlation-id"]) == 32
    assert first.headers["x-correlation-id"] != second.headers["x-correlation-id"]


async def test_request_with_sane_correlation_id_keeps_it(http: httpx.AsyncClient) -> None:
    answer = await http.get("/bound", headers={"X-Correlation-ID": "order-42.retry_1"})
    assert answer.headers["x-correlation-id"] == "order-42.retry_1"
    assert answer.json() == {"correlation_id": "order-42.retry_1"}


@pytest.mark.parametrize("given", ["", "a" * 65, "two words", "semi;colon", 'quo"te', "ünicode".encode()])
async def test_request_with_odd_correlation_id_gets_a_new_one(http: httpx.AsyncClient, given: str | bytes) -> None:
    value = given if isinstance(given, bytes) else given.encode()
    answer = await http.get("/fine", headers=[(b"X-Correlation-ID", value)])
    assert len(answer.headers["x-correlation-id"]) == 32


async def test_answer_carries_security_headers(http: httpx.AsyncClient) -> None:
    headers = (await http.get("/fine")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


async def test_path_is_served_under_the_version_prefix_too(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/v1/fine")).json() == {"limit": 1}
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert "/fine" in paths
    assert "/api/v1/fine" not in paths


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("token", 401, "invalid_token"),
        ("foreign", 403, "userid_mismatch"),
        ("missing", 404, "conversation_not_found"),
        ("limited", 429, "rate_limited"),
        ("fault", 400, "invalid_cursor"),
        ("store", 503, "service_unavailable"),
        ("redis", 503, "service_unavailable"),
        ("log", 503, "service_unavailable"),
        ("bug", 500, "internal_error"),
    ],
)
async def test_error_of_a_route_has_the_one_form(http: httpx.AsyncClient, kind: str, status: int, code: str) -> None:
    answer = await http.get(f"/raise/{kind}", headers={"X-Correlation-ID": "abc"})
    assert answer.status_code == status
    body = answer.json()
    assert body.keys() == {"detail", "code", "correlation_id"}
    assert (body["code"], body["correlation_id"]) == (code, "abc")
    assert answer.headers["x-correlation-id"] == "abc"


async def test_unauthorized_answer_names_the_scheme(http: httpx.AsyncClient) -> None:
    assert (await http.get("/raise/token")).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("kind", "seconds"), [("limited", "3"), ("redis", "7"), ("store", "1")])
async def test_temporary_error_tells_when_to_ask_again(http: httpx.AsyncClient, kind: str, seconds: str) -> None:
    assert (await http.get(f"/raise/{kind}")).headers["retry-after"] == seconds


@pytest.mark.parametrize("kind", ["store", "bug"])
async def test_error_text_tells_nothing_of_the_inside(http: httpx.AsyncClient, kind: str) -> None:
    text = (await http.get(f"/raise/{kind}")).text
    assert "secret" not in text
    assert "interest" not in text


async def test_unknown_path_is_not_found_in_the_one_form(http: httpx.AsyncClient) -> None:
    answer = await http.get("/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_wrong_method_is_refused_with_the_right_ones(http: httpx.AsyncClient) -> None:
    answer = await http.delete("/fine")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


async def test_parameter_out_of_bounds_is_told_by_name(http: httpx.AsyncClient) -> None:
    answer = await http.get("/fine?limit=0")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["detail"][0]["loc"] == ["query", "limit"]


async def test_invalid_body_is_not_sent_back(http: httpx.AsyncClient) -> None:
    answer = await http.post("/form", json={"password": 1, "other": "hunter2"})
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


async def test_body_within_the_bound_is_read(http: httpx.AsyncClient) -> None:
    answer = await http.post("/body", content=b"x" * MAX_BODY_BYTES)
    assert answer.json() == {"bytes": MAX_BODY_BYTES}


async def test_body_announced_too_large_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/body", content=b"x" * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "content_too_large")


async def test_body_that_grows_too_large_is_refused(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            yield b"x" * 65536

    answer = await http.post("/body", content=chunks())
    assert (answer.status_code, answer.json()["code"]) == (413, "content_too_large")


async def test_requests_are_counted_by_route(http: httpx.AsyncClient) -> None:
    def count(route: str, method: str, status: str) -> float:
        labels = {"route": route, "method": method, "status": status}
        return REGISTRY.get_sample_value("duologue_http_requests_total", labels) or 0.0

    before = count("/raise/{kind}", "GET", "404"), count("/fine", "other", "405"), count("none", "GET", "404")
    await http.get("/raise/missing")
    await http.get("/api/v1/raise/missing")
    await http.request("BREW", "/fine")
    await http.get("/nowhere/1")
    await http.get("/nowhere/2")
    after = count("/raise/{kind}", "GET", "404"), count("/fine", "other", "405"), count("none", "GET", "404")
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1, 2]


async def test_error_after_the_answer_began_breaks_it_off() -> None:
    sent: list[Message] = []

    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        raise ZeroDivisionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(ZeroDivisionError):
        await HttpEdge(app)(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_socket_scope_passes_through_untouched() -> None:
    seen: list[object] = []

    async def app(scope: object, receive: object, send: object) -> None:
        seen.extend([scope, receive, send])

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        """Nothing is sent."""

    scope = {"type": "websocket", "headers": [(b"x-correlation-id", b"abc")]}
    await HttpEdge(app)(scope, receive, send)
    assert seen == [scope, receive, send]
