"""One process of some parts: what it runs, what it serves, and what others hear of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fastapi import FastAPI

from duologue.api import health
from duologue.api.app import create_app
from duologue.bootstrap.engines import Engines
from duologue.bootstrap.parts import ROLES, Part
from duologue.config import Settings
from duologue.delivery.roster import Announcement, Roster
from duologue.engines.redis import Redis
from duologue.runner import Runner, http_server
from duologue.websocket_server.transport import SocketProtocol


def runner_of(
    service: str,
    settings: Settings,
    engines: Engines,
    parts: Sequence[Part],
    listener: socket.socket,
    on_ready: Callable[[], None],
) -> Runner:
    """Compose a process of these parts: what it runs, what it serves, and what the others hear of it."""
    checks = _checks(engines, parts)
    announcement = Announcement(
        engines.redis,
        server_id=settings.server_id,
        roles={part.name: part.counts for part in parts},
        failing=partial(health.failing, checks),
    )

    def on_drain() -> None:
        announcement.begin_drain()
        for part in parts:
            part.stop_taking()

    return Runner(
        roles=[*(part.role for part in parts if part.role is not None), announcement],
        server=http_server(_app(service, settings, engines, parts, checks), settings, SocketProtocol),
        listener=listener,
        drain_seconds=settings.drain_seconds,
        on_ready=on_ready,
        on_drain=on_drain,
    )


def _checks(engines: Engines, parts: Sequence[Part]) -> Mapping[str, health.Check]:
    checks: dict[str, health.Check] = {
        "store": engines.database.check,
        "redis": partial(_redis_answers, engines.redis),
        "log": engines.log.check,
    }
    for part in parts:
        checks |= part.checks
    return checks


def _app(
    service: str,
    settings: Settings,
    engines: Engines,
    parts: Sequence[Part],
    checks: Mapping[str, health.Check],
) -> FastAPI:
    """Compose what a process serves: its parts', and the operations that every process has."""
    sees_all = any(part.name == "api" for part in parts)
    operations = health.router(
        service=service,
        server_id=settings.server_id,
        checks=checks,
        connections=lambda: {
            name: count for part in parts if part.name == "websocket-server" for name, count in part.counts().items()
        },
        providers=lambda: {name: state for part in parts for name, state in part.providers().items()},
        roll=Roster(engines.redis).present if sees_all else None,
        needed=ROLES,
    )
    return create_app(
        title=settings.app_name,
        routers=[*(router for part in parts for router in part.routers), operations],
        root_routers=[router for part in parts for router in part.root_routers],
    )


async def _redis_answers(redis: Redis) -> None:
    await redis.call("PING")
