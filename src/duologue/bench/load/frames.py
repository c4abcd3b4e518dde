"""The fields of the server's frames that are measured, read without making more of them than that."""

from __future__ import annotations

from typing import Final

import msgspec


class Seen(msgspec.Struct, gc=False):
    """A frame. Fields that are not here are skipped by the decoder."""

    type: str
    event_id: str | None = None
    id: str | None = None
    message_id: str | None = None
    content: str | None = None
    seq: int = 0
    from_seq: int | None = None
    attempt: int = 0
    code: str | None = None
    message: str | None = None


decode: Final = msgspec.json.Decoder(Seen).decode
encode: Final = msgspec.json.Encoder().encode
