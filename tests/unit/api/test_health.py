"""`/health`, `/ready` and `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx
import pytest

from duologue import __version__
from duologue.api import health
from duologue.api.app import create_app
from duologue.api.health import Check, Roll
from duologue.delivery.roster import Announced, Present
from duologue.domain.errors import RedisUnavailable, StoreUnavailable


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


async def _get(
    path: str,
    checks: Mapping[str, Check],
    method: str = "GET",
    *,
    roll: Roll | None = None,
    needed: Sequence[str] = (),
    providers: Mapping[str, str] | None = None,
) -> httpx.Response:
    times = iter([100.0, 103.5])
    router = health.router(
        service="duologue",
        server_id="chat-1",
        checks=checks,
        connections=lambda: {"sockets": 3, "users": 2},
        providers=lambda: providers or {},
        roll=roll,
        needed=needed,
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


async def test_health_of_a_process_that_asks_models_tells_the_state_of_their_breakers() -> None:
    answer = await _get("/health", {}, providers={"api.example.com": "open"})
    assert answer.json()["providers"] == {"api.example.com": "open"}


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


def _roll(*present: tuple[str, str, str, int]) -> Roll:
    """Return a roll of roles by name, process, state and silence in milliseconds."""

    async def call() -> Sequence[Present]:
        return [
            Present(
                announced=Announced(
                    role=role,
                    server_id=server_id,
                    version="0.1.0",
                    started_at=1_767_614_400_000,
                    state=state,
                    failing=["store"] if state == "not_ready" else [],
                    counts={"connections": 2} if role == "websocket-server" else {},
                ),
                seen_ms_ago=seen_ms_ago,
            )
            for role, server_id, state, seen_ms_ago in present
        ]

    return call


async def test_health_of_the_whole_shows_every_role_of_every_process() -> None:
    roll = _roll(("ai-consumer", "ai-1", "not_ready", 5), ("websocket-server", "chat-1", "ready", 120))
    answer = await _get("/health", {}, roll=roll, needed=["websocket-server"])
    assert answer.json()["status"] == "ok"
    said = {"version": "0.1.0", "started_at": "2026-01-05T12:00:00.000Z"}
    assert answer.json()["roles"] == [
        {"role": "ai-consumer", "server_id": "ai-1", "state": "not_ready", "failing": ["store"], "seen_ms_ago": 5}
        | said,
        {"role": "websocket-server", "server_id": "chat-1", "state": "ready", "counts": {"connections": 2}}
        | {"seen_ms_ago": 120}
        | said,
    ]
    assert "missing" not in answer.json()


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([], ["api", "ai-consumer"]),
        ([("api", "a", "ready", 0)], ["ai-consumer"]),
        ([("api", "a", "ready", 0), ("ai-consumer", "b", "not_ready", 0)], ["ai-consumer"]),
        ([("api", "a", "draining", 0), ("ai-consumer", "b", "ready", 0)], ["api"]),
        ([("api", "a", "ready", 0), ("ai-consumer", "b", "ready", 15_001)], ["ai-consumer"]),
        ([("api", "a", "ready", 0), ("ai-consumer", "b", "ready", 15_001), ("ai-consumer", "c", "ready", 0)], None),
    ],
    ids=["nobody", "absent", "not ready", "draining", "lost", "one lost, another there"],
)
async def test_health_of_a_whole_that_lacks_a_role_is_degraded(
    present: Sequence[tuple[str, str, str, int]], missing: Sequence[str] | None
) -> None:
    answer = await _get("/health", {}, roll=_roll(*present), needed=["api", "ai-consumer"])
    assert answer.status_code == 200
    assert answer.json().get("missing") == missing
    assert answer.json()["status"] == ("degraded" if missing else "ok")


async def _nobody_can_tell() -> Sequence[Present]:
    raise RedisUnavailable("Redis cannot be reached")


async def _hanging_roll() -> Sequence[Present]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("roll", [_nobody_can_tell, _hanging_roll])
async def test_health_while_redis_is_away_is_that_of_the_process_and_says_so(
    roll: Roll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.05)
    answer = await _get("/health", {}, roll=roll, needed=["api"])
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["server_id"], body["uptime_seconds"]) == ("degraded", "chat-1", 3.5)
    assert body["detail"].startswith("the roles are not known: Redis ")
    assert "roles" not in body


async def test_failing_names_the_checks_that_keep_a_process_from_being_ready() -> None:
    checks = {"store": _away, "redis": _ok, "model": _loading, "log": _broken}
    assert await health.failing(checks) == ["store", "log"]
