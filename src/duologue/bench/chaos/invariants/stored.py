"""What the store must have: every accepted message once, with one outcome each, in the words of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from duologue.bench.chaos.history import Device, Frame, History, Read, Sent, StoredReply, Told
from duologue.bench.chaos.invariants.asked import BROKEN
from duologue.bench.chaos.invariants.breach import Evidence, invariant
from duologue.bench.chaos.invariants.told import losses
from duologue.bench.chaos.story import story, title_of

_INTERNAL: frozenset[str | None] = frozenset(["internal", "unstorable", "internal_error"])
_TAKEN_OVER = "taken_over"
_MOST_TAKEOVERS = 5
_TRIES_SECONDS = 90.0


def _sent(history: History, kind: str) -> Iterator[tuple[Device, Frame]]:
    for device in history.devices:
        for entry in device.entries:
            if isinstance(entry, Sent) and entry.frame.type == kind:
                yield device, entry.frame


@invariant
def an_acknowledged_message_is_stored_once(history: History) -> Evidence:
    """What was acknowledged, or came back as an echo, is in the history exactly once, as it was said."""
    counts = Counter((asked.user_id, asked.client_id) for asked in history.questions)
    contents = {asked.message_id: asked.content for asked in history.questions}
    said = {(device.name.user_id, frame.id): frame.content for device, frame in _sent(history, "message")}
    for device in history.devices:
        for entry in device.told():
            frame = entry.frame
            key = (device.name.user_id, frame.id or "")
            if frame.type not in ("ack", "echo") or key not in said:
                continue
            words = f"{device.name.name}: {frame.type} of {frame.id} as {frame.message_id}"
            if counts[key] != 1:
                yield f"{words}, which the store has {counts[key]} times", entry.at
            elif contents.get(frame.message_id or "") != said[key]:
                yield f"{words}, which the store has as {contents.get(frame.message_id or '')!r}", entry.at


@invariant
def nothing_is_stored_that_nobody_said(history: History) -> Evidence:
    """Every stored message was sent by a client of its user."""
    said = {(device.name.user_id, frame.id): frame.content for device, frame in _sent(history, "message")}
    for asked in history.questions:
        if said.get((asked.user_id, asked.client_id)) != asked.content:
            yield f"{asked.user_id}: {asked.message_id} ({asked.client_id!r}): {asked.content!r}", None


@invariant
def every_message_has_exactly_one_outcome(history: History) -> Evidence:
    """A stored message has one first answer, and that has ended."""
    for asked in history.questions:
        versions = history.by_message.get(asked.message_id, [])
        generations = [reply.generation for reply in versions]
        if generations != list(range(1, len(versions) + 1)) or not versions:
            yield f"{asked.client_id} ({asked.message_id}) has the versions {generations}", None
        for reply in versions:
            if not reply.ended:
                yield f"{asked.client_id}: version {reply.generation} is {reply.state}, attempt {reply.attempt}", None


@invariant
def every_accepted_regeneration_has_one_outcome(history: History) -> Evidence:
    """A `regenerate` that was acknowledged made one version after the one it named; nothing else made any."""
    wanted = {
        (device.name.user_id, frame.id or ""): frame
        for device, frame in _sent(history, "regenerate")
        if frame.message_id is not None
    }
    for device in history.devices:
        for entry in device.told():
            frame = wanted.get((device.name.user_id, entry.frame.id or ""))
            if entry.frame.type != "ack" or frame is None:
                continue
            versions = history.by_message.get(frame.message_id or "", [])
            if not any(reply.attempt > (frame.attempt or 0) for reply in versions):
                yield f"{device.name.name}: {frame.id} of attempt {frame.attempt} made nothing", entry.at
    replaced = Counter({(frame.message_id, frame.attempt): 1 for frame in wanted.values()}.keys())
    named = Counter(message_id for message_id, _ in replaced)
    for message_id, versions in history.by_message.items():
        if len(versions) > 1 + named[message_id]:
            yield f"{message_id} has {len(versions)} versions after {named[message_id]} regenerations", None


@invariant
def a_reply_is_stopped_only_if_somebody_asked(history: History) -> Evidence:
    """Only a `stop` of a client stops a reply."""
    asked = {frame.message_id for _, frame in _sent(history, "stop")}
    for reply in history.replies:
        if reply.state == "stopped" and reply.message_id not in asked:
            yield f"{reply.message_id}, attempt {reply.attempt}", reply.completed_at


@invariant
def a_reply_fails_only_for_a_cause(history: History) -> Evidence:
    """A reply fails because the model did, or because it was taken over too often; never for the program's faults."""
    markers = {asked.message_id: history.marker(asked) for asked in history.questions}
    for reply in history.replies:
        if reply.state != "failed":
            continue
        words = f"{reply.message_id}, attempt {reply.attempt}: {reply.error_code}"
        asked = history.by_marker.get(markers.get(reply.message_id, ""), [])
        broken = any(each.how in BROKEN for each in asked)
        if reply.error_code in _INTERNAL:
            yield words, reply.completed_at
        elif reply.error_code == _TAKEN_OVER:
            if reply.takeovers <= _MOST_TAKEOVERS:
                yield f"{words} after {reply.takeovers} takeovers", reply.completed_at
        elif not broken and not _model_was_hurt(history, reply.completed_at or 0.0):
            yield f"{words}, though the model failed it never", reply.completed_at


def _model_was_hurt(history: History, before: float) -> bool:
    """Whether something was done to the model in the time in which a reply's tries may have been made."""
    began = before - _TRIES_SECONDS
    return any(fault.target == "model" and fault.began < before and fault.ended > began for fault in history.faults)


@invariant
def a_stored_reply_is_one_answer_of_the_model(history: History) -> Evidence:
    """A complete reply is, word for word, one whole answer of the model to its message; a stopped one its beginning."""
    markers = {asked.message_id: history.marker(asked) for asked in history.questions}
    for reply in history.replies:
        words = _not_the_models(history, reply, markers.get(reply.message_id, ""))
        if words:
            yield f"{reply.message_id}, version {reply.generation}: {words}: {reply.content!r}", reply.completed_at


def _not_the_models(history: History, reply: StoredReply, marker: str) -> str:
    if reply.state not in ("complete", "stopped") or (not reply.content and reply.state == "stopped"):
        return ""
    title = title_of(reply.content)
    if title is None or title.marker != marker:
        return f"no answer to {marker!r}"
    answer = next((each for each in history.by_marker.get(marker, []) if each.number == title.number), None)
    if answer is None:
        return "an answer that the model did not give"
    text = "".join(story(marker, title.number, answer.words))
    if reply.state == "complete" and answer.how != "whole":
        return f"complete, but the model's answer was {answer.how or 'killed'}"
    same = reply.content == text if reply.state == "complete" else text.startswith(reply.content)
    return "" if same else "not what the model said"


@invariant
def two_versions_are_two_answers(history: History) -> Evidence:
    """No answer of the model is stored for two versions."""
    seen: dict[int, StoredReply] = {}
    for reply in history.replies:
        title = title_of(reply.content)
        if title is None:
            continue
        first = seen.setdefault(title.number, reply)
        if first is not reply:
            yield f"answer {title.number} is in {first.message_id} and {reply.message_id}", reply.completed_at


@invariant
def nothing_stays_unseen(history: History) -> Evidence:
    """After healing every client that says where it was knows the outcome of every message of its user.

    So does one that is its user's only one and does not say it, as long as Redis lost nothing.
    """
    lost = bool(losses(history))
    by_user: dict[str, set[tuple[str, int]]] = {}
    for asked in history.questions:
        versions = history.by_message.get(asked.message_id, [])
        by_user.setdefault(asked.user_id, set()).update((asked.message_id, reply.attempt) for reply in versions)
    for device in history.devices:
        if not (device.name.keeps_position or (device.name.alone and not lost)):
            continue
        for message_id, attempt in sorted(by_user.get(device.name.user_id, set()) - _seen(device)):
            yield f"{device.name.name}: {message_id}, attempt {attempt}", None


def _seen(device: Device) -> set[tuple[str, int]]:
    seen: set[tuple[str, int]] = set()
    for entry in device.entries:
        if isinstance(entry, Read):
            seen.update(
                (row.message_id, row.attempt) for row in entry.rows if row.state not in ("queued", "generating")
            )
        elif isinstance(entry, Told) and entry.frame.type in ("response", "error") and entry.frame.message_id:
            seen.add((entry.frame.message_id, entry.frame.attempt or 0))
    return seen
