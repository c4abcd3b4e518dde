"""The page at `/`: one file, with a policy that lets its own inline script and style run and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

PAGE: Final = Path(__file__).with_name("static") / "index.html"

_INLINE: Final = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


def router(path: Path = PAGE) -> APIRouter:
    """Serve the page at `/` and `/test-ui.html`; it is read once, now."""
    content = path.read_bytes()
    headers = {
        "Content-Security-Policy": content_security_policy(content.decode()),
        "Cache-Control": "no-cache",  # ask each time; the answer is a short 304 until the next version
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    }
    api = APIRouter(include_in_schema=False)

    async def page(request: Request) -> Response:
        if _is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="text/html", headers=headers)

    for route in ("/", "/test-ui.html"):
        api.add_api_route(route, page, methods=["GET", "HEAD"])
    return api


def content_security_policy(page: str) -> str:
    """Return a policy (CSP level 3) that names the page's inline scripts and styles by their SHA-256."""
    sources: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        sources[kind.lower()].append(f"'{_source_hash(text)}'")
    allowed = {kind: " ".join(hashes) or "'none'" for kind, hashes in sources.items()}
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {allowed['script']}",
            f"style-src {allowed['style']}",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


def _source_hash(text: str) -> str:
    # Browsers hash the text as the parser sees it, in which every line ends with one LF.
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    return "sha256-" + base64.b64encode(hashlib.sha256(normal.encode()).digest()).decode()


def _is_known(request: Request, etag: str) -> bool:
    """Tell whether the client has this version (RFC 9110, section 13.1.2)."""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in known
