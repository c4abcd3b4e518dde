"""A user whose client remembers all it was told, so that the end can be compared with the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from duologue.client.connection import ClientConnection, ConnectionOptions
from duologue.client.conversation_view import Frame
from duologue.client.events import Event, Open, Received
from duologue.client.http_api import HttpApi
from duologue.client.tokens import GuestTokens, TokenFile


class Witness:
    """One user on one well-behaved client."""

    def __init__(self, name: str, history: HttpApi) -> None:
        self.name = name
        self.connection: ClientConnection
        self.history = history
        self.acknowledged: dict[str, str] = {}
        self.echoed: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.attempts: dict[str, int] = {}
        self.event_ids: list[str] = []
        self.stale_frames: list[Frame] = []

    def hear(self, event: Event) -> None:
        """Take note of what the connection tells."""
        if isinstance(event, Received):
            self._note(event.frame)

    def _note(self, frame: Frame) -> None:
        kind, message_id = frame.get("type"), frame.get("message_id")
        if kind in ("ack", "echo"):  # an echo says as well that the log has it, if the ack got lost with its socket
            self.acknowledged[frame["id"]] = frame["message_id"]
        if kind == "echo":
            self.echoed.add(frame["message_id"])
        if "event_id" in frame and kind != "connection":
            self.event_ids.append(frame["event_id"])
        if message_id is not None and "attempt" in frame:
            if frame["attempt"] < self.attempts.get(message_id, 0):
                self.stale_frames.append(frame)
            self.attempts[message_id] = max(frame["attempt"], self.attempts.get(message_id, 0))
        if kind == "response" or (kind == "error" and message_id is not None):
            self.outcomes[str(message_id)] += 1

    @property
    def unanswered(self) -> set[str]:
        """Acknowledged messages without an outcome so far."""
        return set(self.acknowledged.values()) - set(self.outcomes)

    async def until_answered(self, messages: int, seconds: float = 60.0) -> None:
        """Wait until that many messages were acknowledged and every one of them has its outcome."""
        await self.connection.until(
            lambda: len(self.acknowledged) >= messages and not self.unanswered, timeout_seconds=seconds
        )

    async def until_echoed(self, messages: int) -> None:
        """Wait until that many messages came back as echoes."""
        await self.connection.until(lambda: len(self.echoed) >= messages)

    async def stored(self) -> list[dict[str, Any]]:
        """Return the conversation's messages as the store has them, oldest first."""
        conversation_id = self.connection.conversation_id
        assert conversation_id is not None
        return await self.history.messages(conversation_id, limit=100)


@asynccontextmanager
async def witness(url: str, name: str, folder: Path, **options: Any) -> AsyncIterator[Witness]:
    """Connect a user, and wait for that; their token is kept in a file in `folder`."""
    async with aiohttp.ClientSession() as http:
        tokens = GuestTokens(http, url, name, file=TokenFile(folder / f"{name}.json"))
        api = HttpApi(http, url, tokens)
        user = Witness(name, api)
        user.connection = ClientConnection(
            ConnectionOptions(server=url, user_id=name, **options), tokens, history=api, on_event=user.hear
        )
        async with user.connection:
            # A guest's name is gone with the answer to the request for its token: that is not what is looked at here.
            await user.connection.until(lambda: isinstance(user.connection.state, Open))
            yield user
