"""What a single client may be told: event ids, attempts, pieces, and repeats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from duologue.bench.chaos.history import Closed, Device, Frame, Happened, History, Opened, Told
from duologue.bench.chaos.invariants.breach import Evidence, invariant
from duologue.delivery.names import EventPosition, parse_event_id

_REPEAT_SECONDS: Final = 40.0
_REPEAT_SLACK_SECONDS: Final = 5.0
_UNDER_WAY_SECONDS: Final = 10.0
_OUTCOMES: Final = ("response", "error")
_OF_AN_ATTEMPT: Final = ("delta", "snapshot", "reset", "response", "error")

REDIS_LOSSES: Final = frozenset(["kill valkey", "restart valkey", "flush valkey"])
"""Faults by which the Redis of the distributed mode loses data. The log's own, of the embedded mode, loses none."""


def losses(history: History) -> list[Happened]:
    """Return the faults in which Redis lost data."""
    if history.mode == "embedded":
        return []
    return [fault for fault in history.faults if f"{fault.fault} {fault.target}" in REDIS_LOSSES]


class _Event(NamedTuple):
    """A durable frame, or a `connection` (`frame.type` tells)."""

    at: float
    position: EventPosition
    frame: Frame


def _events(device: Device) -> Iterator[_Event | Opened | Closed]:
    for entry in device.entries:
        if isinstance(entry, Told) and entry.frame.event_id is not None:
            yield _Event(entry.at, parse_event_id(entry.frame.event_id), entry.frame)
        elif isinstance(entry, Opened | Closed):
            yield entry


@invariant
def event_ids_are_gapless_and_increasing(history: History) -> Evidence:
    """Within an epoch each durable frame follows the one before; over a reconnect too, if the client says where it was.

    A client that does not may be told frames again; what another device of its user was surely sent it may miss.
    """
    for device in history.devices:
        yield from _gaps(device)


def _gaps(device: Device) -> Evidence:
    last: EventPosition | None = None
    same_socket = False
    for event in _events(device):
        if not isinstance(event, _Event):
            same_socket = False
            continue
        at, position, frame = event
        where = f"{device.name.name}: {frame.type} {frame.event_id} after {last.event_id if last else 'nothing'}"
        if frame.type == "connection":
            follows = frame.recovered is not False and (device.name.keeps_position or same_socket)
            if last is not None and follows and position != last:
                yield f"{where}, though it recovered", at
            same_socket = True
        elif last is None or position != EventPosition(last.epoch, last.number + 1):
            yield where, at
        last = position


@invariant
def nothing_is_told_again_to_a_client_that_keeps_its_position(history: History) -> Evidence:
    """A client with `last_event_id` gets no durable frame twice."""
    for device in history.devices:
        if not device.name.keeps_position:
            continue
        seen: set[EventPosition] = set()
        for event in _events(device):
            if isinstance(event, _Event) and event.frame.type != "connection":
                if event.position in seen:
                    yield f"{device.name.name}: {event.frame.type} {event.frame.event_id} again", event.at
                seen.add(event.position)


@invariant
def repeats_are_of_the_last_40_seconds(history: History) -> Evidence:
    """What a client without `last_event_id` is told again came at most 40 s before its connection broke."""
    hanging = [fault for fault in history.faults if _keeps_cursors_back(fault)]
    for device in history.devices:
        if not device.name.keeps_position:
            yield from _late_repeats(device, hanging)


def _late_repeats(device: Device, hanging: list[Happened]) -> Evidence:
    told: dict[EventPosition, float] = {}
    broken = 0.0
    for event in _events(device):
        if isinstance(event, Closed):
            broken = event.at
        if not isinstance(event, _Event) or event.frame.type == "connection":
            continue
        first = told.setdefault(event.position, event.at)
        due = first + _REPEAT_SECONDS + _REPEAT_SLACK_SECONDS
        if first < event.at and broken > due and not any(fault.meets(first, broken) for fault in hanging):
            words = f"{event.frame.event_id} again, which came {broken - first:.0f} s before the connection broke"
            yield f"{device.name.name}: {words}", event.at
        told[event.position] = event.at


def _keeps_cursors_back(fault: Happened) -> bool:
    """While Redis or the server hangs or is away, the cursor cannot move."""
    return fault.target.startswith(("valkey", "websocket-server", "duologue", "everything"))


@invariant
def recovered_is_false_only_where_frames_are_gone(history: History) -> Evidence:
    """`recovered: false` says that a client must read the history: only a loss of Redis makes that true.

    A client without `last_event_id` may also have been away, or on sockets that all broke within 40 s, for longer than
    frames are kept.
    """
    lost = losses(history)
    sent = _surely_sent(history)
    for device in history.devices:
        since = 0.0
        for event in _events(device):
            if not isinstance(event, _Event) or event.frame.type != "connection":
                continue
            if event.frame.recovered is False and not _any_between(lost, since, event.at):
                known = sent[device.name.user_id]
                if device.name.keeps_position or any(each.reaches(event) for each in known):
                    yield f"{device.name.name}: recovered is false, and nothing was lost since {since:.3f}", event.at
            since = event.at


class _SurelySent(NamedTuple):
    """A frame that the cursor of its user has passed at this time (rule Cursor)."""

    at: float
    position: EventPosition

    def reaches(self, attached: _Event) -> bool:
        """Tell whether a client that was attached at a position had been sent what is before it."""
        if self.at > attached.at or self.position.epoch != attached.position.epoch:
            return False
        return self.position.number >= attached.position.number


def _surely_sent(history: History) -> dict[str, list[_SurelySent]]:
    """Return by user what sockets have stayed open for long enough after, where nothing kept the cursor from moving."""
    hanging = [fault for fault in history.faults if _keeps_cursors_back(fault)]
    sent: dict[str, list[_SurelySent]] = {}
    for device in history.devices:
        known = sent.setdefault(device.name.user_id, [])
        written: list[_Event] = []
        for event in (*_events(device), Closed(at=math.inf, code=0)):
            if isinstance(event, _Event):
                written.append(event)
                continue
            for frame in written:
                passed = frame.at + _REPEAT_SECONDS + _REPEAT_SLACK_SECONDS
                if passed < event.at and not any(fault.meets(frame.at, passed) for fault in hanging):
                    known.append(_SurelySent(passed, frame.position))
            written.clear()
    return sent


@invariant
def an_epoch_changes_only_where_redis_lost_data(history: History) -> Evidence:
    """Event ids stay comparable as long as Redis has not lost data; each loss makes one new epoch."""
    lost = losses(history)
    for device in history.devices:
        last: _Event | None = None
        changes = 0
        for event in _events(device):
            if not isinstance(event, _Event):
                continue
            if last is not None and last.position.epoch != event.position.epoch:
                changes += 1
                before = sum(1 for fault in lost if fault.began < event.at)
                if changes > before or not _any_between(lost, last.at, event.at):
                    yield f"{device.name.name}: {last.frame.event_id}, then {event.frame.event_id}", event.at
            last = event


def _any_between(faults: list[Happened], begin: float, end: float) -> bool:
    """Whether one was between two frames; the first may have been under way when it happened."""
    return any(begin < fault.ended + _UNDER_WAY_SECONDS and fault.began < end for fault in faults)


@invariant
def an_outcome_is_told_once(history: History) -> Evidence:
    """An echo, or the end of an attempt, has one event in an epoch: redelivery and copies change nothing."""
    for device in history.devices:
        told: dict[tuple[str, str, str, int], EventPosition] = {}
        for event in _events(device):
            if not isinstance(event, _Event) or event.frame.message_id is None:
                continue
            frame = event.frame
            key = (event.position.epoch, frame.type, frame.message_id or "", frame.attempt or 0)
            first = told.setdefault(key, event.position)
            if first != event.position:
                words = f"{frame.type} of {frame.message_id}, attempt {frame.attempt}"
                yield f"{device.name.name}: {words} is {first.event_id} and {event.position.event_id}", event.at


@invariant
def nothing_of_a_fenced_attempt_is_shown(history: History) -> Evidence:
    """After a frame of a higher attempt comes none of a lower one.

    But the outcome of an earlier version of the reply, which ended before its regeneration began, may come late.
    """
    versions = {(reply.message_id, reply.attempt) for reply in history.replies}
    for device in history.devices:
        highest: dict[str, int] = {}
        for event in device.told():
            frame = event.frame
            if frame.type not in _OF_AN_ATTEMPT or frame.message_id is None or frame.attempt is None:
                continue
            known = highest.get(frame.message_id, 0)
            late = frame.type in _OUTCOMES and (frame.message_id, frame.attempt) in versions
            if frame.attempt < known and not late:
                words = f"{frame.type} of {frame.message_id}, attempt {frame.attempt}, after one of attempt {known}"
                yield f"{device.name.name}: {words}", event.at
            highest[frame.message_id] = max(known, frame.attempt)


class _Text:
    """A reply as a client shows it: what it has of one attempt."""

    __slots__ = ("attempt", "seq", "text")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.seq = 0
        self.text = ""


@invariant
def pieces_of_a_reply_follow_each_other(history: History) -> Evidence:
    """On a socket each delta continues the one before, or the snapshot; none comes after the end of its attempt."""
    for device in history.devices:
        texts: dict[str, _Text] = {}
        ended: set[tuple[str, int]] = set()
        for entry in device.entries:
            if isinstance(entry, Opened):
                texts.clear()
            elif isinstance(entry, Told) and (words := _wrong_piece(entry.frame, texts, ended)):
                yield f"{device.name.name}: {words}", entry.at


def _wrong_piece(frame: Frame, texts: dict[str, _Text], ended: set[tuple[str, int]]) -> str:
    """Take a frame in; return what is wrong with it, in words."""
    if frame.type == "connection":
        texts.clear()  # what is being written comes as snapshots after it
    if frame.message_id is None or frame.attempt is None:
        return ""
    text = texts.get(frame.message_id)
    if text is None or text.attempt < frame.attempt:
        text = texts[frame.message_id] = _Text(frame.attempt)
    if frame.type in _OUTCOMES:
        ended.add((frame.message_id, frame.attempt))
        return ""
    if frame.attempt < text.attempt:
        return ""  # another invariant's
    what = f"{frame.type} {frame.from_seq or frame.seq} of {frame.message_id}, attempt {frame.attempt}"
    if frame.type == "snapshot":
        text.seq, text.text = frame.seq or 0, frame.content or ""
    if frame.type != "delta":
        return ""
    if (frame.message_id, frame.attempt) in ended:
        return f"{what}, after its end"
    follows = (frame.from_seq or frame.seq) == text.seq + 1
    before, text.seq, text.text = text.seq, frame.seq or 0, text.text + (frame.content or "")
    return "" if follows else f"{what}, after {before}"


@invariant
def the_text_shown_is_the_stored_reply(history: History) -> Evidence:
    """Every `response` has the stored text of its attempt, and the pieces of that attempt are its beginning."""
    stored = {(reply.message_id, reply.attempt): reply for reply in history.replies if reply.ended}
    for device in history.devices:
        shown: dict[str, _Text] = {}
        for entry in device.told():
            frame = entry.frame
            if frame.message_id is None or frame.attempt is None:
                continue
            if frame.type in ("delta", "snapshot"):
                _show(frame, shown)
            elif frame.type == "response":
                reply = stored.get((frame.message_id, frame.attempt))
                if words := _differs(frame, reply.content if reply else None, shown.get(frame.message_id)):
                    yield (
                        f"{device.name.name}: response to {frame.message_id}, attempt {frame.attempt}: {words}",
                        entry.at,
                    )


def _show(frame: Frame, shown: dict[str, _Text]) -> None:
    """Do what a client does with a piece; of a text without its beginning nothing is said."""
    text = shown.get(frame.message_id or "")
    if text is None or text.attempt < (frame.attempt or 0):
        text = shown[frame.message_id or ""] = _Text(frame.attempt or 0)
    if frame.attempt != text.attempt:
        return
    if frame.type == "snapshot":
        text.seq, text.text = frame.seq or 0, frame.content or ""
    elif (frame.from_seq or frame.seq) == text.seq + 1:
        text.seq, text.text = frame.seq or 0, text.text + (frame.content or "")


def _differs(frame: Frame, stored: str | None, shown: _Text | None) -> str:
    if stored is None:
        return "the store has no such version"
    if frame.content != stored:
        return f"{frame.content!r}, but the store has {stored!r}"
    if shown is not None and shown.attempt == frame.attempt and not stored.startswith(shown.text):
        return f"its pieces were {shown.text!r}, but the store has {stored!r}"
    return ""


@invariant
def replies_are_told_in_the_order_of_their_turns(history: History) -> Evidence:
    """The outcomes of a conversation's replies come to a client in the order of their turns.

    But one that is stopped while it waits ends before its turn.
    """
    turns = {(reply.message_id, reply.attempt): reply for reply in history.replies if reply.ended}
    for device in history.devices:
        last: dict[str, int] = {}
        told: set[tuple[str, int]] = set()
        for entry in device.told():
            frame = entry.frame
            key = (frame.message_id or "", frame.attempt or 0)
            reply = turns.get(key)
            if frame.type not in _OUTCOMES or frame.event_id is None or reply is None or key in told:
                continue
            if reply.state == "stopped" and not reply.content:
                continue
            told.add(key)
            before = last.get(reply.conversation_id, 0)
            if reply.turn < before and _heard_from_the_start(device, history):
                words = f"{frame.type} of turn {reply.turn} after that of turn {before}"
                yield f"{device.name.name}: {words} in {reply.conversation_id}", entry.at
            last[reply.conversation_id] = max(before, reply.turn)


def _heard_from_the_start(device: Device, history: History) -> bool:
    """Whether a device is told everything in order: one without position may be told of old frames for the first time
    after newer ones, once Redis has lost where it was."""
    return device.name.keeps_position or not losses(history)
