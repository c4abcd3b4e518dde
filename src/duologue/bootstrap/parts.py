"""What each role brings into its process: what runs, what is served, and what `/ready` looks at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, get_args

from fastapi import APIRouter

from duologue.ai_consumer.worker import AiConsumer
from duologue.api import accounts, characters, conversations, dead_letters, health, page
from duologue.api.access import OperatorOnly, SignedIn
from duologue.auth.tokens import TokenIssuer, TokenVerifier
from duologue.bootstrap.engines import Engines
from duologue.config import Settings
from duologue.delivery.hub import Hub
from duologue.delivery.load import LoadBoard
from duologue.delivery.roster import Counts
from duologue.domain.clock import wall_clock
from duologue.domain.errors import DuologueError, OwnershipLost, RedisUnavailable, Retryable
from duologue.domain.records import INCOMING_TOPIC
from duologue.engines.redis_address import shared_redis_url
from duologue.llm.choice import ModelChain, Provider
from duologue.message_relay.worker import MessageRelay
from duologue.runner import Role
from duologue.store.history import said_before
from duologue.websocket_server import app as socket_routes
from duologue.websocket_server.load import LoadGate
from duologue.websocket_server.server import WebSocketServer

RoleName = Literal["websocket-server", "ai-consumer", "message-relay", "api"]
ROLES: Final[tuple[RoleName, ...]] = get_args(RoleName)


@dataclass(frozen=True)
class Part:
    """What one role brings into its process."""

    name: RoleName
    role: Role | None = None
    """What runs; None for one that only answers requests."""
    checks: Mapping[str, health.Check] = field(default_factory=dict)
    """What `/ready` looks at beside the engines."""
    providers: Callable[[], Mapping[str, str]] = dict
    """The providers of models that it asks, each with the state of its circuit breaker."""
    counts: Counts = dict
    """What is shown of it beside its state."""
    stop_taking: Callable[[], None] = lambda: None
    """Called when the end begins, before anything is drained."""
    routers: Sequence[APIRouter] = ()
    root_routers: Sequence[APIRouter] = ()


@asynccontextmanager
async def websocket_server_part(settings: Settings, engines: Engines, secret: str) -> AsyncIterator[Part]:
    """Make the role that holds clients' sockets, its hub open."""
    hub = Hub(
        engines.redis_url,
        engines.streams,
        may_be_away=bool(shared_redis_url(settings)),
        said_before=lambda user, at: engines.database.read(said_before, user, at),
    )
    async with hub:
        server = WebSocketServer(
            settings,
            producer=engines.log.producer,
            hub=hub,
            streams=engines.streams,
            database=engines.database,
            verifier=TokenVerifier(secret),
            load=LoadGate(
                LoadBoard(engines.redis),
                limit_seconds=settings.overload_seconds,
                partition_of=partial(engines.log.partition_of, INCOMING_TOPIC),
            ),
        )

        async def feed() -> None:
            if not hub.ready:
                raise RedisUnavailable("publications do not reach this process")

        async def taking() -> None:
            if server.draining:
                raise Retryable("it is draining")

        yield Part(
            server.name,
            server,
            {"feed": feed, server.name: taking},
            counts=lambda: {"connections": server.connections, "users": server.users},
            stop_taking=server.stop_taking,
            root_routers=[socket_routes.router(server)],
        )


def ai_consumer_part(settings: Settings, engines: Engines, models: ModelChain) -> Part:
    """Make the role that answers messages."""
    consumer = AiConsumer(
        log=engines.log,
        database=engines.database,
        streams=engines.streams,
        board=LoadBoard(engines.redis),
        models=models,
        settings=settings,
    )
    first, *others = models.providers
    checks: dict[str, health.Check] = {"model": partial(provider_state, first)}
    checks |= {f"model {provider.name}": partial(provider_state, provider) for provider in others}
    checks[consumer.name] = partial(_owner, consumer)
    return Part(
        consumer.name,
        consumer,
        checks,
        counts=lambda: {"pending": consumer.pending, "open_breakers": models.open_breakers},
        providers=lambda: {provider.name: provider.breaker.state for provider in models.providers},
    )


def message_relay_part(settings: Settings, engines: Engines) -> Part:
    """Make the role that brings finished replies to their users."""
    relay = MessageRelay(log=engines.log, database=engines.database, streams=engines.streams, settings=settings)
    checks = {relay.name: partial(_owner, relay)}
    return Part(relay.name, relay, checks, counts=lambda: {"pending": relay.pending})


def api_part(settings: Settings, engines: Engines, secret: str) -> Part:
    """Make the role that serves the HTTP API and the page."""
    database, verifier = engines.database, TokenVerifier(secret)
    signed_in = SignedIn(database, verifier, wall_clock)
    tokens = accounts.router(
        settings=settings,
        database=database,
        streams=engines.streams,
        issuer=TokenIssuer(secret),
        verifier=verifier,
    )
    letters = dead_letters.router(database, engines.log.producer, OperatorOnly(database, verifier))
    return Part(
        "api",
        routers=[tokens, characters.router(database, signed_in), conversations.router(database, signed_in), letters],
        root_routers=[characters.open_router(database, signed_in), page.router()],
    )


async def _owner(role: AiConsumer | MessageRelay) -> None:
    if not role.assigned:
        raise OwnershipLost("it does not own its part of the log")


async def provider_state(provider: Provider) -> str | None:
    """Return what is wrong with a provider, None for nothing; also if it is for the operator to mend.

    It never makes the process not ready: messages are taken, and wait or are answered by another model.
    """
    try:
        await provider.model.check()
    except DuologueError as error:
        return str(error)
    state = provider.breaker.state
    return None if state == "closed" else f"its circuit breaker is {state.replace('_', ' ')}"
