"""That a user types here, told to their other devices: best effort, and never too often."""

from __future__ import annotations

from typing import Final

from duologue.delivery.stream import UserStreams
from duologue.domain.errors import Retryable
from duologue.domain.tasks import ignore_end
from duologue.protocol.frames import ClientTyping, Typing, encode
from duologue.websocket_server.places import Author, Places

TYPING_BURST: Final = 5
TYPING_PER_SECOND: Final = 1.0
"""How often a socket may tell: enough for whoever says every few seconds that they still type."""


class TokenBucket:
    """So many at once, and so many a second. Times are seconds of a monotonic clock."""

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = float(burst)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Tell whether another one is allowed now; if so it counts."""
        if self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class TypingNotices:
    """Publishes `typing` frames of clients."""

    def __init__(self, streams: UserStreams, places: Places) -> None:
        self._streams = streams
        self._places = places

    async def tell(self, author: Author, session_id: str, frame: ClientTyping) -> None:
        """Publish a client's `typing` to the user's other sockets, on every server. Without store or Redis it is lost.

        Raises:
            Rejected: `conversation_not_found`.
        """
        try:
            conversation = await self._places.of_frame(author, frame.conversation_id, None)
        except Retryable:
            return
        notice = encode(Typing(role="user", conversation_id=conversation, active=frame.active))
        self._streams.publish_from(author.identity.user, session_id, notice).add_done_callback(ignore_end)
