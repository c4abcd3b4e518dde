"""The API's calls about dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import aiohttp
import msgspec

from duologue.client.tokens import ServerUnreachable, unreachable
from duologue.dlq.access import Access
from duologue.domain.errors import DuologueError

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)
_PAGE: Final = 100

Letter: TypeAlias = dict[str, Any]


class LetterRefused(DuologueError):
    """The server refuses what is to be done with one letter. `code` is the API's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OperatorRefused(DuologueError):
    """The server refuses the operator, or the request as a whole."""


class DeadLetters:
    """Dead letters of one server, as an operator.

    Every call raises ServerUnreachable if the server, or what it needs, does not answer, and OperatorRefused.
    """

    def __init__(self, http: aiohttp.ClientSession, access: Access) -> None:
        self._http = http
        self._server = access.server
        self._headers = {"Authorization": f"Bearer {access.token}"}

    async def walk(self, filters: Mapping[str, str]) -> AsyncIterator[Letter]:
        """Yield the letters that meet the filters (names and values of the API's), the newest first."""
        cursor: str | None = None
        while True:
            page = {"limit": str(_PAGE), **filters} | ({"cursor": cursor} if cursor else {})
            found = await self._call("GET", "", page)
            for letter in found["items"]:
                yield letter
            cursor = found["next_cursor"]
            if cursor is None:
                return

    async def show(self, letter_id: str) -> Letter:
        """Return a letter with its record. Raises LetterRefused if there is none."""
        return dict(await self._call("GET", _path(letter_id)))

    async def replay(self, letter_id: str) -> Letter:
        """Replay a letter; return it as it stands then. Raises LetterRefused."""
        return dict(await self._call("POST", f"{_path(letter_id)}/replay"))

    async def drop(self, letter_id: str) -> Letter:
        """Drop a letter; return it as it stands then. Raises LetterRefused."""
        return dict(await self._call("DELETE", _path(letter_id)))

    async def _call(self, method: str, path: str, params: Mapping[str, str] | None = None) -> Any:
        url = f"{self._server}/admin/dlq{path}"
        try:
            async with self._http.request(
                method, url, params=params, headers=self._headers, timeout=_TIMEOUT
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(self._server, error) from error
        try:
            body = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            body = None
        if response.status >= 400 or not isinstance(body, dict):
            raise self._refusal(response.status, body)
        return body

    def _refusal(self, status: int, body: object) -> DuologueError:
        said = body if isinstance(body, dict) else {}
        code, detail = str(said.get("code", "")), _words(said.get("detail", f"status {status}"))
        if code.startswith("dead_letter_") or code == "invalid_request":
            return LetterRefused(code, detail)
        if status in (401, 403):
            return OperatorRefused(f"{self._server} does not take this token: {detail}")
        if status in (429, 502, 503, 504):
            return ServerUnreachable(f"{self._server} cannot answer now: {detail}")
        if not said:
            return OperatorRefused(f"{self._server} does not answer as a Duologue does (status {status}).")
        return OperatorRefused(f"{self._server} refuses: {detail}")


def _words(detail: object) -> str:
    """Return what the API says in words: it lists what is wrong with a parameter."""
    if isinstance(detail, list):
        return "; ".join(str(problem.get("msg", problem)) for problem in detail if isinstance(problem, dict))
    return str(detail)


def _path(letter_id: str) -> str:
    return f"/{quote(letter_id, safe='')}"


@asynccontextmanager
async def open_dead_letters(access: Access) -> AsyncIterator[DeadLetters]:
    """Open the dead letters of a server."""
    async with aiohttp.ClientSession() as http:
        yield DeadLetters(http, access)
