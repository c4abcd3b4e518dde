"""When a client connects again, by the close code and by how often it failed. No I/O."""

from __future__ import annotations

import enum
from typing import Final

from duologue.protocol.codes import CloseCode

NORMAL_CLOSE: Final = 1000
"""The code of RFC 6455 for a close in good order."""

ABNORMAL_CLOSE: Final = 1006
"""The code of RFC 6455 for a socket that was lost, or could not be opened, without a close frame."""

FIRST_DELAY_SECONDS: Final = 0.5
LONGEST_DELAY_SECONDS: Final = 20.0
STABLE_SECONDS: Final = 5.0
"""A socket that stayed open this long was good: the next failure is a first one."""


class Reaction(enum.Enum):
    """What a client does after its socket was closed."""

    RECONNECT = "reconnect"
    NEW_TOKEN = "new_token"  # noqa: S105  # a reaction, not a token
    WITHOUT_FRAME = "without_frame"
    STAY_CLOSED = "stay_closed"


_REACTIONS: Final[dict[int, Reaction]] = {
    CloseCode.INVALID_TOKEN: Reaction.NEW_TOKEN,
    CloseCode.WRONG_USER: Reaction.STAY_CLOSED,
    CloseCode.POLICY: Reaction.STAY_CLOSED,
    CloseCode.TOO_MANY_CONNECTIONS: Reaction.STAY_CLOSED,
    CloseCode.TOO_LARGE: Reaction.WITHOUT_FRAME,
}


class ReconnectPolicy:
    """Counts failures and draws delays: exponential from 0.5 s to 20 s, with full jitter."""

    def __init__(self) -> None:
        self._failures = 0
        self._token_renewed = False

    def closed(self, code: int, *, open_seconds: float) -> Reaction:
        """Decide what follows a close with `code` after the socket was open for `open_seconds` (0: it never was)."""
        if open_seconds >= STABLE_SECONDS:
            self._failures, self._token_renewed = 0, False
        reaction = _REACTIONS.get(code, Reaction.RECONNECT)
        if reaction is Reaction.NEW_TOKEN and self._token_renewed:
            return Reaction.STAY_CLOSED
        self._token_renewed = self._token_renewed or reaction is Reaction.NEW_TOKEN
        return reaction

    def delay(self, draw: float) -> float:
        """Return the seconds to wait before the next try; `draw` is a random number from 0 to 1."""
        ceiling = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return draw * ceiling


_WORDS: Final[dict[int, str]] = {
    NORMAL_CLOSE: "the connection was closed",
    ABNORMAL_CLOSE: "the connection was lost",
    CloseCode.GOING_AWAY: "the server is stopping",
    CloseCode.RESTARTING: "the server is restarting",
    CloseCode.NO_PONG: "the server got no answer from here",
    CloseCode.TRY_AGAIN: "the server asks to connect again",
    CloseCode.POLICY: "the server does not accept the connection",
    CloseCode.TOO_LARGE: "a message was too large",
    CloseCode.INVALID_TOKEN: "the server does not accept the token",
    CloseCode.WRONG_USER: "the token is another user's",
    CloseCode.TOO_MANY_CONNECTIONS: "too many connections are open for this user",
}


def in_words(code: int, reason: str | None = None) -> str:
    """Return why a socket was closed, for people; `reason` is what the close frame said."""
    words = _WORDS.get(code, f"the connection was closed with code {code}")
    return f"{words} ({reason})" if reason else words
