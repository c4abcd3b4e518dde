"""That somebody types: when to tell the others, and until when to believe it of them. No I/O.

Notices are best effort, so whoever types says so again at intervals, and what is not said again lapses. Times are
seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REPEAT_SECONDS: Final = 3.0
"""How often somebody who goes on typing says so."""

LAPSE_SECONDS: Final = 6.0
"""How long it is believed."""


class TypingTeller:
    """What is to be told of the typing here."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._due: dict[str, bool] = {}

    def tell(self, conversation_id: str, *, active: bool, now: float) -> None:
        """Note that somebody types in a conversation, or has ended; what the others believe anyway is not repeated."""
        told = self._told.get(conversation_id)
        if active:
            if told is None or now - told >= REPEAT_SECONDS:
                self._told[conversation_id], self._due[conversation_id] = now, True
        elif told is not None:
            del self._told[conversation_id]
            self._due[conversation_id] = False

    def take_due(self) -> list[dict[str, Any]]:
        """Return the frames that are to be sent now, and note them as sent."""
        due, self._due = self._due, {}
        return [{"type": "typing", "conversation_id": name, "active": active} for name, active in due.items()]

    def forget(self) -> None:
        """Forget everything: there is nobody to tell."""
        self._told.clear()
        self._due.clear()


class TypingElsewhere:
    """In which conversations another device of this user types."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def feed(self, frame: Mapping[str, Any], *, now: float) -> None:
        """Take in a frame of the server."""
        conversation_id = frame.get("conversation_id")
        if not isinstance(conversation_id, str):
            return
        if frame.get("type") == "typing" and frame.get("role") == "user":
            self._until = {name: until for name, until in self._until.items() if until > now}
            self._until.pop(conversation_id, None)
            if frame.get("active"):
                self._until[conversation_id] = now + LAPSE_SECONDS
        elif frame.get("type") == "echo":  # what was being typed is said
            self._until.pop(conversation_id, None)

    def is_active(self, conversation_id: str, *, now: float) -> bool:
        """Tell whether somebody is typing in a conversation on another device."""
        return self._until.get(conversation_id, now) > now
