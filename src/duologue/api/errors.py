"""Errors of the HTTP API: one form for all, `{"detail", "code", "correlation_id"}`, with the status that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from duologue.domain.errors import Rejected, Retryable
from duologue.store.database import StoreRefused

_log = structlog.get_logger(__name__)

CORRELATION_KEY: Final = "duologue.correlation_id"
"""Where the edge leaves the request's correlation id in its ASGI scope."""

RETRY_AFTER_SECONDS: Final = 1.0
"""What is told when a dependency is away and nothing better is known."""

ExceptionHandler = Callable[[Request, Any], Coroutine[Any, Any, Response]]

_STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "invalid_token": 401,
    "userid_mismatch": 403,
    "guest_tokens_off": 403,
    "operator_only": 403,
    "conversation_not_found": 404,
    "character_not_found": 404,
    "message_not_found": 404,
    "dead_letter_not_found": 404,
    "userid_taken": 409,
    "dead_letter_replaying": 409,
    "dead_letter_replayed": 409,
    "dead_letter_dropped": 409,
    "dead_letter_incomplete": 409,
    "dead_letter_superseded": 409,
    "dead_letter_refused": 409,
    "still_generating": 409,
    "not_last": 409,
    "content_too_large": 413,
    "content_empty": 422,
    "content_too_long": 422,
    "invalid_userid": 422,
    "userid_missing": 422,
    "model_not_allowed": 422,
    "rate_limited": 429,
    "overloaded": 503,
    "service_unavailable": 503,
}
"""A code that is not listed is a fault of the request: 400."""

_CODE_OF_STATUS: Final[Mapping[int, str]] = {
    401: "invalid_token",
    413: "content_too_large",
    422: "invalid_request",
    500: "internal_error",
    503: "service_unavailable",
}


def correlation_id(request: Request) -> str:
    """Return the id under which the logs know this request."""
    return str(request.scope.get(CORRELATION_KEY, ""))


def error_body(detail: Any, code: str, correlation: str) -> dict[str, Any]:
    """Return the one form of errors. `detail` is text, or FastAPI's list of what is wrong with a request."""
    return {"detail": detail, "code": code, "correlation_id": correlation}


def exception_handlers() -> dict[int | type[Exception], ExceptionHandler]:
    """Return what turns exceptions into answers."""
    return {
        Rejected: _rejected,
        Retryable: _unavailable,
        StoreRefused: _refused_data,
        RequestValidationError: _invalid,
        HTTPException: _http,
    }


def unexpected(error: Exception, correlation: str, *, method: str, path: str) -> JSONResponse:
    """Log an error that nothing handled, and return what the client may know of it."""
    _log.error("request_failed", correlation_id=correlation, method=method, path=path, exc_info=error)
    body = error_body("Something went wrong. The correlation id finds it in the logs.", "internal_error", correlation)
    return JSONResponse(body, status_code=500)


async def _rejected(request: Request, error: Rejected) -> Response:
    status = _STATUS_OF_CODE.get(error.code, 400)
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers |= _retry_after(error.retry_after_seconds)
    return _answer(request, status, str(error), error.code, headers)


async def _unavailable(request: Request, error: Retryable) -> Response:
    _log.warning("request_unavailable", correlation_id=correlation_id(request), error=str(error))
    detail = "The service cannot answer at the moment. Nothing was changed, or asking again is safe."
    return _answer(request, 503, detail, "service_unavailable", _retry_after(error.retry_after_seconds))


async def _refused_data(request: Request, error: StoreRefused) -> Response:
    # Values are checked before they reach the store, so this is a check that is missing: worth a line in the logs.
    path = request.url.path
    _log.error("request_refused_by_store", correlation_id=correlation_id(request), path=path, error=str(error))
    return _answer(request, 422, "The request holds a value that cannot be stored.", "invalid_request", {})


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    # Without `input`: what a client sent by mistake, a password say, does not come back or into its logs.
    problems = [{key: value for key, value in problem.items() if key != "input"} for problem in error.errors()]
    return _answer(request, 422, jsonable_encoder(problems), "invalid_request", {})


async def _http(request: Request, error: HTTPException) -> Response:
    code = _CODE_OF_STATUS.get(error.status_code) or _phrase_code(error.status_code)
    return _answer(request, error.status_code, error.detail, code, error.headers or {})


def _phrase_code(status: int) -> str:
    """Return a status' own phrase as a code: `not_found`, `method_not_allowed`."""
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")


def _answer(request: Request, status: int, detail: Any, code: str, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(error_body(detail, code, correlation_id(request)), status_code=status, headers=dict(headers))


def _retry_after(seconds: float | None) -> dict[str, str]:
    """Return the header in whole seconds (RFC 9110, section 10.2.3), never 0."""
    return {"Retry-After": str(max(1, math.ceil(RETRY_AFTER_SECONDS if seconds is None else seconds)))}
