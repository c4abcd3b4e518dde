"""Operations: `/health` (alive), `/ready` (every dependency answers), `/metrics`. Every role serves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from duologue import __version__
from duologue.delivery.roster import Present
from duologue.domain.clock import rfc3339
from duologue.domain.errors import DuologueError
from duologue.observability.metrics import TASKS

_log = structlog.get_logger(__name__)

CHECK_TIMEOUT_SECONDS: Final = 2.0

Check = Callable[[], Awaitable[str | None]]
"""Looks at one dependency: returns if this process can work with it, with a word on its state if there is more to say
than `ok` (a model that loads is `loading`: messages are taken meanwhile). Raises a DuologueError if it cannot."""


Roll = Callable[[], Awaitable[Sequence[Present]]]
"""Returns every role of every process that is known. Raises a DuologueError if nobody can tell."""


class RoleHealth(BaseModel):
    """A role of a process, as it was last heard of."""

    role: str
    server_id: str
    state: str = Field(description="`ready`, `not_ready`, `draining`, or `lost`: silent for 15 s without good-bye.")
    failing: list[str] | None = Field(default=None, description="The checks for which it is not ready.")
    version: str
    started_at: str
    seen_ms_ago: int
    counts: dict[str, int] | None = Field(default=None, description="Such as open sockets, of a websocket-server.")


class Health(BaseModel):
    """The process is alive; where it knows of the others, how the whole stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "ok",
                "service": "duologue",
                "server_id": "chat-1",
                "version": "0.1.0",
                "uptime_seconds": 86.4,
                "connections": {"connections": 12, "users": 9},
            }
        }
    )

    status: str = Field(
        description="`ok`, or `degraded`: a role has no process that is ready, or nobody can tell. The answer has "
        "status 200 either way: it is this process that answers."
    )
    service: str = Field(description="The role, or `duologue` for all in one process.")
    server_id: str
    version: str
    uptime_seconds: float
    connections: dict[str, int] = Field(description="Open sockets of this process, and the users that hold them.")
    providers: dict[str, str] | None = Field(
        default=None,
        description="By a process that asks models: each provider, and its circuit breaker's state as this process has "
        "it (`closed`, `half_open`, `open`).",
    )
    roles: list[RoleHealth] | None = Field(
        default=None, description="By the api and the embedded mode: every role of every process that is known."
    )
    missing: list[str] | None = Field(default=None, description="Roles without a process that is ready.")
    detail: str | None = Field(default=None, description="Why the roles are not known.")


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


class _Whole(NamedTuple):
    """How all processes together stand: fields of `Health`."""

    status: str
    roles: list[RoleHealth] | None = None
    missing: list[str] | None = None
    detail: str | None = None


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
    providers: Callable[[], Mapping[str, str]] = dict,
    roll: Roll | None = None,
    needed: Sequence[str] = (),
    uptime_clock: Callable[[], float] = time.monotonic,
) -> APIRouter:
    """Serve `/health`, `/ready` and `/metrics`, open to all.

    Args:
        service: the role's name, or `duologue` for all in one process.
        checks: a dependency's name and how to look at it; all are looked at together, each for at most 2 s.
        connections: the counts that `/health` shows.
        providers: the providers of models that this process asks, each with the state of its circuit breaker.
        roll: how to learn of the roles of all processes; None: `/health` is about this process alone.
        needed: the roles of which the whole needs at least one that is ready.
        uptime_clock: seconds, from any start.
    """
    started_at = uptime_clock()
    api = APIRouter(tags=["Operations"])

    @api.get("/health", summary="Is the process alive, and who else is?", response_model_exclude_none=True)
    async def health() -> Health:
        whole = _Whole(status="ok") if roll is None else await _whole(roll, needed)
        return Health(
            status=whole.status,
            service=service,
            server_id=server_id,
            version=__version__,
            uptime_seconds=round(uptime_clock() - started_at, 3),
            connections=dict(connections()),
            providers=dict(providers()) or None,
            roles=whole.roles,
            missing=whole.missing,
            detail=whole.detail,
        )

    @api.get("/ready", summary="Can it do its work?", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> Response:
        return await _readiness(checks)

    for path, answer in (("/health", health), ("/ready", ready)):  # as some load balancers ask
        api.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)

    @api.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
    async def metrics() -> Response:
        TASKS.set(len(asyncio.all_tasks()))
        return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return api


async def failing(checks: Mapping[str, Check]) -> list[str]:
    """Return the names of the checks for which `/ready` would answer 503."""
    outcomes = await asyncio.gather(*(_look(name, check) for name, check in checks.items()))
    return [name for name, outcome in zip(checks, outcomes, strict=True) if not outcome.ok]


async def _whole(roll: Roll, needed: Sequence[str]) -> _Whole:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            present = await roll()
    except TimeoutError:
        return _Whole(
            "degraded", detail=f"the roles are not known: Redis does not answer in {CHECK_TIMEOUT_SECONDS:g} s"
        )
    except DuologueError as error:
        return _Whole("degraded", detail=f"the roles are not known: {error}")
    ready = {each.announced.role for each in present if each.state == "ready"}
    missing = [role for role in needed if role not in ready]
    return _Whole("degraded" if missing else "ok", [_role_health(each) for each in present], missing or None)


def _role_health(present: Present) -> RoleHealth:
    said = present.announced
    return RoleHealth(
        role=said.role,
        server_id=said.server_id,
        state=present.state,
        failing=list(said.failing) or None,
        version=said.version,
        started_at=rfc3339(said.started_at),
        seen_ms_ago=present.seen_ms_ago,
        counts=dict(said.counts) or None,
    )


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
