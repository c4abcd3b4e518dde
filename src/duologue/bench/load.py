"""Open-loop load: messages leave when their time has come, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec

from duologue.bench.bare_socket import BareSocket, open_socket
from duologue.bench.mock_llm import STAMP_PATTERN

_LATE_SECONDS: Final = 0.05


class _Seen(msgspec.Struct):
    """The fields of the server's frames that are measured here."""

    type: str
    id: str | None = None
    message_id: str | None = None
    content: str | None = None
    seq: int = 0
    from_seq: int | None = None
    attempt: int = 0
    code: str | None = None


_decoder = msgspec.json.Decoder(_Seen)


class Exchange(msgspec.Struct):
    """One message and what came of it. Times are of `time.perf_counter`, 0 when it has not happened."""

    sent: float = 0.0
    acked: float = 0.0
    first_delta: float = 0.0
    answered: float = 0.0
    deltas: int = 0
    next_seq: int = 1
    attempt: int = 0
    text: str = ""
    responses: int = 0
    failures: int = 0
    gaps: int = 0
    mismatches: int = 0


class LoadUser:
    """One user with one socket."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.exchanges: dict[str, Exchange] = {}
        self.errors: dict[str, int] = {}
        self.delta_delays: list[float] = []
        self.refusals: dict[str, float] = {}
        """Seconds from a message's frame to its refusal, by the client's own id."""
        self.socket: BareSocket | None = None
        self._by_client_id: dict[str, str] = {}
        self._sent: dict[str, float] = {}
        self._sequence = 0

    async def connect(self, ws_url: str, token: str) -> None:
        """Open the socket."""
        url = f"{ws_url}/ws?token={token}&userid={self.user_id}"
        self.socket = await open_socket(url, self._on_text, lambda _code: None)

    def send(self, content: str) -> None:
        """Send one message."""
        self._sequence += 1
        client_id = str(self._sequence)
        self._sent[client_id] = time.perf_counter()
        frame = {"type": "message", "id": client_id, "content": content}
        if self.socket is not None:
            self.socket.send(msgspec.json.encode(frame))

    def forget(self) -> None:
        """Drop what was measured so far; only when everything is answered."""
        self.exchanges.clear()
        self.errors.clear()
        self.delta_delays.clear()
        self.refusals.clear()
        self._sent.clear()
        self._by_client_id.clear()

    @property
    def unanswered(self) -> int:
        """Messages sent that have no outcome yet."""
        return len(self._sent) - sum(1 for exchange in self.exchanges.values() if exchange.answered)

    @property
    def waiting(self) -> int:
        """Messages sent that were neither refused nor have an outcome yet."""
        return self.unanswered - len(self.refusals)

    def measured(self) -> list[Exchange]:
        """Return every sent message's exchange, also of those that nothing came of."""
        result = []
        for client_id, sent in self._sent.items():
            exchange = self.exchanges.get(self._by_client_id.get(client_id, ""), Exchange())
            exchange.sent = sent
            result.append(exchange)
        return result

    def _on_text(self, text: bytes) -> None:
        frame = _decoder.decode(text)
        if frame.type == "error" and frame.message_id is None:
            self.errors[frame.code or ""] = self.errors.get(frame.code or "", 0) + 1
            if frame.id in self._sent:
                self.refusals[frame.id] = time.perf_counter() - self._sent[frame.id]
        elif frame.message_id is not None:
            exchange = self.exchanges.get(frame.message_id)
            if exchange is None:
                exchange = self.exchanges[frame.message_id] = Exchange()
            self._record(frame, frame.message_id, exchange)

    def _record(self, frame: _Seen, message_id: str, exchange: Exchange) -> None:
        now = time.perf_counter()
        if frame.type == "delta":
            self._on_delta(frame, exchange, now)
        elif frame.type == "ack":
            exchange.acked = now
            self._by_client_id[frame.id or ""] = message_id
        elif frame.type == "echo":
            self._by_client_id[frame.id or ""] = message_id
        elif frame.type == "response":
            exchange.responses += 1
            exchange.answered = now
            if exchange.deltas and not (frame.content or "").startswith(exchange.text):
                exchange.mismatches += 1
        elif frame.type == "error":
            exchange.failures += 1
            exchange.answered = now

    def _on_delta(self, frame: _Seen, exchange: Exchange, now: float) -> None:
        if not exchange.deltas:
            exchange.first_delta = now
        if frame.attempt > exchange.attempt:
            exchange.attempt, exchange.next_seq, exchange.text = frame.attempt, 1, ""
        if (frame.from_seq or frame.seq) != exchange.next_seq:
            exchange.gaps += 1
        exchange.next_seq = frame.seq + 1
        exchange.deltas += 1
        exchange.text += frame.content or ""
        self._note_delay(frame.content or "")

    def _note_delay(self, content: str) -> None:
        """Read the stamps of the load model: `@<seconds since the epoch>` before a piece left."""
        if "@" in content:
            now = time.time()
            self.delta_delays.extend(now - float(stamp) for stamp in STAMP_PATTERN.findall(content))


async def connect_users(url: str, ws_url: str, count: int, prefix: str) -> list[LoadUser]:
    """Make guests and open a socket for each, a hundred at a time."""
    users = [LoadUser(f"{prefix}-{number}") for number in range(count)]
    gate = asyncio.Semaphore(100)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:

        async def connect(user: LoadUser) -> None:
            async with gate:
                async with session.post(f"{url}/token", params={"userid": user.user_id}) as response:
                    response.raise_for_status()
                    token = (await response.json())["token"]
                await user.connect(ws_url, token)

        await asyncio.gather(*(connect(user) for user in users))
    return users


async def send_at_rate(users: Sequence[LoadUser], *, rate: float, seconds: float, content: str, seed: int) -> int:
    """Send messages with exponential gaps, users in turn. Return how many left more than 50 ms late."""
    generator = random.Random(seed)  # noqa: S311  # arrivals, not secrets
    start = time.perf_counter()
    due, sent, late = 0.0, 0, 0
    while True:
        due += generator.expovariate(rate)
        if due > seconds:
            return late
        wait = start + due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif -wait > _LATE_SECONDS:
            late += 1
        users[sent % len(users)].send(f"{content} {sent}")
        sent += 1


async def until_answered(users: Sequence[LoadUser], seconds: float, *, refused: bool = False) -> int:
    """Wait until every message has its outcome, at most `seconds`; return how many have none.

    With `refused`, a refusal is as good as an outcome.
    """
    deadline = time.perf_counter() + seconds
    while True:
        open_count = sum(user.waiting if refused else user.unanswered for user in users)
        if not open_count or time.perf_counter() >= deadline:
            return open_count
        await asyncio.sleep(0.05)
