"""A connection's states, without I/O: what happened goes in, what is to be done comes out.

    CONNECTING -> VERIFYING -> RESOLVING -> ATTACHING -> OPEN -> CLOSING -> CLOSED

Each method is an input and returns effects, to be carried out in their order. An input that has no place in a state is
an error of the caller, `IllegalTransition`. Once CLOSING, everything that was still under way comes too late and has no
effect. There is no room here for frames that come before OPEN: the caller does not read the socket until then, so they
wait in the transport, in order, and the client feels its back-pressure.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

import msgspec

from duologue.domain.clock import Clock, rfc3339
from duologue.domain.errors import Rejected, Retryable
from duologue.domain.ids import UserKey
from duologue.protocol import frames
from duologue.protocol.codes import CloseCode, ErrorCode
from duologue.protocol.parsing import FrameRefused

FEATURES: Final = ["resume", "auth", "snapshot", "queued", "stop", "regenerate", "typing"]
"""What this server can do beyond `message`: told to clients, which offer nothing that is not listed."""

DEFAULT_RETRY_SECONDS: Final = 2.0


class State(Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    VERIFYING = "verifying"
    RESOLVING = "resolving"
    ATTACHING = "attaching"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class IllegalTransition(RuntimeError):
    """An input came in a state that does not know it."""


class Terms(msgspec.Struct, frozen=True):
    """What a server tells and asks of every connection. `models` are those that a message may name."""

    server_id: str
    app_name: str
    limits: frames.Limits
    models: frozenset[str]


class Handshake(msgspec.Struct, frozen=True):
    """What a client asked for when it connected. `user_id` is the one it claims; the token says who it is."""

    token: str | None = None
    user_id: str | None = None
    character: str | None = None
    conversation_id: str | None = None
    last_event_id: str | None = None
    subprotocols: tuple[str, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """Whose connection it is, as the store knows them, and the conversation that its messages go to."""

    uid: str
    username: str
    character_id: str
    conversation_id: str


class Accept(msgspec.Struct, frozen=True, gc=False):
    """Accept the handshake, with this subprotocol."""

    subprotocol: str | None


class Verify(msgspec.Struct, frozen=True, gc=False):
    """Verify a token. A renewal is answered by `token_renewed` or `renewal_refused`."""

    token: str
    renewal: bool = False


class Resolve(msgspec.Struct, frozen=True, gc=False):
    """Find the user, the character and the conversation."""

    character: str | None
    conversation_id: str | None


class Attach(msgspec.Struct, frozen=True, gc=False):
    """Attach to the user's stream, behind this event, or behind what the user's devices were sent."""

    last_event_id: str | None


class Reattach(msgspec.Struct, frozen=True, gc=False):
    """Attach to the user's stream again, on the same socket, behind this event."""

    last_event_id: str


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a frame."""

    frame: bytes


class SendError(msgspec.Struct, frozen=True, gc=False):
    """Send an `error` frame with this code."""

    frame: bytes
    code: ErrorCode


class Submit(msgspec.Struct, frozen=True):
    """Put a frame on the log, in the order of these effects; `acknowledged` or `rejected` answers."""

    frame: frames.Submittable


class TellTyping(msgspec.Struct, frozen=True):
    """Tell the user's other devices, as far as that is possible now; `rejected` answers only what can never be told."""

    frame: frames.ClientTyping


class Close(msgspec.Struct, frozen=True, gc=False):
    """Close the socket once what was sent is written; at once, forgetting what was not, if `drop`."""

    code: CloseCode
    drop: bool = False


Effect: TypeAlias = Accept | Verify | Resolve | Attach | Reattach | Send | SendError | Submit | TellTyping | Close


class Session:
    """The states of one connection."""

    __slots__ = ("_clock", "_handshake", "_place", "_terms", "_user", "session_id", "state")

    def __init__(self, session_id: str, terms: Terms, clock: Clock) -> None:
        self.session_id = session_id
        self.state = State.CONNECTING
        self._terms = terms
        self._clock = clock
        self._handshake = Handshake()
        self._user: UserKey | None = None
        self._place: Place | None = None

    # Connecting

    def handshake_received(self, handshake: Handshake) -> list[Effect]:
        """The client asks to connect. It is accepted in any case: a browser is told why only by frames."""
        self._require(State.CONNECTING)
        self._handshake = handshake
        self.state = State.VERIFYING
        accept = Accept(_subprotocol(handshake.subprotocols))
        if not handshake.token:
            return [accept, *self.token_refused("a token is needed")]
        return [accept, Verify(handshake.token)]

    def token_verified(self, user: UserKey) -> list[Effect]:
        """The token is `user`'s."""
        if self._late(State.VERIFYING):
            return []
        claimed = self._handshake.user_id
        if claimed and claimed != user.user_id:
            return self._fail(ErrorCode.USERID_MISMATCH, "the token is another user's", CloseCode.WRONG_USER)
        self._user = user
        self.state = State.RESOLVING
        return [Resolve(self._handshake.character, self._handshake.conversation_id)]

    def token_refused(self, message: str) -> list[Effect]:
        """The token is not valid, or its user is gone."""
        if self._late(State.VERIFYING, State.RESOLVING):
            return []
        return self._fail(ErrorCode.INVALID_TOKEN, message, CloseCode.INVALID_TOKEN)

    def resolved(self, place: Place) -> list[Effect]:
        """The store knows the user, and this is where their messages go."""
        if self._late(State.RESOLVING):
            return []
        self._place = place
        self.state = State.ATTACHING
        return [Attach(self._handshake.last_event_id)]

    def not_found(self, refusal: Rejected) -> list[Effect]:
        """The conversation or character that the connection is for is not there, or not this user's."""
        if self._late(State.RESOLVING):
            return []
        return self._fail(ErrorCode(refusal.code), str(refusal), CloseCode.POLICY)

    def greeted(self, *, recovered: bool, event_id: str) -> list[Effect]:
        """The replay begins behind `event_id`: `connection` goes first, on an open socket too that attaches again."""
        if self._late(State.ATTACHING, State.OPEN) or self._user is None or self._place is None:
            return []
        return [Send(frames.encode(self._connection(self._user, self._place, recovered, event_id)))]

    def attached(self) -> list[Effect]:
        """What was missed is on its way; from now on frames come live."""
        if not self._late(State.ATTACHING):
            self._handshake = Handshake()
            self.state = State.OPEN
        return []

    # Open

    def frame_received(self, frame: frames.ClientFrame) -> list[Effect]:
        """A frame came."""
        if self._late(State.OPEN):
            return []
        match frame:
            case frames.Message() | frames.Stop() | frames.Regenerate():
                return self._submitted(frame)
            case frames.Ping():
                return [Send(frames.encode(frames.Pong(id=frame.id, server_time=rfc3339(self._clock()))))]
            case frames.Resume():
                return [Reattach(frame.last_event_id)]
            case frames.Auth():
                return [Verify(frame.token, renewal=True)]
            case frames.ClientTyping():
                return [TellTyping(frame)]

    def frame_refused(self, refusal: FrameRefused) -> list[Effect]:
        """A frame came that is none; the socket stays open."""
        if self._late(State.OPEN):
            return []
        return [self._error(ErrorCode(refusal.code), str(refusal), client_id=refusal.client_id)]

    def acknowledged(
        self, *, client_id: str | None, message_id: str, conversation_id: str, timestamp: int, duplicate: bool
    ) -> list[Effect]:
        """A frame is on the log. `timestamp` is milliseconds since the Unix epoch; without an `id` nobody is told."""
        if self._ended() or client_id is None:
            return []
        ack = frames.Ack(
            id=client_id,
            message_id=message_id,
            conversation_id=conversation_id,
            timestamp=rfc3339(timestamp),
            duplicate=duplicate,
        )
        return [Send(frames.encode(ack))]

    def rejected(self, refusal: Rejected, *, client_id: str | None, correlation_id: str | None = None) -> list[Effect]:
        """A frame was not accepted; the socket stays open."""
        if self._ended():
            return []
        return [
            self._error(
                ErrorCode(refusal.code),
                str(refusal),
                client_id=client_id,
                retry_after=refusal.retry_after_seconds,
                correlation_id=correlation_id,
            )
        ]

    def token_renewed(self, user: UserKey) -> list[Effect]:
        """The token of an `auth` frame is `user`'s."""
        if self._ended() or user == self._user:
            return []
        return [self._error(ErrorCode.USERID_MISMATCH, "the token is another user's")]

    def renewal_refused(self, message: str) -> list[Effect]:
        """The token of an `auth` frame is not valid; the socket stays open."""
        return [] if self._ended() else [self._error(ErrorCode.INVALID_TOKEN, message)]

    # Closing

    def unavailable(self, cause: Retryable) -> list[Effect]:
        """What connecting needs cannot be reached."""
        if self._late(State.RESOLVING, State.ATTACHING):
            return []
        retry_after = cause.retry_after_seconds or DEFAULT_RETRY_SECONDS
        error = self._error(ErrorCode.SERVICE_UNAVAILABLE, "the service is not available", retry_after=retry_after)
        return [error, *self._close(CloseCode.TRY_AGAIN)]

    def failed(self, correlation_id: str) -> list[Effect]:
        """Something that nobody expected happened while connecting."""
        if self._ended():
            return []
        error = self._error(ErrorCode.INTERNAL_ERROR, "something went wrong", correlation_id=correlation_id)
        return [error, *self._close(CloseCode.TRY_AGAIN)]

    def revoked(self) -> list[Effect]:
        """The user's tokens hold no more."""
        if self._ended():
            return []
        return self._fail(ErrorCode.INVALID_TOKEN, "the token was revoked", CloseCode.INVALID_TOKEN)

    def displaced(self) -> list[Effect]:
        """The user opened more sockets than they may: this was the oldest."""
        if self._ended():
            return []
        return self._fail(
            ErrorCode.TOO_MANY_CONNECTIONS, "too many connections of this user", CloseCode.TOO_MANY_CONNECTIONS
        )

    def draining(self) -> list[Effect]:
        """This server is stopping."""
        return [] if self._ended() else self._close(CloseCode.RESTARTING)

    def reader_too_slow(self) -> list[Effect]:
        """More waits for the client than may."""
        return [] if self._ended() else self._close(CloseCode.TRY_AGAIN, drop=True)

    def feed_lost(self) -> list[Effect]:
        """The user's stream cannot be followed from here."""
        return [] if self._ended() else self._close(CloseCode.TRY_AGAIN)

    def client_closed(self) -> list[Effect]:
        """The socket is gone."""
        self.state = State.CLOSED
        return []

    # Parts

    def _submitted(self, frame: frames.Submittable) -> list[Effect]:
        if isinstance(frame, frames.Message) and (refusal := self._refusal(frame)):
            return [refusal]
        return [Submit(frame)]

    def _refusal(self, frame: frames.Message) -> SendError | None:
        if frame.userid is not None and self._user is not None and frame.userid != self._user.user_id:
            return self._error(ErrorCode.USERID_MISMATCH, "the frame names another user", client_id=frame.id)
        if frame.model is not None and frame.model not in self._terms.models:
            return self._error(ErrorCode.MODEL_NOT_ALLOWED, "the model is not allowed", client_id=frame.id)
        return None

    def _connection(self, user: UserKey, place: Place, recovered: bool, event_id: str) -> frames.Connection:
        return frames.Connection(
            message=f"Connected to {self._terms.app_name}",
            session_id=self.session_id,
            userid=user.user_id,
            username=place.username,
            character_id=place.character_id,
            conversation_id=place.conversation_id,
            server_id=self._terms.server_id,
            protocol=frames.PROTOCOL_VERSION,
            features=FEATURES,
            server_time=rfc3339(self._clock()),
            limits=self._terms.limits,
            recovered=recovered,
            event_id=event_id,
        )

    def _error(
        self,
        code: ErrorCode,
        message: str,
        *,
        client_id: str | None = None,
        retry_after: float | None = None,
        correlation_id: str | None = None,
    ) -> SendError:
        frame = frames.Error(
            code=code,
            message=message,
            userid=self._user.user_id if self._user else self._handshake.user_id or "",
            temporary=code.temporary,
            retry_after=retry_after,
            id=client_id,
            correlation_id=correlation_id,
        )
        return SendError(frames.encode(frame), code)

    def _fail(self, code: ErrorCode, message: str, close_code: CloseCode) -> list[Effect]:
        return [self._error(code, message), *self._close(close_code)]

    def _close(self, code: CloseCode, *, drop: bool = False) -> list[Effect]:
        self.state = State.CLOSING
        return [Close(code, drop)]

    def _late(self, *expected: State) -> bool:
        """Return whether closing overtook this input; raise if the state does not know it."""
        if self._ended():
            return True
        self._require(*expected)
        return False

    def _ended(self) -> bool:
        return self.state is State.CLOSING or self.state is State.CLOSED

    def _require(self, *expected: State) -> None:
        if self.state not in expected:
            raise IllegalTransition(
                f"in state {self.state.value}, not {' or '.join(state.value for state in expected)}"
            )


def _subprotocol(offered: tuple[str, ...]) -> str | None:
    """Return the one to select: `bearer`, whose next is the token, else the protocol's own name if it was offered."""
    return next((name for name in ("bearer", "duologue.v1") if name in offered), None)
