"""Operations: `/health` (alive), `/ready` (every dependency answers), `/metrics`. Every role serves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from duologue import __version__
from duologue.domain.errors import DuologueError

_log = structlog.get_logger(__name__)

CHECK_TIMEOUT_SECONDS: Final = 2.0

Check = Callable[[], Awaitable[str | None]]
"""Looks at one dependency: returns if this process can work with it, with a word on its state if there is more to say
than `ok` (a model that loads is `loading`: messages are taken meanwhile). Raises a DuologueError if it cannot."""


class Health(BaseModel):
    """The process is alive."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "ok",
                "service": "duologue",
                "server_id": "chat-1",
                "version": "0.1.0",
                "uptime_seconds": 86.4,
                "connections": {"sockets": 12, "users": 9},
            }
        }
    )

    status: str = Field(description="Always `ok`: a process that is not does not answer.")
    service: str = Field(description="The role, or `duologue` for all in one process.")
    server_id: str
    version: str
    uptime_seconds: float
    connections: dict[str, int] = Field(description="Open sockets of this process, and the users that hold them.")


class CheckState(BaseModel):
    """How one dependency stands."""

    state: str = Field(description="`ok`, a dependency's own word such as `loading`, `unavailable`, or `timeout`.")
    detail: str | None = Field(default=None, description="Why it is not available.")


class Readiness(BaseModel):
    """Whether this process can do its work, and what that depends on."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "ready",
                "checks": {"store": {"state": "ok"}, "redis": {"state": "ok"}, "model": {"state": "loading"}},
            }
        }
    )

    status: str = Field(description="`ready`, or `not_ready` with status 503.")
    checks: dict[str, CheckState]


class _Checked:
    """The outcome of a check beside whether it lets the process be ready."""

    __slots__ = ("ok", "state")

    def __init__(self, state: CheckState, *, ok: bool) -> None:
        self.state = state
        self.ok = ok


def router(
    *,
    service: str,
    server_id: str,
    checks: Mapping[str, Check],
    connections: Callable[[], Mapping[str, int]] = dict,
    uptime_clock: Callable[[], float] = time.monotonic,
) -> APIRouter:
    """Serve `/health`, `/ready` and `/metrics`, open to all.

    Args:
        service: the role's name, or `duologue` for all in one process.
        checks: a dependency's name and how to look at it; all are looked at together, each for at most 2 s.
        connections: the counts that `/health` shows.
        uptime_clock: seconds, from any start.
    """
    started_at = uptime_clock()
    api = APIRouter(tags=["Operations"])

    @api.get("/health", summary="Is the process alive?")
    async def health() -> Health:
        return Health(
            status="ok",
            service=service,
            server_id=server_id,
            version=__version__,
            uptime_seconds=round(uptime_clock() - started_at, 3),
            connections=dict(connections()),
        )

    @api.get("/ready", summary="Can it do its work?", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> Response:
        return await _readiness(checks)

    for path, answer in (("/health", health), ("/ready", ready)):  # as some load balancers ask
        api.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)

    @api.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return api


async def _readiness(checks: Mapping[str, Check]) -> Response:
    outcomes = await asyncio.gather(*(_look(name, check) for name, check in checks.items()))
    is_ready = all(outcome.ok for outcome in outcomes)
    body = Readiness(
        status="ready" if is_ready else "not_ready",
        checks={name: outcome.state for name, outcome in zip(checks, outcomes, strict=True)},
    )
    headers = {} if is_ready else {"Retry-After": "1"}
    return JSONResponse(body.model_dump(exclude_none=True), status_code=200 if is_ready else 503, headers=headers)


async def _look(name: str, check: Check) -> _Checked:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            return _Checked(CheckState(state=await check() or "ok"), ok=True)
    except TimeoutError:
        return _Checked(CheckState(state="timeout", detail=f"no answer in {CHECK_TIMEOUT_SECONDS:g} s"), ok=False)
    except DuologueError as error:
        return _Checked(CheckState(state="unavailable", detail=str(error)), ok=False)
    except Exception as error:  # noqa: BLE001  # the edge of a check: a broken one must not hide the others
        _log.error("check_failed", check=name, exc_info=error)
        return _Checked(CheckState(state="unavailable", detail=f"the check failed: {type(error).__name__}"), ok=False)
