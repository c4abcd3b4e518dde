"""Frames that were sent and are not acknowledged: each is sent again as it was, until the server answers it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

RESEND_SECONDS: Final = 10.0
"""How long a frame may stay unanswered on an open socket before it is sent again."""


@dataclass(slots=True)
class _Entry:
    wire: str
    due: float


class Outbox:
    """The unacknowledged frames in the order of their sending, by their `id`. Times are seconds of a monotonic clock.

    `resend_refused` makes a refusal that is temporary (`rate_limited`, `overloaded`, `service_unavailable`) a delay,
    not an end.
    """

    def __init__(self, *, capacity: int, resend_refused: bool) -> None:
        self._capacity = capacity
        self._resend_refused = resend_refused
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, frame_id: object) -> bool:
        return frame_id in self._entries

    def add(self, frame_id: str, wire: str, *, now: float) -> None:
        """Keep a frame's text until it is answered; it is due at `now`.

        Raises:
            OverflowError: too many frames wait already.
        """
        if len(self._entries) >= self._capacity:
            raise OverflowError(f"{self._capacity} frames are not acknowledged yet")
        self._entries[frame_id] = _Entry(wire, now)

    def take_due(self, now: float) -> list[str]:
        """Return the frames that are to be sent now, in their order, and note them as sent."""
        due = [entry for entry in self._entries.values() if entry.due <= now]
        for entry in due:
            entry.due = now + RESEND_SECONDS
        return [entry.wire for entry in due]

    def next_due(self) -> float | None:
        """Return when the next frame is due, None if none waits."""
        return min((entry.due for entry in self._entries.values()), default=None)

    def reconnected(self, now: float) -> None:
        """Make every frame due: what the old socket took may never have arrived."""
        for entry in self._entries.values():
            entry.due = now

    def answered(self, frame: Mapping[str, Any], *, now: float) -> bool:
        """Take in a frame of the server that may answer one of these: an `ack`, an `echo` or an `error` with its `id`.

        Returns:
            Whether a frame is settled by it.
        """
        frame_id = frame.get("id")
        entry = self._entries.get(frame_id) if isinstance(frame_id, str) else None
        if entry is None or frame.get("type") not in {"ack", "echo", "error"}:
            return False
        if frame["type"] == "error" and frame.get("temporary") and self._resend_refused:
            entry.due = now + _retry_after(frame)
            return False
        del self._entries[str(frame_id)]
        return True

    def drop(self, frame_id: str) -> None:
        """Give up a frame, if it waits."""
        self._entries.pop(frame_id, None)

    def drop_larger(self, limit_bytes: int | None) -> list[str]:
        """Give up the frames larger than `limit_bytes`, or the largest if the limit is not known.

        Returns:
            The ids of the frames given up.
        """
        sizes = {frame_id: len(entry.wire.encode()) for frame_id, entry in self._entries.items()}
        threshold = limit_bytes if limit_bytes is not None else max(sizes.values(), default=0) - 1
        dropped = [frame_id for frame_id, size in sizes.items() if size > threshold]
        for frame_id in dropped:
            del self._entries[frame_id]
        return dropped


def _retry_after(frame: Mapping[str, Any]) -> float:
    value = frame.get("retry_after")
    return float(value) if isinstance(value, int | float) else RESEND_SECONDS
