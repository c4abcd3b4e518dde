"""What the model may be asked: each reply in its turn, and not more often than something went wrong."""

from __future__ import annotations

from typing import Final

from duologue.bench.chaos.history import Asked, Happened, History, StoredReply
from duologue.bench.chaos.invariants.breach import Evidence, invariant
from duologue.bench.chaos.story import title_of

BROKEN: Final = frozenset(["", "refused", "cut", "silent"])
"""How requests ended that the model itself broke; empty: it was killed."""

_HANGS: Final = frozenset(["pause"])
_TIMEOUT_SECONDS: Final = 15.0


@invariant
def the_model_is_asked_once_an_attempt(history: History) -> Evidence:
    """A message is asked as often as it has attempts, and once more for each try that the model broke."""
    hanging = [fault for fault in history.faults if fault.fault in _HANGS]
    for question in history.questions:
        attempts = max((reply.attempt for reply in history.by_message.get(question.message_id, [])), default=0)
        asked = history.by_marker.get(history.marker(question), [])
        counted = [each for each in asked if each.how not in BROKEN and not _hung(each, hanging)]
        if len(counted) > attempts:
            numbers = ", ".join(f"{each.number} ({each.how})" for each in asked)
            yield f"{question.client_id} has {attempts} attempts; it was asked as {numbers}", counted[-1].at


def _hung(asked: Asked, hanging: list[Happened]) -> bool:
    """Whether a request may have been given up for its silence: the model, or who asked it, was paused meanwhile."""
    if asked.how != "abandoned":
        return False
    end = (asked.ended or asked.at) + _TIMEOUT_SECONDS
    return any(fault.began < end and fault.ended > asked.at - _TIMEOUT_SECONDS for fault in hanging)


@invariant
def the_model_is_asked_only_what_is_stored(history: History) -> Evidence:
    """A message is stored before the model is asked."""
    known = {history.marker(question) for question in history.questions}
    for asked in history.asked:
        if asked.marker not in known:
            yield f"{asked.marker!r} was asked as {asked.number}, and the store has no such message", asked.at


@invariant
def a_reply_starts_after_the_one_before_has_ended(history: History) -> Evidence:
    """In a conversation the model is asked for a turn only when the turns before have their outcomes."""
    markers = {question.message_id: history.marker(question) for question in history.questions}
    conversations: dict[str, list[StoredReply]] = {}
    for reply in history.replies:
        conversations.setdefault(reply.conversation_id, []).append(reply)
    for conversation_id, replies in conversations.items():
        ended = 0.0
        for reply in sorted(replies, key=lambda each: each.turn):
            began = _began(reply, history.by_marker.get(markers.get(reply.message_id, ""), []))
            if began is not None and began < ended:
                words = f"turn {reply.turn} of {conversation_id} was asked {ended - began:.3f} s before turn"
                yield f"{words} {reply.turn - 1} or one before it had ended", began
            ended = max(ended, reply.completed_at or ended)


def _began(reply: StoredReply, asked: list[Asked]) -> float | None:
    """Return when the model was first asked for a version; of a later one only the stored answer is surely its own."""
    if reply.generation == 1:
        return min((each.at for each in asked), default=None)
    title = title_of(reply.content)
    return next((each.at for each in asked if title is not None and each.number == title.number), None)
