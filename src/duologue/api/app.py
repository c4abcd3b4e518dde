"""The HTTP application of one process: routers, the form of errors, the edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, FastAPI

from duologue import __version__
from duologue.api.edge import HttpEdge
from duologue.api.errors import exception_handlers

VERSION_PREFIX: Final = "/api/v1"

_DESCRIPTION: Final = """
Real-time conversations with AI. Messages and replies travel over the WebSocket at `/ws`; this API gives tokens,
characters, conversations and their history. Every path is also served under `/api/v1`.

Errors have one form: `{"detail", "code", "correlation_id"}`. Lists answer `{"items", "next_cursor"}`; pass
`next_cursor` back to go on.
"""


def create_app(*, title: str, routers: Sequence[APIRouter] = (), root_routers: Sequence[APIRouter] = ()) -> FastAPI:
    """Compose the application.

    Args:
        title: shown in `/docs`.
        routers: served at `/` and under `/api/v1`.
        root_routers: served at `/` only: sockets, the page, the open list of characters.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        description=_DESCRIPTION,
        exception_handlers=exception_handlers(),
        redirect_slashes=False,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_middleware(HttpEdge)
    for router in [*root_routers, *routers]:
        app.include_router(router)
    for router in routers:
        app.include_router(router, prefix=VERSION_PREFIX, include_in_schema=False)
    return app
