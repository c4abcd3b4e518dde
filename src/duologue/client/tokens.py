"""Guest tokens: fetched from the server, kept per server and user, so that a guest stays the same person."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
import platformdirs

from duologue.domain.errors import DuologueError

_RENEW_BEFORE_SECONDS: Final = 60
_REQUEST_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)


class ServerUnreachable(DuologueError):
    """The server does not answer HTTP at its address, or not sensibly."""


class TokenRefused(DuologueError):
    """The server issues no token for this user; the text says why, in words for people."""


class GuestToken(NamedTuple):
    """A token and when it ends, in seconds since the Unix epoch."""

    token: str
    expires_at: float


class TokenSource(Protocol):
    """Where a connection gets its user's token from."""

    async def token(self, *, renew: bool = False) -> str:
        """Return a token; with `renew` a new one, since the server took the last one as invalid.

        Raises:
            TokenRefused: there is none.
            ServerUnreachable: the server that issues it cannot be reached.
        """
        ...


class FixedToken:
    """A token that was given and cannot be renewed."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self, *, renew: bool = False) -> str:
        """Return the token.

        Raises:
            TokenRefused: a new one is asked for.
        """
        if renew:
            raise TokenRefused("The server does not accept this token any longer.")
        return self._token


def config_folder() -> Path:
    """Return the folder of this user's settings of Duologue."""
    return platformdirs.user_config_path("duologue")


class TokenFile:
    """Tokens on disk, by server and user: a JSON file of mode 0600, replaced in one step."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or config_folder() / "tokens.json"

    def load(self, server: str, user_id: str) -> GuestToken | None:
        """Return the token kept for a user of a server, expired or not; None if there is none."""
        entry = self._read().get(server, {}).get(user_id)
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            return None
        return GuestToken(entry["token"], float(entry.get("expires_at", 0)))

    def save(self, server: str, user_id: str, token: GuestToken) -> None:
        """Keep a user's token. Another process that does the same at this moment loses nothing by it."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            tokens = self._read()
            tokens.setdefault(server, {})[user_id] = token._asdict()
            self._replace(json.dumps(tokens, indent=2) + "\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        servers = content.items() if isinstance(content, dict) else ()
        return {server: users for server, users in servers if isinstance(users, dict)}

    def _replace(self, text: str) -> None:
        # mkstemp makes the file with mode 0600, so the tokens are never readable for others, not even for a moment.
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".tokens-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class GuestTokens:
    """A guest's tokens: the kept one while it is good, else a new one, for which the old one stands surety."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        server: str,
        user_id: str,
        *,
        file: TokenFile | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._http = http
        self._server = server.rstrip("/")
        self._user_id = user_id
        self._file = file
        self._clock = clock
        self._request_key = secrets.token_urlsafe(24)
        self._held = file.load(self._server, user_id) if file else None

    async def token(self, *, renew: bool = False) -> str:
        """Return the kept token while it is good, else a new one.

        Raises:
            TokenRefused: the name belongs to somebody else, or the server issues no guest tokens.
            ServerUnreachable: the server does not answer.
        """
        held = self._held
        if held is None or renew or held.expires_at - _RENEW_BEFORE_SECONDS < self._clock():
            held = await fetch_guest_token(
                self._http,
                self._server,
                self._user_id,
                previous=held,
                request_key=self._request_key,
                now=self._clock(),
            )
            self._held = held
            if self._file is not None:
                self._file.save(self._server, self._user_id, held)
        return held.token


async def fetch_guest_token(
    http: aiohttp.ClientSession,
    server: str,
    user_id: str,
    *,
    previous: GuestToken | None = None,
    request_key: str = "",
    now: float,
) -> GuestToken:
    """Ask `server` for a guest token: `POST /token?userid=`. `previous` proves that the name is this guest's.

    A request whose answer was lost may have taken the name: with the same secret `request_key` it is had again.

    Raises:
        TokenRefused: the server refuses, for the reason in the text.
        ServerUnreachable: it does not answer, or not as this API does.
    """
    headers = {"Authorization": f"Bearer {previous.token}"} if previous else {}
    if request_key:
        headers["Idempotency-Key"] = request_key
    try:
        async with http.post(
            f"{server}/token", params={"userid": user_id}, headers=headers, timeout=_REQUEST_TIMEOUT
        ) as response:
            body = await response.json(content_type=None)
            status = response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise unreachable(server, error) from error
    if status == 200 and isinstance(body, dict) and isinstance(body.get("token"), str):
        return GuestToken(body["token"], now + float(body.get("expires_in", 0)))
    raise _refusal(status, body, server, user_id)


def unreachable(server: str, error: Exception) -> ServerUnreachable:
    """Return the error for a `server` that could not be reached because of `error`, in words."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno is not None:
        reason = os.strerror(error.os_error.errno)
    else:
        reason = str(error) or type(error).__name__
    return ServerUnreachable(f"{server} cannot be reached: {reason}")


def _refusal(status: int, body: object, server: str, user_id: str) -> DuologueError:
    detail = body.get("detail") if isinstance(body, dict) else None
    if status == 409:
        return TokenRefused(f"The name {user_id} belongs to somebody else on {server}. Choose another one.")
    if status >= 500 or status == 429:
        return ServerUnreachable(f"{server} cannot issue a token now: {detail or f'status {status}'}")
    return TokenRefused(f"{server} issues no token for {user_id}: {detail or f'status {status}'}")
