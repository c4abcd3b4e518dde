"""A socket's place in its user's stream: what it has, what it holds back, what it must ask for. No I/O.

Each socket has a cut, the running number up to which it has everything. It forwards the publication that follows; on
any other it asks Redis what it missed (rule Numbers). While it asks, publications are held, then filtered by the new
cut. So an attachment is either *live* or *catching up*, never both.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from duologue.delivery.names import EventPosition
from duologue.delivery.publication import DELTA, Publication
from duologue.delivery.stream import AttachReply
from duologue.domain.ids import UserKey

MAX_HELD: Final = 1024
"""Publications held for a socket that catches up. What does not fit is fetched by asking again."""


class Socket(Protocol):
    """What the hub needs of a connection. Nothing but `drained` waits, and nothing raises."""

    @property
    def session_id(self) -> str:
        """Its name among all sockets of all servers."""
        ...

    def send_durable(self, event: EventPosition, frame: bytes) -> None:
        """Send a frame that is replayed after a reconnection; once written, tell `Hub.written`."""
        ...

    def send_delta(self, frame: bytes) -> None:
        """Send a `delta`, which may be merged with its neighbours."""
        ...

    def send(self, frame: bytes) -> None:
        """Send any other frame."""
        ...

    async def drained(self) -> None:
        """Return when the send queue has room for another part of a long replay, or the connection is gone."""
        ...

    def feed_lost(self) -> None:
        """Nothing more can be delivered here: close with 1013."""
        ...

    def revoked(self) -> None:
        """The user's tokens no longer hold: close with 4401."""
        ...


Greet = Callable[[AttachReply], None]


class Answered(Enum):
    """What follows from an answer of Redis."""

    LIVE = auto()
    """The socket has everything and hears on."""
    MORE = auto()
    """That was a part: ask again once the socket has room."""
    AGAIN = auto()
    """It came too late, or something between is missing: ask again."""


class Attachment:
    """A socket of a user at the hub."""

    __slots__ = (
        "_greet",
        "_greeting",
        "_held",
        "_skipped",
        "_stale",
        "gone",
        "number",
        "position",
        "socket",
        "user",
    )

    def __init__(self, user: UserKey, socket: Socket, position: EventPosition | None, greet: Greet) -> None:
        """Begin catching up, behind `position` or, if that is None, the user's cursor."""
        self.user = user
        self.socket = socket
        self.position = position
        """Behind the last durable frame sent; None: where the user's cursor is."""
        self.number = 0
        """The last publication's running number; the cut, right after catching up."""
        self.gone = False
        """Whether the socket is detached: nothing is sent any more."""
        self._greet = greet
        self._greeting = True
        self._held: list[Publication] | None = []
        self._skipped = 0
        self._stale = False

    @property
    def live(self) -> bool:
        """Whether publications are forwarded as they come; else it is catching up."""
        return self._held is None

    def catch_up(self) -> bool:
        """Ask again, at once or once more; true if it was live: whoever called then sees to the asking."""
        self._stale = True
        if self._held is not None:
            return False
        self._held = []
        return True

    def resume(self, position: EventPosition) -> None:
        """Have the next answer begin behind `position`, with a greeting. `catch_up` is to follow."""
        self.position = position
        self._greeting = True

    def ask(self) -> None:
        """The question leaves now: what came before will be in its answer."""
        self._held, self._skipped, self._stale = [], 0, False

    def answer(self, reply: AttachReply) -> Answered:
        """Send what Redis has answered and, if that was all, what was held meanwhile.

        Greets first if it is to, or if not everything missed can be sent: the client then reads the history.
        """
        if self._stale:  # the client resumed elsewhere, or the subscription is another: it may lack something
            return Answered.AGAIN
        if self._greeting or not reply.recovered:
            self._greeting = False
            self._greet(reply)
        for number, frame in reply.frames:
            self.socket.send_durable(EventPosition(reply.epoch, number), frame)
        self.position = reply.end
        if reply.more:
            return Answered.MORE
        for snapshot in reply.lives:
            self.socket.send(snapshot)
        return self._go_live(reply.number)

    def _go_live(self, cut: int) -> Answered:
        held, self.number = self._held or [], cut
        if self._skipped > cut or not all(map(self._forward, held)):
            return Answered.AGAIN
        self._held = None
        return Answered.LIVE

    def receive(self, publication: Publication) -> bool:
        """Forward or hold a publication; false if one before it is missing: it is to catch up."""
        if self._held is None:
            return self._forward(publication)
        if len(self._held) < MAX_HELD:
            self._held.append(publication)
        else:
            self._skipped = publication.number
        return True

    def _forward(self, publication: Publication) -> bool:
        number, kind, event, frame, sender = publication
        expected = self.number + 1
        if number != expected:
            return number < expected  # it is contained in what the socket had at its cut
        self.number = number
        if kind == DELTA:
            self.socket.send_delta(frame)
        elif event is not None:
            self.position = event
            self.socket.send_durable(event, frame)
        elif sender is None or sender != self.socket.session_id:  # its own is counted, and not sent
            self.socket.send(frame)
        return True
