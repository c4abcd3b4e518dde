"""What is published on a user's channel: `<running number> <kind> <event id or -> <frame>`, read without JSON."""

from __future__ import annotations

from typing import Final, NamedTuple

from duologue.delivery.names import EventPosition

DURABLE: Final = b"e"
DELTA: Final = b"d"
OTHER: Final = b"o"
REVOKED: Final = b"r"

REVOCATION: Final = b"0 r - "


class Publication(NamedTuple):
    """One publication. `event` is set for durable frames only."""

    number: int
    kind: bytes
    event: EventPosition | None
    frame: bytes


def parse(payload: bytes) -> Publication:
    """Read a publication.

    Raises:
        ValueError: something else publishes on this channel.
    """
    number, kind, event_id, frame = payload.split(b" ", 3)
    if kind != DURABLE:
        return Publication(int(number), kind, None, frame)
    epoch, _, event = event_id.decode().partition(":")
    return Publication(int(number), kind, EventPosition(epoch, int(event)), frame)
