"""What is published on a user's channel: `<running number> <kind> <of> <frame>`, read without JSON.

`of` is the event id of a durable frame, the sender of one that comes from a socket, else `-`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from duologue.delivery.names import EventPosition

DURABLE: Final = b"e"
DELTA: Final = b"d"
OTHER: Final = b"o"
OF_SOCKET: Final = b"s"
"""From one of the user's sockets, which is not to get it back."""
REVOKED: Final = b"r"

REVOCATION: Final = b"0 r - "


class Publication(NamedTuple):
    """One publication. `event` is set for durable frames only, `sender` for those of a socket: its session's id."""

    number: int
    kind: bytes
    event: EventPosition | None
    frame: bytes
    sender: str | None = None


def parse(payload: bytes) -> Publication:
    """Read a publication.

    Raises:
        ValueError: something else publishes on this channel.
    """
    number, kind, of, frame = payload.split(b" ", 3)
    if kind == OF_SOCKET:
        return Publication(int(number), kind, None, frame, of.decode())
    if kind != DURABLE:
        return Publication(int(number), kind, None, frame)
    epoch, _, event = of.decode().partition(":")
    return Publication(int(number), kind, EventPosition(epoch, int(event)), frame)
