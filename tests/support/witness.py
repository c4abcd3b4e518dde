"""A user whose client remembers all it was told, so that the end can be compared with the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from duologue.client.connection import ClientConnection, ConnectionOptions
from duologue.client.conversation_view import Frame
from duologue.client.events import Event, Open, Received, Reconnecting
from duologue.client.http_api import HttpApi
from duologue.client.tokens import GuestTokens, TokenFile


@dataclass
class _Text:
    """What was told of a reply: its pieces up to and with number `seq` of one attempt."""

    attempt: int = 0
    seq: int = 0
    text: str = ""


class Witness:
    """One user on one well-behaved client.

    What is against the protocol is collected in `faults`, each in words: a piece out of its order, twice or late, an
    attempt that was given up, a reply that is not what its pieces were.
    """

    def __init__(self, name: str, history: HttpApi) -> None:
        self.name = name
        self.connection: ClientConnection
        self.history = history
        self.acknowledged: dict[str, str] = {}
        self.echoed: list[str] = []
        self.answered: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.attempts: dict[str, int] = {}
        self.event_ids: list[str] = []
        self.errors: list[Frame] = []
        self.servers: list[str] = []
        self.recovered: list[bool] = []
        self.closes: list[int] = []
        self.faults: list[str] = []
        self._texts: dict[str, _Text] = {}
        self._sent = 0

    def say(self) -> None:
        """Send the next message; its text is the user's name and a number."""
        self.connection.send(f"{self.name} asks {self._sent}", client_id=f"{self.name}-{self._sent}")
        self._sent += 1

    @property
    def sent(self) -> int:
        """How many messages were sent by `say`."""
        return self._sent

    def hear(self, event: Event) -> None:
        """Take note of what the connection tells."""
        if isinstance(event, Received):
            self._note(event.frame)
        elif isinstance(event, Open):
            self.servers.append(event.frame["server_id"])
            self.recovered.append(event.frame["recovered"])
        elif isinstance(event, Reconnecting):
            self.closes.append(event.code)

    def _note(self, frame: Frame) -> None:
        kind, message_id = frame.get("type"), frame.get("message_id")
        if kind in ("ack", "echo"):  # an echo says as well that the log has it, if the ack got lost with its socket
            self.acknowledged[frame["id"]] = frame["message_id"]
        if kind == "echo":
            self.echoed.append(frame["message_id"])
        if "event_id" in frame and kind != "connection":
            self.event_ids.append(frame["event_id"])
        if kind == "error" and message_id is None:
            self.errors.append(frame)
        if message_id is not None and "attempt" in frame:
            self._note_reply(str(message_id), frame)

    def _note_reply(self, message_id: str, frame: Frame) -> None:
        kind, attempt = frame["type"], frame["attempt"]
        told = self._texts.setdefault(message_id, _Text())
        self.attempts[message_id] = max(attempt, self.attempts.get(message_id, 0))
        if attempt > told.attempt:
            told.attempt, told.seq, told.text = attempt, 0, ""
        if attempt < told.attempt:
            self._fault(frame, f"attempt {told.attempt} was told before")
        elif kind == "delta":
            self._note_piece(told, frame, ended=message_id in self.outcomes)
        elif kind == "snapshot":
            told.seq, told.text = frame["seq"], frame["content"]
        elif kind in ("response", "error"):
            self.outcomes[message_id] += 1
            self.answered.append(message_id)
            if kind == "response" and not frame["content"].startswith(told.text):
                self._fault(frame, f"its pieces were {told.text!r}")

    def _note_piece(self, told: _Text, frame: Frame, *, ended: bool) -> None:
        if ended:
            self._fault(frame, "the reply has ended")
        if frame.get("from_seq", frame["seq"]) != told.seq + 1:
            self._fault(frame, f"the last piece was {told.seq}")
        told.seq = frame["seq"]
        told.text += frame["content"]

    def _fault(self, frame: Frame, words: str) -> None:
        self.faults.append(f"{self.name}, {words}: {frame}")

    @property
    def unanswered(self) -> set[str]:
        """Acknowledged messages without an outcome so far."""
        return set(self.acknowledged.values()) - set(self.outcomes)

    async def until_answered(self, messages: int | None = None, seconds: float = 60.0) -> None:
        """Wait until that many messages (all) were acknowledged and every one of them was told its outcome."""
        expected = self._sent if messages is None else messages
        await self.connection.until(
            lambda: len(self.acknowledged) >= expected and not self.unanswered, timeout_seconds=seconds
        )

    async def until_shown(self, seconds: float = 60.0) -> None:
        """Wait until the client shows an outcome for every message, told in a frame or read in the history."""
        await self.connection.until(
            lambda: all(self._shows(number) for number in range(self._sent)), timeout_seconds=seconds
        )

    def _shows(self, number: int) -> bool:
        exchange = self.connection.view.by_client_id(f"{self.name}-{number}")
        return exchange is not None and exchange.ended

    async def until_echoed(self, messages: int) -> None:
        """Wait until that many messages came back as echoes."""
        await self.connection.until(lambda: len(set(self.echoed)) >= messages)

    async def stored(self) -> list[dict[str, Any]]:
        """Return the conversation's messages as the store has them, oldest first."""
        rows: list[dict[str, Any]] = []
        before: dict[str, str] | None = {}
        while before is not None:
            path = f"/conversations/{self.connection.conversation_id}/messages"
            page = await self.history._get(path, {"limit": "100"} | before)
            rows = page["items"] + rows
            before = {"before": page["next_cursor"]} if page["next_cursor"] else None
        return rows

    async def assert_kept(self, *, told: bool = True) -> None:
        """What was sent with `say`, what the client was told and shows, and what the store has, are the same, once.

        Args:
            told: every outcome came in a frame; else the history may have had to tell some.
        """
        rows = await self.stored()
        said = [row["id"] for row in rows if row["role"] == "user"]
        assert self.faults == []
        assert len(said) == len(set(said)) == self._sent
        assert set(self.outcomes.values()) <= {1}, f"{self.name}: {self.outcomes}"
        assert len(self.event_ids) == len(set(self.event_ids))
        for heard in (self.echoed, self.answered):
            assert heard == (said if told else [message_id for message_id in said if message_id in set(heard)])
        for number in range(self._sent):
            self._assert_shown(number, rows)

    def _assert_shown(self, number: int, rows: list[dict[str, Any]]) -> None:
        shown = self.connection.view.by_client_id(f"{self.name}-{number}")
        assert shown is not None
        (row,) = [row for row in rows if row["id"] == shown.message_id]
        assert row["content"] == f"{self.name} asks {number}"
        (reply,) = [row for row in rows if row.get("reply_to") == shown.message_id]
        assert (reply["state"], shown.text) == ("complete", reply["content"])
        assert reply["content"].count(row["content"]) <= 1, "the text is doubled"


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
