"""What a client shows: frames and history rows in, exchanges out. No I/O.

An exchange is a user's message and the reply to it. The rules are those of "What a client does" in the protocol:
whatever is repeated, late, or of an earlier attempt changes nothing, so the same frames in any order that the protocol
allows, any number of times, end in the same text.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

Frame: TypeAlias = Mapping[str, Any]
"""A decoded frame, or a row of the history."""

_ENDED_ROWS: Final = {"complete", "stopped"}


class Phase(enum.Enum):
    """Where the reply of an exchange stands."""

    WAITING = "waiting"
    WRITING = "writing"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(slots=True)
class Exchange:
    """A user's message and its reply, as this client knows them.

    `content` and `timestamp` are None until the message itself was seen: a delta may come before its echo. `text` is
    the reply shown, `attempt` and `seq` say up to where. After a failed regeneration `text` is the earlier answer.
    """

    message_id: str
    arrival: int
    conversation_id: str | None = None
    client_id: str | None = None
    content: str | None = None
    timestamp: str | None = None
    phase: Phase = Phase.WAITING
    text: str = ""
    attempt: int = 0
    seq: int = 0
    finish_reason: str | None = None
    error: Frame | None = None
    queue_position: int | None = None
    answer: str | None = None
    answer_attempt: int = 0
    ended_attempts: set[int] = field(default_factory=set)

    @property
    def ended(self) -> bool:
        """Whether the reply has its outcome, as far as this client knows."""
        return self.phase in {Phase.COMPLETE, Phase.FAILED}

    def is_stale(self, attempt: int) -> bool:
        """Tell whether a frame of `attempt` is a repeat of one that has ended, or of one that was given up."""
        return attempt < self.attempt or attempt in self.ended_attempts

    def begin(self, attempt: int) -> None:
        """Start to show `attempt`, if it is a later one: a higher attempt in any frame implies a `reset`."""
        if attempt > self.attempt:
            self.attempt, self.seq, self.text = attempt, 0, ""
            self.phase, self.finish_reason, self.error = Phase.WRITING, None, None
            self.queue_position = None

    def write(self, text: str, seq: int) -> None:
        """Show `text` as the reply up to and with piece `seq`."""
        self.text, self.seq, self.phase, self.queue_position = text, seq, Phase.WRITING, None


class ConversationView:
    """The exchanges of one user over all conversations, and the position in the user's stream.

    `keep` bounds how many exchanges are remembered; the oldest ended ones are forgotten first.
    """

    def __init__(self, *, keep: int = 10_000) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.last_event_id: str | None = None
        self._keep = keep
        self._arrivals = 0
        self._gaps: set[str] = set()
        self._by_client_id: dict[str, Exchange] = {}
        self._resuming = False
        self._handlers: dict[str, Callable[[Frame], Exchange | None]] = {
            "echo": self._on_echo,
            "queued": self._on_queued,
            "delta": self._on_delta,
            "snapshot": self._on_snapshot,
            "reset": self._on_reset,
            "response": self._on_response,
            "error": self._on_error,
        }

    @property
    def wants_resume(self) -> bool:
        """Whether a piece is missing and no `resume` is under way for it."""
        return bool(self._gaps) and not self._resuming

    def resuming(self) -> None:
        """Note that a `resume` was sent: gaps ask for no other one until the next `connection`."""
        self._resuming = True

    def feed(self, frame: Frame) -> Exchange | None:
        """Take in a frame of the server.

        Returns:
            The exchange that it belongs to, changed or not; None for frames that belong to none or are not known.
        """
        kind = frame.get("type")
        if kind == "connection":
            self._gaps.clear()
            self._resuming = False
        exchange = self._dispatch(kind, frame)
        event_id = frame.get("event_id")
        if isinstance(event_id, str) and event_id:
            self.last_event_id = event_id
        return exchange

    def merge(self, rows: Iterable[Frame]) -> list[Exchange]:
        """Take in rows of the history (`GET /messages`, `GET /conversations/{id}/messages`): the higher attempt wins.

        Returns:
            The exchanges that the rows belong to.
        """
        return [exchange for row in rows if (exchange := self._merge_row(row)) is not None]

    def in_conversation(self, conversation_id: str) -> list[Exchange]:
        """Return the exchanges of a conversation, the oldest first, messages not seen yet at the end."""
        found = [one for one in self.exchanges.values() if one.conversation_id == conversation_id]
        return sorted(found, key=lambda one: (one.timestamp is None, one.timestamp or "", one.arrival))

    def by_client_id(self, client_id: str) -> Exchange | None:
        """Return the exchange of the message that was sent with this `id`, None if it was not echoed yet."""
        return self._by_client_id.get(client_id)

    def _dispatch(self, kind: object, frame: Frame) -> Exchange | None:
        handler = self._handlers.get(kind) if isinstance(kind, str) else None
        if handler is None or not isinstance(frame.get("message_id"), str):
            return None
        return handler(frame)

    def _on_echo(self, frame: Frame) -> Exchange:
        exchange = self._exchange(frame["message_id"], frame)
        self._name(exchange, frame.get("id"))
        exchange.content = _text(frame, "content") or ""
        exchange.timestamp = _text(frame, "timestamp")
        return exchange

    def _on_queued(self, frame: Frame) -> Exchange:
        exchange = self._exchange(frame["message_id"], frame)
        if exchange.phase is not Phase.WRITING:  # it may be another answer that waits
            exchange.queue_position = _number(frame, "position", 0)
        return exchange

    def _on_delta(self, frame: Frame) -> Exchange:
        exchange = self._exchange(frame["message_id"], frame)
        attempt, seq = _number(frame, "attempt", 1), _number(frame, "seq", 0)
        if exchange.is_stale(attempt):
            return exchange
        exchange.begin(attempt)
        if seq <= exchange.seq:
            return exchange
        if _number(frame, "from_seq", seq) != exchange.seq + 1:
            self._gaps.add(exchange.message_id)
            return exchange
        exchange.write(exchange.text + (_text(frame, "content") or ""), seq)
        return exchange

    def _on_snapshot(self, frame: Frame) -> Exchange:
        exchange = self._exchange(frame["message_id"], frame)
        attempt, seq = _number(frame, "attempt", 1), _number(frame, "seq", 0)
        if exchange.is_stale(attempt):
            return exchange
        exchange.begin(attempt)
        # One (attempt, seq) always has one text: a snapshot behind what is shown tells nothing new.
        if seq >= exchange.seq:
            exchange.write(_text(frame, "content") or "", seq)
            self._gaps.discard(exchange.message_id)
        return exchange

    def _on_reset(self, frame: Frame) -> Exchange:
        exchange = self._exchange(frame["message_id"], frame)
        attempt = _number(frame, "attempt", 1)
        if not exchange.is_stale(attempt):
            exchange.begin(attempt)
        return exchange

    def _on_response(self, frame: Frame) -> Exchange:
        exchange = self._exchange(frame["message_id"], frame)
        self._complete(exchange, frame, _number(frame, "attempt", max(exchange.attempt, 1)))
        return exchange

    def _on_error(self, frame: Frame) -> Exchange | None:
        if frame.get("code") != "generation_failed":
            return None
        exchange = self._exchange(frame["message_id"], frame)
        self._fail(exchange, frame, _number(frame, "attempt", max(exchange.attempt, 1)))
        return exchange

    def _complete(self, exchange: Exchange, source: Frame, attempt: int) -> None:
        if attempt in exchange.ended_attempts:
            return
        exchange.ended_attempts.add(attempt)
        text = _text(source, "content") or ""
        # An answer that comes after its regeneration began is not shown, but it is what a failure returns to.
        if attempt > exchange.answer_attempt:
            exchange.answer, exchange.answer_attempt = text, attempt
        if attempt >= exchange.attempt:
            self._end(exchange, Phase.COMPLETE, attempt)
            exchange.text, exchange.finish_reason, exchange.error = text, _text(source, "finish_reason"), None
        elif exchange.phase is Phase.FAILED:
            exchange.text = exchange.answer or ""

    def _fail(self, exchange: Exchange, error: Frame, attempt: int) -> None:
        if attempt in exchange.ended_attempts:
            return
        exchange.ended_attempts.add(attempt)
        if attempt >= exchange.attempt:
            exchange.begin(attempt)
            self._end(exchange, Phase.FAILED, attempt)
            exchange.error = error
            if exchange.answer is not None:
                exchange.text = exchange.answer

    def _end(self, exchange: Exchange, phase: Phase, attempt: int) -> None:
        exchange.phase, exchange.attempt, exchange.queue_position = phase, attempt, None
        self._gaps.discard(exchange.message_id)
        self._forget_oldest()

    def _merge_row(self, row: Frame) -> Exchange | None:
        message_id = _text(row, "id") if row.get("role") == "user" else _text(row, "reply_to")
        if message_id is None:
            return None
        exchange = self._exchange(message_id, row)
        if row.get("role") == "user":
            self._name(exchange, row.get("client_id"))
            exchange.content = _text(row, "content") or ""
            exchange.timestamp = _text(row, "created_at") or exchange.timestamp
        else:
            self._merge_reply(exchange, row)
        return exchange

    def _merge_reply(self, exchange: Exchange, row: Frame) -> None:
        state, attempt = row.get("state"), _number(row, "attempt", 1)
        if state in _ENDED_ROWS:
            self._complete(exchange, row, attempt)
        elif state == "failed":
            self._fail(exchange, _error_of(row), attempt)

    def _exchange(self, message_id: str, source: Frame) -> Exchange:
        exchange = self.exchanges.get(message_id)
        if exchange is None:
            self._arrivals += 1
            exchange = self.exchanges[message_id] = Exchange(message_id, self._arrivals)
        exchange.conversation_id = exchange.conversation_id or _text(source, "conversation_id")
        return exchange

    def _name(self, exchange: Exchange, client_id: object) -> None:
        if isinstance(client_id, str) and client_id:
            exchange.client_id = client_id
            self._by_client_id[client_id] = exchange

    def _forget_oldest(self) -> None:
        if len(self.exchanges) <= self._keep:
            return
        oldest = next((one for one in self.exchanges.values() if one.ended), None)
        if oldest is not None:
            del self.exchanges[oldest.message_id]
            self._by_client_id.pop(oldest.client_id or "", None)


def _text(source: Frame, name: str) -> str | None:
    value = source.get(name)
    return value if isinstance(value, str) else None


def _number(source: Frame, name: str, default: int) -> int:
    value = source.get(name)
    return value if isinstance(value, int) else default


def _error_of(row: Frame) -> Frame:
    """Return a failed row's reason in the form of an `error` frame."""
    error = row.get("error")
    details: Frame = error if isinstance(error, Mapping) else {"message": error}
    return {"type": "error", "code": "generation_failed", "message": "The reply failed.", **details}
