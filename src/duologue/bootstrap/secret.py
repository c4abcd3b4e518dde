"""The key that tokens are signed with; a role by itself shares it, and everything else, with others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from duologue.auth.secret import checked_secret, secret_of
from duologue.config import Settings
from duologue.domain.errors import StartRefused
from duologue.engines.redis_address import shared_redis_url
from duologue.store.database import backend_of


def own_secret(settings: Settings, data_dir: Path) -> str:
    """Return the key of a process that is alone: the one that is given, or that of its data folder."""
    given = settings.jwt_secret.get_secret_value()
    return checked_secret(given) if given else secret_of(data_dir)


def shared_secret(settings: Settings) -> str:
    """Return the key that all processes sign with, once it is sure that they share everything else too.

    Raises:
        StartRefused: something is missing; the message names all of it.
    """
    missing = list(_missing(settings))
    if missing:
        raise StartRefused("a role by itself needs what it shares with the others:\n  " + "\n  ".join(missing))
    return checked_secret(settings.jwt_secret.get_secret_value())


def _missing(settings: Settings) -> Iterator[str]:
    if not settings.jwt_secret.get_secret_value():
        yield "JWT_SECRET: the key that signs tokens, 32 characters or more, the same in every process"
    if not shared_redis_url(settings):
        yield "REDIS_URL (or REDIS_HOST): the Redis or Valkey of all processes"
        if not settings.kafka_bootstrap_servers:
            yield "KAFKA_BOOTSTRAP_SERVERS: the log; without it the log is Streams in that Redis"
    if not settings.database_url:
        yield "DATABASE_URL: the PostgreSQL of all processes"
    elif backend_of(settings.database_url) != "postgresql":
        yield "DATABASE_URL: a PostgreSQL; SQLite is for one process"
