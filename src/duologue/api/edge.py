"""The outermost layer of HTTP: correlation ids, security headers, a bound on bodies, and the end of every error.

Plain ASGI, since it runs for each request; sockets pass through untouched.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duologue.api.errors import CORRELATION_KEY, error_body, unexpected
from duologue.observability.metrics import HTTP_REQUESTS, HTTP_SECONDS

MAX_BODY_BYTES: Final = 256 * 1024

_CORRELATION_HEADER: Final = "X-Correlation-ID"
_SANE_CORRELATION_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

_METHODS: Final = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cache-Control": "no-store",  # tokens and conversations are nobody else's; what may be kept says so itself
}


class HttpEdge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, scope, receive, send).run()


class _Exchange:
    """One request and its answer."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive_outer = receive
        self._send_outer = send
        self._headers = Headers(scope=scope)
        self._correlation_id = _correlation_id(self._headers)
        self._received_bytes = 0
        self._status = 0  # of the answer, once it began
        self._began_at = time.perf_counter()

    async def run(self) -> None:
        """Answer the request, whatever happens. Raises only what broke off an answer that had begun."""
        self._scope[CORRELATION_KEY] = self._correlation_id
        structlog.contextvars.bind_contextvars(correlation_id=self._correlation_id)  # this request's task only
        try:
            await self._respond()
        except Exception as error:  # noqa: BLE001  # the edge of every request: logged, and answered with its id
            await self._fail(error)
        finally:
            self._count()

    async def _respond(self) -> None:
        if _announced_bytes(self._headers) > MAX_BODY_BYTES:
            body = error_body(_too_large(), "content_too_large", self._correlation_id)
            await self._answer(JSONResponse(body, status_code=413, headers={"Connection": "close"}))
            return
        await self._app(self._scope, self._receive, self._send)

    async def _fail(self, error: Exception) -> None:
        response = unexpected(error, self._correlation_id, method=self._scope["method"], path=self._scope["path"])
        if self._status:  # half an answer cannot be mended: break it off, so that it is not taken for a whole one
            raise error
        await self._answer(response)

    async def _answer(self, response: JSONResponse) -> None:
        await response(self._scope, self._receive_outer, self._send)

    def _count(self) -> None:
        """Count by the route's pattern: paths and methods of a client's own making would be series without end."""
        route = getattr(self._scope.get("route"), "path", "none")
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        HTTP_REQUESTS.labels(route, method, self._status).inc()
        HTTP_SECONDS.labels(route).observe(time.perf_counter() - self._began_at)

    async def _receive(self) -> Message:
        message = await self._receive_outer()
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            if self._received_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, _too_large(), headers={"Connection": "close"})
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers[_CORRELATION_HEADER] = self._correlation_id
        await self._send_outer(message)


def _correlation_id(headers: Headers) -> str:
    """Return the client's own id for its request if it is fit for logs and headers, else a new one."""
    given = headers.get(_CORRELATION_HEADER, "")
    return given if _SANE_CORRELATION_ID.fullmatch(given) else uuid.uuid4().hex


def _announced_bytes(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def _too_large() -> str:
    return f"The body of a request may have {MAX_BODY_BYTES} bytes."
