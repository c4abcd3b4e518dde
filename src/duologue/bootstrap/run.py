"""What a process is made of, from its settings to its end: embedded, or one role."""

from __future__ import annotations

import socket
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import disable_created_metrics

from duologue import __version__
from duologue.announcement import announce
from duologue.bootstrap.engines import database_in, open_engines, open_own_engines
from duologue.bootstrap.models import open_models
from duologue.bootstrap.parts import RoleName, ai_consumer_part, api_part, message_relay_part, websocket_server_part
from duologue.bootstrap.process import runner_of
from duologue.bootstrap.secret import own_secret, shared_secret
from duologue.config import Settings
from duologue.engines.data_dir import made_data_dir
from duologue.engines.redis_address import shared_redis_url
from duologue.listener import bind
from duologue.observability.logging import configure_logging
from duologue.open_files import raise_file_limit
from duologue.store.migrate import migrate, migrate_sql

_log = structlog.get_logger(__name__)


async def run_embedded(settings: Settings, data_dir: Path, listener: socket.socket) -> None:
    """Run every role in this process until a signal ends it.

    Args:
        settings: of the process.
        data_dir: its folder, locked.
        listener: its address, where clients may be waiting already.

    Raises:
        StartRefused: it cannot start as it is configured.
        Permanent: a role cannot go on.
    """
    began = time.monotonic()
    _set_up_process(settings)
    async with AsyncExitStack() as stack:
        secret = own_secret(settings, data_dir)
        models = await stack.enter_async_context(open_models(settings, data_dir / "model.log"))
        engines = await stack.enter_async_context(open_own_engines(settings, data_dir))
        parts = [
            ai_consumer_part(settings, engines, models),
            message_relay_part(settings, engines),
            await stack.enter_async_context(websocket_server_part(settings, engines, secret)),
            api_part(settings, engines, secret),
        ]
        on_ready = partial(announce, settings, listener.getsockname()[1], models, data_dir, began)
        await runner_of("duologue", settings, engines, parts, listener, on_ready).run()


async def run_role(name: RoleName, settings: Settings) -> None:
    """Run one role in this process, on engines that others share, until a signal ends it.

    Raises:
        StartRefused: something is missing in the settings, or they are not valid; the message says what.
        Permanent: the role cannot go on.
    """
    secret = shared_secret(settings)
    _set_up_process(settings)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        engines = await stack.enter_async_context(
            open_engines(settings, shared_redis_url(settings), settings.database_url)
        )
        match name:
            case "websocket-server":
                part = await stack.enter_async_context(websocket_server_part(settings, engines, secret))
            case "ai-consumer":
                part = ai_consumer_part(settings, engines, await stack.enter_async_context(open_models(settings, None)))
            case "message-relay":
                part = message_relay_part(settings, engines)
            case "api":
                part = api_part(settings, engines, secret)
        on_ready = partial(_log.info, "started", role=name, port=listener.getsockname()[1], version=__version__)
        await runner_of(name, settings, engines, [part], listener, on_ready).run()


def migrate_database(settings: Settings, *, sql: bool) -> None:
    """Bring the database's schema up to date, or print the statements that would.

    Raises:
        StartRefused: no adapter knows the database, or the data folder cannot be used.
        StoreUnavailable: it cannot be reached.
    """
    url = settings.database_url or database_in(made_data_dir(settings.data_dir))
    if sql:
        print(migrate_sql(url))  # noqa: T201  # this is the command's output
    else:
        migrate(url)
        print("The database is up to date.")  # noqa: T201


def _set_up_process(settings: Settings) -> None:
    configure_logging(level=settings.log_level, form=settings.log_format, server_id=settings.server_id)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # its own annotation is missing
    raise_file_limit()
