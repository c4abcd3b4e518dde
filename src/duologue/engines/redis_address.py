"""Where a Redis is and how to be let in, read from a URL as redis-py and others write it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from duologue.domain.errors import StartRefused

_DEFAULT_PORT: Final = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """A Redis: behind `path` if it is a Unix socket, else at `host` and `port`, with TLS if `tls` is set."""

    path: str = ""
    host: str = ""
    port: int = _DEFAULT_PORT
    username: str = ""
    password: str = ""
    database: int = 0
    tls: ssl.SSLContext | None = None


def parse_redis_url(url: str) -> RedisAddress:
    """Read `redis://[[user]:password@]host[:port][/db]`, `rediss://…` (TLS) or `unix:///path[?db=0]`.

    `username`, `password` and `db` may stand in the query too; for TLS `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`
    (files) and `ssl_cert_reqs=none`.

    Raises:
        StartRefused: it is no such URL, or a file of it cannot be read. The message does not repeat the password.
    """
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise StartRefused("the address of Redis does not begin with redis://, rediss:// or unix://")
    is_socket = parts.scheme == "unix"
    try:
        return RedisAddress(
            path=unquote(parts.path) if is_socket else "",
            host=parts.hostname or "localhost",
            port=parts.port or _DEFAULT_PORT,
            username=unquote(parts.username or "") or query.get("username", ""),
            password=unquote(parts.password or "") or query.get("password", ""),
            database=int(query.get("db") or ("" if is_socket else parts.path.strip("/")) or 0),
            tls=_tls_context(query) if parts.scheme == "rediss" else None,
        )
    except ValueError as error:
        raise StartRefused("the address of Redis has a port or a database that is no number") from error
    except OSError as error:
        raise StartRefused(f"the address of Redis names a file that cannot be used: {error}") from error


def _tls_context(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := query.get("ssl_certfile"):
        context.load_cert_chain(certificate, query.get("ssl_keyfile"))
    return context
