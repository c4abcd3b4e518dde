"""`/health`, `/ready` and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
import pytest

from duologue import __version__
from duologue.api import health
from duologue.api.app import create_app
from duologue.api.health import Check
from duologue.domain.errors import StoreUnavailable


async def _ok() -> None:
    return None


async def _loading() -> str:
    return "loading"


async def _away() -> None:
    raise StoreUnavailable("the database is away")


async def _broken() -> None:
    raise ZeroDivisionError


async def _hanging() -> None:
    await asyncio.Event().wait()


async def _get(path: str, checks: Mapping[str, Check], method: str = "GET") -> httpx.Response:
    times = iter([100.0, 103.5])
    router = health.router(
        service="duologue",
        server_id="chat-1",
        checks=checks,
        connections=lambda: {"sockets": 3, "users": 2},
        uptime_clock=lambda: next(times),
    )
    transport = httpx.ASGITransport(create_app(title="Test", routers=[router]))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path)


async def test_health_tells_who_answers() -> None:
    assert (await _get("/health", {})).json() == {
        "status": "ok",
        "service": "duologue",
        "server_id": "chat-1",
        "version": __version__,
        "uptime_seconds": 3.5,
        "connections": {"sockets": 3, "users": 2},
    }


async def test_ready_with_every_dependency_is_200() -> None:
    answer = await _get("/ready", {"store": _ok, "redis": _ok})
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "checks": {"store": {"state": "ok"}, "redis": {"state": "ok"}}}


async def test_ready_while_the_model_loads_is_200_and_says_so() -> None:
    answer = await _get("/ready", {"store": _ok, "model": _loading})
    assert answer.status_code == 200
    assert answer.json()["checks"]["model"] == {"state": "loading"}


async def test_ready_without_a_dependency_is_503_and_names_it() -> None:
    answer = await _get("/ready", {"store": _away, "redis": _ok})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json() == {
        "status": "not_ready",
        "checks": {"store": {"state": "unavailable", "detail": "the database is away"}, "redis": {"state": "ok"}},
    }


async def test_ready_with_a_broken_check_is_503_and_shows_the_others() -> None:
    answer = await _get("/ready", {"store": _broken, "redis": _ok})
    assert answer.status_code == 503
    assert answer.json()["checks"]["store"]["state"] == "unavailable"
    assert answer.json()["checks"]["redis"] == {"state": "ok"}


async def test_ready_with_hanging_checks_gives_them_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.05)
    async with asyncio.timeout(5):
        answer = await _get("/ready", {f"engine-{number}": _hanging for number in range(200)})
    assert answer.status_code == 503
    assert {check["state"] for check in answer.json()["checks"].values()} == {"timeout"}


async def test_metrics_are_in_the_text_format() -> None:
    answer = await _get("/metrics", {})
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert answer.headers["content-type"].count("text/plain") == 1
    assert "python_info" in answer.text


async def test_operations_are_served_under_the_version_prefix_too() -> None:
    assert (await _get("/api/v1/ready", {"store": _ok})).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_operations_asked_by_head_answer_with_the_status(path: str) -> None:
    assert (await _get(path, {"store": _ok}, "HEAD")).status_code == 200
