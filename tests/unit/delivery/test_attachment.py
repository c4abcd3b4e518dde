"""A socket's place in its stream, against a model of Redis in which publications come late or never."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from duologue.delivery.attachment import MAX_HELD, Answered, Attachment
from duologue.delivery.names import EventPosition
from duologue.delivery.publication import DELTA, DURABLE, OF_SOCKET, Publication
from duologue.delivery.stream import AttachReply
from duologue.domain.ids import UserKey

USER = UserKey("default", "alice")
EPOCH = "e"


class Sent:
    """A socket that keeps what it is sent."""

    session_id = "me"

    def __init__(self) -> None:
        self.log: list[object] = []

    def greet(self, reply: AttachReply) -> None:
        self.log.append(("greeting", reply.recovered))

    def send_durable(self, event: EventPosition, frame: bytes) -> None:
        self.log.append(event.number)

    def send_delta(self, frame: bytes) -> None:
        self.log.append(frame)

    def send(self, frame: bytes) -> None:
        self.log.append(frame)

    async def drained(self) -> None:
        raise AssertionError("the attachment does not wait")

    def feed_lost(self) -> None:
        raise AssertionError("the attachment does not judge the feed")

    def revoked(self) -> None:
        raise AssertionError("the attachment does not revoke")

    @property
    def events(self) -> list[int]:
        return [entry for entry in self.log if isinstance(entry, int)]


def of_socket(number: int, sender: str) -> Publication:
    return Publication(number, OF_SOCKET, None, b"typing", sender)


def durable(number: int, event: int) -> Publication:
    return Publication(number, DURABLE, EventPosition(EPOCH, event), b"{}")


def reply(number: int, *, behind: int = 0, last: int = 0, more: bool = False, recovered: bool = True) -> AttachReply:
    return AttachReply(
        epoch=EPOCH,
        number=number,
        recovered=recovered,
        position=EventPosition(EPOCH, behind),
        more=more,
        frames=[(event, b"{}") for event in range(behind + 1, last + 1)],
        lives=[] if more else [b"snapshot"],
    )


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def attachment(sent: Sent) -> Attachment:
    attached = Attachment(USER, sent, None, sent.greet)
    attached.ask()
    return attached


def test_answer_sends_greeting_missed_snapshots_then_what_was_held_behind_the_cut(
    attachment: Attachment, sent: Sent
) -> None:
    attachment.receive(durable(11, 3))
    attachment.receive(Publication(12, DELTA, None, b"delta"))

    assert attachment.answer(reply(11, last=3)) is Answered.LIVE
    assert sent.log == [("greeting", True), 1, 2, 3, b"snapshot", b"delta"]
    assert attachment.position == EventPosition(EPOCH, 3)


def test_answer_in_parts_greets_once(attachment: Attachment, sent: Sent) -> None:
    assert attachment.answer(reply(5, last=2, more=True)) is Answered.MORE
    attachment.ask()
    assert attachment.answer(reply(6, behind=2, last=3)) is Answered.LIVE

    assert sent.log == [("greeting", True), 1, 2, 3, b"snapshot"]


def test_answer_that_recovers_not_everything_greets_again(attachment: Attachment, sent: Sent) -> None:
    attachment.answer(reply(5))
    assert attachment.catch_up()
    attachment.ask()
    attachment.answer(reply(9, behind=7, last=8, recovered=False))

    assert sent.log == [("greeting", True), b"snapshot", ("greeting", False), 8, b"snapshot"]


def test_answer_after_a_resume_is_discarded_and_asked_again(attachment: Attachment, sent: Sent) -> None:
    attachment.resume(EventPosition(EPOCH, 1))
    assert not attachment.catch_up()

    assert attachment.answer(reply(5, last=2)) is Answered.AGAIN
    assert sent.log == []
    assert attachment.position == EventPosition(EPOCH, 1)


def test_answer_with_a_gap_behind_it_is_asked_again(attachment: Attachment) -> None:
    attachment.receive(durable(13, 4))

    assert attachment.answer(reply(11, last=2)) is Answered.AGAIN
    assert not attachment.live


def test_answer_when_too_much_came_meanwhile_is_asked_again(attachment: Attachment) -> None:
    for number in range(1, MAX_HELD + 2):
        attachment.receive(Publication(number, DELTA, None, b"delta"))

    assert attachment.answer(reply(0)) is Answered.AGAIN
    attachment.ask()
    assert attachment.answer(reply(MAX_HELD + 1)) is Answered.LIVE


def test_receive_while_live_tells_a_gap_and_passes_over_what_is_old(attachment: Attachment, sent: Sent) -> None:
    attachment.answer(reply(5))

    assert attachment.receive(durable(4, 1))
    assert attachment.receive(durable(6, 2))
    assert not attachment.receive(durable(8, 4))
    assert sent.events == [2]


def test_receive_of_its_own_frame_counts_it_and_sends_it_to_nobody(attachment: Attachment, sent: Sent) -> None:
    attachment.receive(of_socket(6, "me"))
    attachment.receive(of_socket(7, "another"))
    attachment.answer(reply(5))
    assert sent.log[2:] == [b"typing"]

    assert attachment.receive(of_socket(8, "me"))
    assert attachment.receive(of_socket(9, "another"))
    assert not attachment.receive(of_socket(11, "me"))
    assert sent.log[2:] == [b"typing", b"typing"]


class LossyRedis(RuleBasedStateMachine):
    """Redis publishes; publications arrive in order, late or not at all; answers come late too."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Publication] = []
        self.arriving: deque[Publication] = deque()
        self.answer: AttachReply | None = None
        self.events = 0
        self.sent = Sent()
        self.attachment = Attachment(USER, self.sent, None, self.sent.greet)

    @rule(is_durable=st.booleans())
    def publish(self, is_durable: bool) -> None:
        number = len(self.published) + 1
        self.events += is_durable
        publication = durable(number, self.events) if is_durable else Publication(number, DELTA, None, b"%d" % number)
        self.published.append(publication)
        self.arriving.append(publication)

    @precondition(lambda self: self.arriving)
    @rule()
    def arrive(self) -> None:
        if not self.attachment.receive(self.arriving.popleft()):
            assert self.attachment.catch_up()

    @precondition(lambda self: self.arriving)
    @rule()
    def lose(self) -> None:
        self.arriving.popleft()

    @rule()
    def reconnect(self) -> None:
        self.attachment.catch_up()

    @precondition(lambda self: self.answer is None and not self.attachment.live)
    @rule(part=st.integers(1, 4))
    def ask(self, part: int) -> None:
        self.attachment.ask()
        behind = self.attachment.position.number if self.attachment.position else 0
        last = min(self.events, behind + part)
        self.answer = reply(len(self.published), behind=behind, last=last, more=last < self.events)

    @precondition(lambda self: self.answer is not None)
    @rule()
    def answered(self) -> None:
        assert self.answer is not None
        self.attachment.answer(self.answer)
        self.answer = None

    @invariant()
    def durable_frames_come_once_and_in_order(self) -> None:
        events = self.sent.events
        assert events == list(range(1, len(events) + 1))

    @invariant()
    def live_socket_has_everything_up_to_its_number(self) -> None:
        if self.attachment.live:
            seen = [each for each in self.published[: self.attachment.number] if each.event is not None]
            assert len(self.sent.events) == len(seen)

    @invariant()
    def deltas_never_come_twice(self) -> None:
        deltas = [entry for entry in self.sent.log if isinstance(entry, bytes) and entry != b"snapshot"]
        assert len(set(deltas)) == len(deltas)


LossyRedis.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLossyRedis = LossyRedis.TestCase
