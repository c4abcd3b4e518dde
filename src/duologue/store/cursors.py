"""Opaque cursors for pages: a time and an id, so that rows of one millisecond have an order too."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, TypeAlias

import msgspec

from duologue.domain.errors import Rejected

_Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""What a database's integer holds: a cursor that a client made up gets no further."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A place in an order by (`at`, `id`). `at` is milliseconds since the Unix epoch.

    `settled_at` is where a walk through changes begins again once it has come to its end, 0 outside of one.
    """

    at: _Time
    id: str = ""
    settled_at: _Time = 0


def encode_cursor(place: Place) -> str:
    """Return a cursor of `[A-Za-z0-9_-]`."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str) -> Place:
    """Read a cursor.

    Raises:
        Rejected: `invalid_cursor`, it is none of ours.
    """
    try:
        return msgspec.json.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=Place)
    except (ValueError, msgspec.MsgspecError) as error:
        raise Rejected("invalid_cursor", "the cursor cannot be read") from error
