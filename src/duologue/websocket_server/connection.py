"""One socket: the I/O around a session. What the session wants done is done here, and what comes of it goes back in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, get_args

import structlog
from starlette import types as asgi

from duologue.auth.tokens import Identity
from duologue.delivery.names import EventPosition
from duologue.delivery.stream import AttachReply
from duologue.domain.errors import Rejected, Retryable
from duologue.domain.ids import new_id
from duologue.observability.metrics import (
    ACK_SECONDS,
    CONNECTIONS_CLOSED,
    FRAMES_RECEIVED,
    FRAMES_REFUSED,
    LOOP_FAILURES,
    SLOW_READERS,
)
from duologue.protocol import frames
from duologue.protocol.codes import ErrorCode
from duologue.protocol.parsing import Bounds, FrameRefused, parse_frame
from duologue.protocol.session import (
    DEFAULT_RETRY_SECONDS,
    Accept,
    Attach,
    Close,
    Effect,
    Handshake,
    Place,
    Reattach,
    Resolve,
    Send,
    SendError,
    Session,
    State,
    Submit,
    TellTyping,
    Verify,
)
from duologue.websocket_server.admission import Admitted
from duologue.websocket_server.egress import Egress
from duologue.websocket_server.ingress import new_correlation_id
from duologue.websocket_server.places import Author
from duologue.websocket_server.transport import transport_of
from duologue.websocket_server.typing_notices import TYPING_BURST, TYPING_PER_SECOND, TokenBucket

if TYPE_CHECKING:
    from duologue.websocket_server.server import WebSocketServer

_log = structlog.get_logger(__name__)

MAX_IN_FLIGHT: Final = 32
"""Frames of one socket that wait for the log at once. Further ones wait in the transport."""

_RECEIVED: Final = {kind: FRAMES_RECEIVED.labels(kind.__struct_config__.tag) for kind in get_args(frames.ClientFrame)}

_NOT_IN_TIME: Final = "the service is not available"


class Connection:
    """One socket, from its handshake to its end. To the hub it is a `Socket`."""

    __slots__ = (
        "_appends",
        "_author",
        "_draining",
        "_egress",
        "_identity",
        "_receive",
        "_send",
        "_server",
        "_session",
        "_typing",
    )

    def __init__(self, server: WebSocketServer, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        self._server = server
        self._receive = receive
        self._send = send
        self._session = Session(new_id(), server.terms, server.clock)
        self._egress: Egress[EventPosition] = Egress(
            send,
            transport_of(scope),
            limit_bytes=server.settings.send_queue_bytes,
            on_written=self._on_written,
            on_overflow=self._on_overflow,
        )
        self._identity: Identity | None = None
        self._author: Author | None = None
        self._appends: set[asyncio.Task[None]] = set()
        self._draining = False
        self._typing: TokenBucket | None = None

    @property
    def identity(self) -> Identity:
        """Whose it is; known once the token was verified."""
        if self._identity is None:
            raise AssertionError("the token of this connection was not verified")
        return self._identity

    @property
    def place(self) -> Place:
        """Where its messages go; known once the store was asked."""
        if self._author is None:
            raise AssertionError("the place of this connection was not looked up")
        return self._author.place

    @property
    def ending(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._session.state in (State.CLOSING, State.CLOSED)

    @property
    def queued_bytes(self) -> int:
        """What waits in its send queue."""
        return self._egress.waiting_bytes

    async def run(self, handshake: Handshake) -> None:
        """Serve the socket to its end."""
        clean = False
        try:
            await self._receive()  # ASGI's "websocket.connect"
            await self._connect(handshake)
            clean = await self._read()
        finally:
            self._session.client_closed()
            await self._finish(clean=clean)

    # The hub's Socket

    @property
    def session_id(self) -> str:
        """Its name among all sockets of all servers."""
        return self._session.session_id

    def send_durable(self, event: EventPosition, frame: bytes) -> None:
        """Send a frame of the user's stream."""
        self._egress.put_durable(frame, event)

    def send_delta(self, frame: bytes) -> None:
        """Send a piece of a reply."""
        self._egress.put_delta(frame)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        self._egress.put(frame)

    async def drained(self) -> None:
        """Return when there is room for a part of a long replay."""
        await self._egress.drained()

    def feed_lost(self) -> None:
        """Nothing can be heard of the user's stream: close, so that the client goes elsewhere."""
        self._do_all(self._session.feed_lost())

    def revoked(self) -> None:
        """The user's tokens hold no more."""
        self._do_all(self._session.revoked())

    # What the server asks of it

    def displaced(self) -> None:
        """The user has a newer socket too many: close this one."""
        self._do_all(self._session.displaced())

    async def drain(self) -> None:
        """Take nothing new, wait until what was taken is acknowledged, and close."""
        self._draining = True  # a frame that comes now is not acknowledged, so the client sends it again elsewhere
        if self._appends:
            await asyncio.wait(self._appends)
        self._do_all(self._session.draining())

    # Connecting

    async def _connect(self, handshake: Handshake) -> None:
        correlation_id = new_correlation_id()
        try:
            await self._carry_out(self._session.handshake_received(handshake))
            if self._server.draining:  # it began meanwhile, and may have missed this one
                self._do_all(self._session.draining())
        except OSError:
            _log.debug("connection_lost_early", correlation_id=correlation_id)
            self._session.client_closed()
        except Exception:  # noqa: BLE001  # the edge of connecting: reported, and the client is told
            LOOP_FAILURES.labels("connect").inc()
            _log.exception("connecting_failed", correlation_id=correlation_id)
            self._do_all(self._session.failed(correlation_id))

    def _verify(self, effect: Verify) -> list[Effect]:
        try:
            identity = self._server.verifier.verify(effect.token)
        except Rejected as refusal:
            refused = self._session.renewal_refused if effect.renewal else self._session.token_refused
            return refused(str(refusal))
        if effect.renewal:
            return self._renewed(identity)
        self._identity = identity
        return self._session.token_verified(identity.user)

    def _renewed(self, identity: Identity) -> list[Effect]:
        if identity.user == self.identity.user and identity.uid not in (None, self.place.uid):
            return self._session.renewal_refused("the token is that of an earlier user of this name")
        return self._session.token_renewed(identity.user)

    async def _resolve(self, effect: Resolve) -> list[Effect]:
        try:
            place = await self._server.places.of_connection(self.identity, effect.character, effect.conversation_id)
        except Rejected as refusal:
            if refusal.code == ErrorCode.INVALID_TOKEN:
                return self._session.token_refused(str(refusal))
            return self._session.not_found(refusal)
        except Retryable as error:
            return self._session.unavailable(error)
        self._author = Author(self.identity, place)
        self._server.add(self)
        return self._session.resolved(place)

    async def _attach(self, effect: Attach) -> list[Effect]:
        try:
            await self._server.hub.attach(self.identity.user, self, effect.last_event_id, self._greet)
        except Retryable as error:
            return self._session.unavailable(error)
        return self._session.attached()

    def _greet(self, reply: AttachReply) -> None:
        self._do_all(self._session.greeted(recovered=reply.recovered, event_id=reply.event_id))

    # Open

    async def _read(self) -> bool:
        """Read to the end of the socket; return whether the client closed it in order."""
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return self._session.state is State.OPEN and _closed_in_order(message)
            try:
                await self._carry_out(self._frame(message))
            except OSError:  # the client is gone: what comes next says so
                continue
            except Exception:  # noqa: BLE001  # the edge of the loop: reported, and the socket lives on
                self._unexpected("read", None, new_correlation_id())

    def _frame(self, message: asgi.Message) -> list[Effect]:
        try:
            frame = _parsed(message.get("text"), self._server.bounds)
        except FrameRefused as refusal:
            FRAMES_RECEIVED.labels("refused").inc()
            return self._session.frame_refused(refusal)
        _RECEIVED[type(frame)].inc()
        return self._session.frame_received(frame)

    async def _submit(self, frame: frames.Submittable) -> None:
        """Admit a frame and start its append; appends start in the order of the frames and end on their own.

        One frame is admitted after another, which keeps the order; nothing waits for the log but the `ack`.
        """
        if self._draining or self._author is None:
            return
        started = asyncio.get_running_loop().time()
        correlation_id = new_correlation_id()
        while len(self._appends) >= MAX_IN_FLIGHT:
            await asyncio.wait(self._appends, return_when=asyncio.FIRST_COMPLETED)
        try:
            admitted = await self._server.ingress.admit(self._author, frame, correlation_id)
        except (Rejected, Retryable) as error:
            self._do_all(self._session.rejected(_refusal(error), client_id=frame.id, correlation_id=correlation_id))
        except Exception:  # noqa: BLE001  # the edge of a frame: reported, and the client is told
            self._unexpected("admit", frame.id, correlation_id)
        else:
            # Tasks begin in the order of their making, and an append takes its place before its first suspension.
            append = asyncio.create_task(self._append(admitted, started), name="append")
            self._appends.add(append)
            append.add_done_callback(self._appends.discard)

    async def _append(self, admitted: Admitted, started: float) -> None:
        client_id, correlation_id = admitted.client_id, admitted.record.correlation_id
        try:
            with self._server.appending():
                await self._server.ingress.append(admitted)
        except Retryable as error:
            self._do_all(self._session.rejected(_refusal(error), client_id=client_id, correlation_id=correlation_id))
        except Exception:  # noqa: BLE001  # the edge of a frame: reported, and the client is told
            self._unexpected("append", client_id, correlation_id)
        else:
            ACK_SECONDS.observe(asyncio.get_running_loop().time() - started)
            self._acknowledge(admitted)
            await self._server.ingress.accepted(admitted)

    def _acknowledge(self, admitted: Admitted) -> None:
        record = admitted.record
        self._do_all(
            self._session.acknowledged(
                client_id=admitted.client_id,
                message_id=record.message_id,
                conversation_id=record.conversation_id,
                timestamp=admitted.timestamp,
                duplicate=admitted.duplicate,
            )
        )

    async def _tell_typing(self, frame: frames.ClientTyping) -> None:
        """Pass on that somebody types here; what comes too often is dropped."""
        if self._draining or self._author is None:
            return
        if self._typing is None:  # most connections never tell
            self._typing = TokenBucket(TYPING_BURST, TYPING_PER_SECOND)
        if not self._typing.take(asyncio.get_running_loop().time()):
            return
        try:
            await self._server.typing.tell(self._author, self.session_id, frame)
        except Rejected as refusal:
            self._do_all(self._session.rejected(refusal, client_id=None))

    def _unexpected(self, loop: str, client_id: str | None, correlation_id: str) -> None:
        """Called at a loop's edge, while an exception is handled that nobody expected."""
        LOOP_FAILURES.labels(loop).inc()
        _log.exception("frame_failed", correlation_id=correlation_id, session_id=self._session.session_id)
        refusal = Rejected(ErrorCode.INTERNAL_ERROR, "something went wrong")
        self._do_all(self._session.rejected(refusal, client_id=client_id, correlation_id=correlation_id))

    # Effects

    async def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Submit():
                    await self._submit(effect.frame)
                case TellTyping():
                    await self._tell_typing(effect.frame)
                case Accept():
                    await self._send({"type": "websocket.accept", "subprotocol": effect.subprotocol})
                case Verify():
                    await self._carry_out(self._verify(effect))
                case Resolve():
                    await self._carry_out(await self._resolve(effect))
                case Attach():
                    await self._carry_out(await self._attach(effect))
                case Reattach():
                    await self._server.hub.resume(self, effect.last_event_id)
                case _:
                    self._do(effect)

    def _do_all(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        """Carry out what needs no waiting: all that sends, and the close."""
        match effect:
            case Send():
                self._egress.put(effect.frame)
            case SendError():
                FRAMES_REFUSED.labels(effect.code).inc()
                self._egress.put(effect.frame)
            case Close():
                CONNECTIONS_CLOSED.labels(str(int(effect.code))).inc()
                self._egress.close(effect.code, drop=effect.drop)
            case _:
                raise AssertionError(f"{type(effect).__name__} cannot be carried out here")

    def _on_written(self, event: EventPosition) -> None:
        self._server.hub.written(self, event)

    def _on_overflow(self) -> None:
        SLOW_READERS.inc()
        self._do_all(self._session.reader_too_slow())

    async def _finish(self, *, clean: bool) -> None:
        """Leave nothing behind: what was taken is seen through, the hub and the server forget the socket."""
        if self._author is not None:
            self._server.remove(self)
            await self._server.hub.detach(self, clean=clean)
        await self._egress.aclose()
        if self._appends:
            await asyncio.wait(self._appends)


def _refusal(error: Rejected | Retryable) -> Rejected:
    """Return what a client is told of an error. That of a dependency stays in the logs."""
    if isinstance(error, Rejected):
        return error
    retry_after = error.retry_after_seconds or DEFAULT_RETRY_SECONDS
    return Rejected(ErrorCode.SERVICE_UNAVAILABLE, _NOT_IN_TIME, retry_after_seconds=retry_after)


def _parsed(text: str | None, bounds: Bounds) -> frames.ClientFrame:
    if text is None:
        raise FrameRefused(ErrorCode.INVALID_FRAME, "a frame is text, this one is binary")
    return parse_frame(text, bounds)


def _closed_in_order(message: asgi.Message) -> bool:
    """Whether the client sent a close frame, with a code that says nothing bad or with none.

    uvicorn gives 1005 also for a connection that broke, but then no `reason`.
    """
    return "reason" in message and message.get("code") in (1000, 1001, 1005)
