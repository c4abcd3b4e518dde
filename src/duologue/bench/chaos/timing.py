"""How long users waited: from a message to its reply, and from a kill until its reply went on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from duologue.bench.chaos.history import Device, Frame, Happened, History, Sent, Told
from duologue.bench.chaos.plan import role_of

_WRITERS: Final = frozenset(["duologue", "ai-consumer", "everything"])
"""What writes replies."""


class Waited(msgspec.Struct, kw_only=True):
    """A message: when it was first sent, and how many seconds later its first piece and its outcome came, if seen."""

    at: float
    first: float | None = None
    outcome: float | None = None


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that went on under the next attempt: seconds from the kill to its first piece that a client saw.

    `lone`: nothing else was wrong meanwhile.
    """

    message_id: str
    fault: int
    seconds: float
    lone: bool


def waits(history: History) -> list[Waited]:
    """Return how long each message waited, as the first of its user's devices saw it."""
    ids = {asked.message_id: (asked.user_id, asked.client_id) for asked in history.questions}
    found: dict[tuple[str, str], Waited] = {}
    for device in history.devices:
        for entry in device.entries:
            if isinstance(entry, Sent) and entry.frame.type == "message":
                key = (device.name.user_id, entry.frame.id or "")
                known = found.setdefault(key, Waited(at=entry.at))
                known.at = min(known.at, entry.at)
    for device in history.devices:
        for entry in device.entries:
            if isinstance(entry, Told) and (key := ids.get(entry.frame.message_id or "", ("", ""))) in found:
                _note(found[key], entry)
    return sorted(found.values(), key=lambda waited: waited.at)


def _note(waited: Waited, entry: Told) -> None:
    seconds = entry.at - waited.at
    if entry.frame.type in ("delta", "snapshot") and entry.frame.content:
        waited.first = seconds if waited.first is None else min(waited.first, seconds)
    elif entry.frame.type in ("response", "error"):
        waited.outcome = seconds if waited.outcome is None else min(waited.outcome, seconds)


def resumptions(history: History) -> list[Resumed]:
    """Return the replies that went on under the next attempt after what wrote them was killed."""
    kills = sorted((fault for fault in history.faults if _is_kill(fault)), key=lambda fault: fault.began)
    best: dict[tuple[str, int], Resumed] = {}
    for device in history.devices:
        for (message_id, attempt), resumed in _of_device(device, kills, history.faults).items():
            known = best.get((message_id, attempt))
            if known is None or resumed.seconds < known.seconds:
                best[message_id, attempt] = resumed
    return list(best.values())


def _is_kill(fault: Happened) -> bool:
    return fault.fault == "kill" and role_of(fault.target) in _WRITERS


def _of_device(device: Device, kills: Sequence[Happened], faults: Sequence[Happened]) -> dict[tuple[str, int], Resumed]:
    found: dict[tuple[str, int], Resumed] = {}
    began: dict[str, tuple[int, float]] = {}
    tries: set[tuple[str, int]] = set()
    for entry in device.entries:
        if not isinstance(entry, Told) or not _of_attempt(entry.frame):
            continue
        message_id, attempt = entry.frame.message_id or "", entry.frame.attempt or 0
        if entry.frame.type == "reset" and entry.frame.reason in ("retry", "regenerate"):
            tries.add((message_id, attempt))  # no takeover
        if entry.frame.type not in ("delta", "snapshot") or not entry.frame.content:
            continue
        before = began.setdefault(message_id, (attempt, entry.at))
        if attempt > before[0]:
            began[message_id] = (attempt, entry.at)
            kill = next((k for k in reversed(kills) if before[1] <= k.began <= entry.at), None)
            if kill is not None and (message_id, attempt) not in tries:
                found[message_id, attempt] = Resumed(
                    message_id=message_id,
                    fault=kill.number,
                    seconds=entry.at - kill.began,
                    lone=not any(each is not kill and each.meets(kill.began, entry.at) for each in faults),
                )
    return found


def _of_attempt(frame: Frame) -> bool:
    return frame.message_id is not None and frame.attempt is not None
