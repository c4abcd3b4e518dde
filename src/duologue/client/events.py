"""What a connection tells of itself: its states, the frames it received, what it merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from duologue.client.conversation_view import Exchange, Frame


@dataclass(frozen=True, slots=True)
class Connecting:
    """A socket is being opened."""


@dataclass(frozen=True, slots=True)
class Open:
    """The server has attached this connection; `frame` is its `connection`."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The socket was closed, or none could be opened; the next try comes in `seconds`. `why` is in words."""

    seconds: float
    why: str
    code: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection has ended for good. `code` is the close code, `reason` in words."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """A frame of the server, after the view took it in. `exchange` is the one that it belongs to, if any."""

    frame: Frame
    exchange: Exchange | None


@dataclass(frozen=True, slots=True)
class Merged:
    """Rows of the history were taken in, for these exchanges."""

    exchanges: Sequence[Exchange]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Frames that the server takes as too large were given up; they had these ids."""

    frame_ids: Sequence[str]


State: TypeAlias = Connecting | Open | Reconnecting | Closed
Event: TypeAlias = State | Received | Merged | Dropped
