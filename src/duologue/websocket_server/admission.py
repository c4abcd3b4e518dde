"""What was admitted: a frame that may go on the log, as its record."""

from __future__ import annotations

from typing import NoReturn

import msgspec

from duologue.delivery.stream import CommandNote, RateLimit
from duologue.domain.errors import Rejected
from duologue.domain.records import IncomingRecord
from duologue.protocol.codes import ErrorCode


class Command(msgspec.Struct, frozen=True):
    """A stop or a regenerate with an `id`: what tells a repeat of it, and what it stands for."""

    key: str
    note: CommandNote


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that may go on the log.

    `client_id` is its `id`, None if nobody waits for an `ack`; `timestamp` is milliseconds since the Unix epoch.
    `duplicate`: the log is known to have it already. `on_log`: and it is not to have it again.
    """

    record: IncomingRecord
    client_id: str | None
    timestamp: int
    duplicate: bool
    on_log: bool = False
    command: Command | None = None


def rate_limited(limit: RateLimit, retry_after_seconds: float) -> NoReturn:
    """Refuse what is over the limit of its user.

    Raises:
        Rejected: `rate_limited`.
    """
    raise Rejected(
        ErrorCode.RATE_LIMITED,
        f"more than {limit.requests} messages in {limit.window_seconds} s",
        retry_after_seconds=max(round(retry_after_seconds, 3), 0.001),
    )
