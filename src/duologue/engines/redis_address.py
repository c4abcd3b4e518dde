"""Where a Redis is and how to be let in, read from a URL as redis-py and others write it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qs, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from duologue.config import Settings
from duologue.domain.errors import StartRefused

_DEFAULT_PORT: Final = 6379
_PARAMETERS: Final = frozenset(
    ["username", "password", "db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"]
)


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


def shared_redis_url(settings: Settings) -> str:
    """Return the address of the Redis that the settings name, empty if they name none.

    `REDIS_PASSWORD` and `REDIS_SSL_CA_LOCATION` are in it, unless the address has its own.

    Raises:
        StartRefused: it is no address.
    """
    host = f"[{settings.redis_host}]" if ":" in settings.redis_host else settings.redis_host
    url = settings.redis_url or (f"redis://{host}:{settings.redis_port}" if host else "")
    password = settings.redis_password.get_secret_value()
    parts = _split(url)
    query = dict(parse_qsl(parts.query))
    if password and not parts.password and "password" not in query:
        query["password"] = password
    if settings.redis_ssl_ca_location and parts.scheme == "rediss":
        query.setdefault("ssl_ca_certs", settings.redis_ssl_ca_location)
    return urlunsplit(parts._replace(query=urlencode(query))) if url else ""


def parse_redis_url(url: str) -> RedisAddress:
    """Read `redis://[[user]:password@]host[:port][/db]`, `rediss://…` (TLS) or `unix:///path[?db=0]`.

    `username`, `password` and `db` may stand in the query too; for TLS `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`
    (files), `ssl_cert_reqs=none` and `ssl_check_hostname=false`.

    Raises:
        StartRefused: it is no such URL, it has a parameter that is not known, or a file of it cannot be read. The
            message does not repeat the password.
    """
    parts = _split(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise StartRefused("the address of Redis does not begin with redis://, rediss:// or unix://")
    if unknown := sorted(query.keys() - _PARAMETERS):
        raise StartRefused(f"the address of Redis has a parameter that is not known: {', '.join(unknown)}")
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


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # Not as the cause: it may quote the password.
        raise StartRefused("the address of Redis is no URL; it looks like redis://:password@host:6379/0") from None


def _tls_context(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    unchecked = _choice(query, "ssl_cert_reqs", {"none": True, "required": False})
    if unchecked or not _choice(query, "ssl_check_hostname", {"true": True, "false": False}, default=True):
        context.check_hostname = False
    if unchecked:
        context.verify_mode = ssl.CERT_NONE
    if certificate := query.get("ssl_certfile"):
        context.load_cert_chain(certificate, query.get("ssl_keyfile"))
    return context


def _choice(query: dict[str, str], name: str, values: dict[str, bool], *, default: bool = False) -> bool:
    text = query.get(name)
    if text is None:
        return default
    # `CERT_NONE` is how other programs write the same.
    value = values.get(text.lower().removeprefix("cert_"))
    if value is None:
        raise StartRefused(f"the address of Redis has {name}={text}; it is one of {', '.join(values)}")
    return value
