"""The routes of the sockets, and what a handshake says."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.datastructures import Headers, QueryParams
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from duologue.protocol.session import Handshake
from duologue.websocket_server.server import WebSocketServer

_RETRY_SECONDS: Final = b"1"


class _Endpoint:
    """A plain ASGI application: no object a socket that the framework would keep for as long as it is open."""

    def __init__(self, server: WebSocketServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._server.takes_sockets:
            await self._server.serve(scope, receive, send, handshake_of(scope))
        else:
            await _send_elsewhere(receive, send)


async def _send_elsewhere(receive: Receive, send: Send) -> None:
    """Answer a handshake with 503 (ASGI's extension `websocket.http.response`): a proxy then asks another server."""
    await receive()
    headers = [(b"retry-after", _RETRY_SECONDS), (b"content-length", b"0")]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b""})


def router(server: WebSocketServer) -> APIRouter:
    """Return the routes `GET /ws` and `GET /ws/{character_id}`."""
    endpoint = _Endpoint(server)
    return APIRouter(routes=[WebSocketRoute("/ws", endpoint), WebSocketRoute("/ws/{character_id}", endpoint)])


def handshake_of(scope: Scope) -> Handshake:
    """Return what a client asks for, from the path, the query, the headers and the subprotocols of its request."""
    query = QueryParams(scope["query_string"])
    subprotocols = tuple(scope["subprotocols"])
    return Handshake(
        token=_bearer(Headers(scope=scope)) or _offered_token(subprotocols) or query.get("token") or None,
        user_id=query.get("userid") or None,
        character=scope.get("path_params", {}).get("character_id"),
        conversation_id=query.get("conversation_id") or None,
        last_event_id=query.get("last_event_id") or None,
        subprotocols=subprotocols,
    )


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _offered_token(subprotocols: tuple[str, ...]) -> str | None:
    """Return the token of `bearer, <token>`: what stands behind `bearer`."""
    if "bearer" not in subprotocols:
        return None
    place = subprotocols.index("bearer") + 1
    return subprotocols[place] if place < len(subprotocols) else None
