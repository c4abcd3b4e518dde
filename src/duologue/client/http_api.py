"""The parts of the HTTP API that a chat client reads."""

from __future__ import annotations

from typing import Any, Final, TypeAlias
from urllib.parse import quote

import aiohttp

from duologue.client.tokens import ServerUnreachable, TokenSource, unreachable
from duologue.domain.errors import DuologueError

_REQUEST_TIMEOUT: Final = aiohttp.ClientTimeout(total=15)
_PAGE: Final = 100

Row: TypeAlias = dict[str, Any]


class RequestRefused(DuologueError):
    """The API refused a request; the text is its reason."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class HttpApi:
    """Reads conversations, history and characters of one user. `server` is its base address, without a path."""

    def __init__(self, http: aiohttp.ClientSession, server: str, tokens: TokenSource) -> None:
        self._http = http
        self._server = server.rstrip("/")
        self._tokens = tokens

    async def characters(self) -> list[Row]:
        """Return the characters that the user may choose from."""
        items = await self._get("/characters", {})
        return items if isinstance(items, list) else []

    async def conversation(self, conversation_id: str) -> Row:
        """Return a conversation of the user."""
        return dict(await self._get(f"/conversations/{quote(conversation_id, safe='')}", {}))

    async def messages(self, conversation_id: str, *, limit: int) -> list[Row]:
        """Return the newest `limit` rows of a conversation, the oldest first."""
        page = await self._get(f"/conversations/{quote(conversation_id, safe='')}/messages", {"limit": str(limit)})
        return list(page["items"])

    async def changes(self, after: str | None) -> tuple[list[Row], str | None]:
        """Return what is new or changed behind the cursor `after`, oldest first, and the cursor to go on from.

        Without a cursor: the newest page.
        """
        rows: list[Row] = []
        while True:
            params = {"limit": str(_PAGE)} | ({"after": after} if after is not None else {})
            page = await self._get("/messages", params)
            rows += page["items"]
            is_last = len(page["items"]) < _PAGE or after in {None, page["next_cursor"]}
            after = page["next_cursor"]
            if is_last:
                return rows, after

    async def _get(self, path: str, params: dict[str, str]) -> Any:
        """Read a path as the user.

        Raises:
            RequestRefused: the API answers with an error.
            ServerUnreachable: it does not answer, or not in JSON.
            TokenRefused: there is no token for the user.
        """
        headers = {"Authorization": f"Bearer {await self._tokens.token()}"}
        try:
            async with self._http.get(
                self._server + path, params=params, headers=headers, timeout=_REQUEST_TIMEOUT
            ) as response:
                body = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise unreachable(self._server, error) from error
        if response.status >= 400:
            raise self._refusal(response.status, body)
        return body

    def _refusal(self, status: int, body: object) -> DuologueError:
        detail = body.get("detail") if isinstance(body, dict) else None
        words = str(detail or f"status {status}")
        if status >= 500 or status == 429:
            return ServerUnreachable(f"{self._server} cannot answer now: {words}")
        return RequestRefused(status, words)
