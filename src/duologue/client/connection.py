"""A well-behaved client: one socket, opened again whenever it breaks, and a view that is right throughout."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import msgspec
from websockets.asyncio.client import ClientConnection as WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from duologue.client.conversation_view import ConversationView, Exchange, Frame
from duologue.client.event_feed import EventFeed
from duologue.client.events import Closed, Connecting, Dropped, Event, Merged, Open, Received, Reconnecting, State
from duologue.client.http_api import HttpApi, RequestRefused
from duologue.client.outbox import Outbox
from duologue.client.reconnect import ABNORMAL_CLOSE, NORMAL_CLOSE, Reaction, ReconnectPolicy, in_words
from duologue.client.tokens import ServerUnreachable, TokenRefused, TokenSource
from duologue.client.typing_state import TypingElsewhere, TypingTeller
from duologue.domain.errors import DuologueError
from duologue.domain.tasks import end_task
from duologue.protocol.codes import CloseCode

_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_RESUME_SECONDS: Final = 1.0
_HISTORY_RETRY_SECONDS: Final = 2.0
_REFUSALS_KEPT: Final = 1000

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


class MessageRefused(DuologueError):
    """The server refused a message; `frame` is its `error`, the text the reason in words."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(str(frame.get("message", frame.get("code"))))
        self.frame = frame


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Where to connect, as whom, to what.

    `server` is the base address over HTTP; `websocket_server` that of the sockets, if it is another one.
    `conversation_id` is one of the user's or `new`. `last_event_id` goes on where an earlier connection ended.
    `max_unacknowledged` bounds the frames that wait for an answer. `resend_refused` sends a frame again after a
    temporary refusal. `ping_interval_seconds` None sends no pings.
    """

    server: str
    user_id: str
    websocket_server: str | None = None
    character: str | None = None
    conversation_id: str | None = None
    last_event_id: str | None = None
    max_unacknowledged: int = 300
    resend_refused: bool = True
    ping_interval_seconds: float | None = 20.0
    open_timeout_seconds: float = 10.0


@dataclass(slots=True)
class _Ended:
    """How a socket ended: code, reason in words, and for how long it was attached."""

    code: int
    reason: str
    open_seconds: float = 0.0


class ClientConnection:
    """A user's connection. Used as `async with`; what happens is told to `on_event`, `events()` and `until()`.

    `history` is read after the server could not replay everything; without it such a hole stays. `draw` returns random
    numbers from 0 to 1.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        tokens: TokenSource,
        *,
        history: HttpApi | None = None,
        on_event: Callable[[Event], None] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.options = options
        self.view = ConversationView()
        self.state: State = Connecting()
        self.conversation_id = options.conversation_id
        self.limits: Frame = {}
        self.features: frozenset[str] = frozenset()
        self.refusals: dict[str, Frame] = {}
        self.view.last_event_id = options.last_event_id
        self._tokens = tokens
        self._history = history
        self._draw = draw
        self._outbox = Outbox(capacity=options.max_unacknowledged, resend_refused=options.resend_refused)
        self._stops: dict[str, list[str]] = {}
        self._typing = TypingTeller()
        self._typing_elsewhere = TypingElsewhere()
        self._policy = ReconnectPolicy()
        self._leaving = False
        self._complaint: str | None = None
        self._renew_token = False
        self._resume_at = 0.0
        self._cursor: str | None = None
        self._attention = asyncio.Event()
        self._history_wanted = asyncio.Event()
        self._feed = EventFeed(on_event)
        self._socket: WebSocket | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run(), name="client connection")]
        if self._history is not None:
            self._tasks.append(asyncio.create_task(self._follow_history(self._history), name="client history"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the socket cleanly and end. A failure of the connection's own tasks is raised here."""
        self._leaving = True
        if self._socket is not None:
            await self._socket.close()
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if not isinstance(self.state, Closed):
            self.state = Closed(NORMAL_CLOSE, in_words(NORMAL_CLOSE))
            self._feed.publish_last(self.state)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    @property
    def unacknowledged(self) -> int:
        """How many frames the server has not answered."""
        return len(self._outbox)

    def send(self, content: str, *, client_id: str | None = None, **fields: Any) -> str:
        """Send a message, now or as soon as there is a connection; it is sent again until it is acknowledged.

        Args:
            content: the text.
            client_id: the frame's `id`; a fresh one if it is None.
            fields: further fields of the frame: `conversation_id`, `character_id`, `model`, `metadata`.

        Returns:
            The frame's `id`.

        Raises:
            OverflowError: too many frames are not acknowledged yet.
        """
        return self.send_frame({"type": "message", "content": content, **fields}, client_id=client_id)

    def stop(self, message_id: str) -> str:
        """Ask to end the reply to `message_id`. Returns the frame's `id`; see `send`."""
        frame_id = self.send_frame({"type": "stop", "message_id": message_id, **self._conversation_of(message_id)})
        self._stops.setdefault(message_id, []).append(frame_id)
        return frame_id

    def regenerate(self, message_id: str, *, attempt: int | None = None) -> str:
        """Ask for another answer to `message_id`.

        Args:
            message_id: the last message of its conversation.
            attempt: that of the answer which it replaces; the one that the view shows, if it has ended, if it is None.

        Returns:
            The frame's `id`; see `send`.
        """
        exchange = self.view.exchanges.get(message_id)
        if attempt is None and exchange is not None and exchange.ended:
            attempt = exchange.attempt
        chosen = {} if attempt is None else {"attempt": attempt}
        frame = {"type": "regenerate", "message_id": message_id, **chosen, **self._conversation_of(message_id)}
        return self.send_frame(frame)

    def typing(self, *, active: bool, conversation_id: str | None = None) -> None:
        """Tell the user's other devices that somebody types here, or has ended; to be called at every key.

        Best effort, and not more often than needed. Without `conversation_id` it is in the connection's.
        """
        conversation = conversation_id or self.conversation_id
        if conversation is not None and isinstance(self.state, Open) and "typing" in self.features:
            self._typing.tell(conversation, active=active, now=self._now())
            self._attention.set()

    def is_typing_elsewhere(self, conversation_id: str) -> bool:
        """Tell whether somebody types in a conversation on another device of this user."""
        return self._typing_elsewhere.is_active(conversation_id, now=self._now())

    def send_frame(self, frame: Frame, *, client_id: str | None = None) -> str:
        """Send a frame that the server acknowledges. Returns the frame's `id`; see `send`."""
        frame_id = client_id or uuid.uuid4().hex
        wire = _encoder.encode({**frame, "id": frame_id}).decode()
        self._outbox.add(frame_id, wire, now=self._now())
        self._attention.set()
        return frame_id

    async def ask(self, content: str, *, timeout_seconds: float = 60.0, **fields: Any) -> Exchange:
        """Send a message and wait for the outcome of its reply.

        Raises:
            MessageRefused: the server does not take the message.
            ConnectionEnded: the connection ended for good, or the time is over.
        """
        client_id = self.send(content, **fields)

        def answered() -> bool:
            exchange = self.view.by_client_id(client_id)
            return client_id in self.refusals or (exchange is not None and exchange.ended)

        await self.until(answered, timeout_seconds=timeout_seconds)
        exchange = self.view.by_client_id(client_id)
        if exchange is None or not exchange.ended:
            raise MessageRefused(self.refusals[client_id])
        return exchange

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
        """Wait until `condition` holds; it is looked at after each event.

        Raises:
            ConnectionEnded: the connection ended for good, or the time is over.
        """
        await self._feed.until(condition, timeout_seconds=timeout_seconds)

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Iterate over what happens from now on, until and with `Closed`.

        A reader that does not keep up slows the connection down, until the server takes it as a slow one.
        """
        return self._feed.events()

    def _conversation_of(self, message_id: str) -> dict[str, str]:
        """Return the field that names a message's conversation, if the view knows it: it saves the server a look."""
        exchange = self.view.exchanges.get(message_id)
        if exchange is None or exchange.conversation_id is None:
            return {}
        return {"conversation_id": exchange.conversation_id}

    async def _run(self) -> None:
        try:
            closed = await self._reconnect_until_closed()
            await self._emit(closed)
        finally:
            self._feed.end(f"the connection has ended: {self.state}")

    async def _reconnect_until_closed(self) -> Closed:
        while True:
            await self._emit(Connecting())
            try:
                ended = await self._hold_socket()
            except TokenRefused as error:
                return Closed(CloseCode.INVALID_TOKEN, str(error))
            except ServerUnreachable as error:
                ended = _Ended(ABNORMAL_CLOSE, str(error))
            if self._leaving:
                return Closed(NORMAL_CLOSE, in_words(NORMAL_CLOSE))
            reaction = self._policy.closed(ended.code, open_seconds=ended.open_seconds)
            if reaction is Reaction.STAY_CLOSED:
                return Closed(ended.code, ended.reason)
            await self._prepare_reconnect(reaction, ended)

    async def _prepare_reconnect(self, reaction: Reaction, ended: _Ended) -> None:
        self._renew_token = reaction is Reaction.NEW_TOKEN
        if reaction is Reaction.WITHOUT_FRAME:
            await self._emit(Dropped(self._outbox.drop_larger(self.limits.get("frame_bytes"))))
        seconds = 0.0 if self._renew_token else self._policy.delay(self._draw())
        await self._emit(Reconnecting(seconds, ended.reason, ended.code))
        await asyncio.sleep(seconds)

    async def _hold_socket(self) -> _Ended:
        token = await self._tokens.token(renew=self._renew_token)
        self._renew_token = False
        try:
            socket = await connect(
                self._address(),
                subprotocols=[Subprotocol("bearer"), Subprotocol(token)],
                compression=None,
                proxy=None,
                max_size=_MAX_FRAME_BYTES,
                ping_interval=self.options.ping_interval_seconds,
                open_timeout=self.options.open_timeout_seconds,
                close_timeout=2.0,
            )
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, EOFError) as error:
            where = self.options.websocket_server or self.options.server
            return _Ended(ABNORMAL_CLOSE, f"{where} cannot be reached: {str(error) or type(error).__name__}")
        self._socket, self._complaint = socket, None
        try:
            return await self._serve(socket)
        finally:
            self._socket = None
            await socket.close()

    def _address(self) -> str:
        base = (self.options.websocket_server or self.options.server).rstrip("/")
        path = f"/ws/{quote(self.options.character, safe='')}" if self.options.character else "/ws"
        query = {"userid": self.options.user_id}
        if self.conversation_id:
            query["conversation_id"] = self.conversation_id
        if self.view.last_event_id is not None:
            query["last_event_id"] = self.view.last_event_id
        return f"{_websocket_scheme(base)}{path}?{urlencode(query)}"

    async def _serve(self, socket: WebSocket) -> _Ended:
        tending: asyncio.Task[None] | None = None
        opened = self._now()
        try:
            async for text in socket:
                frame = _read(text)
                if tending is None and frame.get("type") == "connection":
                    opened = self._now()
                    self._outbox.reconnected(opened)
                    self._typing.forget()
                    tending = asyncio.create_task(self._tend(socket), name="client resends")
                await self._take(frame)
        except ConnectionClosed:
            pass
        finally:
            if tending is not None:
                await _end(tending)
        seconds = self._now() - opened if tending is not None else 0.0
        code = socket.close_code or ABNORMAL_CLOSE
        return _Ended(code, self._complaint or in_words(code, socket.close_reason), seconds)

    async def _take(self, frame: Frame) -> None:
        exchange = self.view.feed(frame)
        self._typing_elsewhere.feed(frame, now=self._now())
        if self._outbox.answered(frame, now=self._now()) and frame["type"] == "error":
            self._note_refusal(str(frame["id"]), frame)
        if exchange is not None and exchange.ended:
            # Sent again later, for want of an answer, a stop could end another answer that was asked for meanwhile.
            for frame_id in self._stops.pop(exchange.message_id, ()):
                self._outbox.drop(frame_id)
        if frame.get("type") == "connection":
            self._attached(frame)
            await self._emit(Open(frame))
        if frame.get("type") == "error" and exchange is None and frame.get("id") is None:
            # What the server says before it closes a socket tells more than the close code.
            self._complaint = str(frame.get("message") or frame.get("code"))
        if self.view.wants_resume or frame.get("type") == "error":
            self._attention.set()
        await self._emit(Received(frame, exchange))

    def _attached(self, frame: Frame) -> None:
        # `new` must not make another conversation at the next reconnect.
        self.conversation_id = frame.get("conversation_id") or self.conversation_id
        self.limits = frame.get("limits") or {}
        features = frame.get("features")
        self.features = frozenset(map(str, features)) if isinstance(features, list) else frozenset()
        # Not only at a reconnect: a server whose Redis has lost the stream says so on a socket that stays open.
        if self._cursor is None or not frame.get("recovered", True):
            self._history_wanted.set()

    def _note_refusal(self, frame_id: str, frame: Frame) -> None:
        self.refusals[frame_id] = frame
        if len(self.refusals) > _REFUSALS_KEPT:
            del self.refusals[next(iter(self.refusals))]

    async def _tend(self, socket: WebSocket) -> None:
        """Send what is due on this socket: new frames, resends, a `resume` when a piece is missing."""
        while True:
            # Cleared before the work: what is added meanwhile sets it again and is not overslept.
            self._attention.clear()
            for wire in self._outbox.take_due(self._now()):
                await socket.send(wire)
            for frame in self._typing.take_due():
                await socket.send(_encoder.encode(frame).decode())
            await self._resume_if_wanted(socket)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_next_work()):
                    await self._attention.wait()

    async def _resume_if_wanted(self, socket: WebSocket) -> None:
        if self.view.wants_resume and self._now() >= self._resume_at:
            self._resume_at = self._now() + _RESUME_SECONDS
            self.view.resuming()
            frame = {"type": "resume", "last_event_id": self.view.last_event_id or ""}
            await socket.send(_encoder.encode(frame).decode())

    def _seconds_to_next_work(self) -> float | None:
        resume_at = self._resume_at if self.view.wants_resume else None
        times = [time for time in (self._outbox.next_due(), resume_at) if time is not None]
        return max(0.0, min(times) - self._now()) if times else None

    async def _follow_history(self, history: HttpApi) -> None:
        """Read what the replay could not bring, whenever that is wanted; the first time also to have a cursor."""
        while True:
            await self._history_wanted.wait()
            self._history_wanted.clear()
            try:
                rows, self._cursor = await history.changes(self._cursor)
            except (RequestRefused, TokenRefused):
                continue
            except ServerUnreachable:
                self._history_wanted.set()
                await asyncio.sleep(_HISTORY_RETRY_SECONDS)
                continue
            await self._emit(Merged(self.view.merge(rows)))

    async def _emit(self, event: Event) -> None:
        if isinstance(event, State):
            self.state = event
        await self._feed.publish(event)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _end(tending: asyncio.Task[None]) -> None:
    """Cancel a task and wait for it; a socket that was closed under it is no failure."""
    with contextlib.suppress(ConnectionClosed):
        await end_task(tending)


def _read(text: str | bytes) -> Frame:
    """Return a frame; an empty one for what is none, so that it is ignored like a type that is not known."""
    try:
        frame = _decoder.decode(text)
    except msgspec.DecodeError:
        return {}
    return frame if isinstance(frame, dict) else {}


def _websocket_scheme(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    return {"http": "ws", "https": "wss"}.get(scheme, scheme) + separator + rest
