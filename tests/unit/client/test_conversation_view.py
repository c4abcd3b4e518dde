from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from duologue.client.conversation_view import ConversationView, Phase

Frame = dict[str, Any]


def delta(text: str, seq: int, *, attempt: int = 1, from_seq: int | None = None, message: str = "m1") -> Frame:
    frame: Frame = {"type": "delta", "message_id": message, "attempt": attempt, "seq": seq, "content": text}
    return frame if from_seq is None else {**frame, "from_seq": from_seq}


def snapshot(text: str, seq: int, *, attempt: int = 1, message: str = "m1") -> Frame:
    return {"type": "snapshot", "message_id": message, "attempt": attempt, "seq": seq, "content": text}


def reset(attempt: int, message: str = "m1") -> Frame:
    return {"type": "reset", "message_id": message, "attempt": attempt, "reason": "takeover"}


def response(text: str, *, attempt: int = 1, message: str = "m1") -> Frame:
    return {
        "type": "response",
        "message_id": message,
        "attempt": attempt,
        "content": text,
        "finish_reason": "stop",
        "event_id": f"e-{message}-{attempt}",
    }


def failure(attempt: int, message: str = "m1") -> Frame:
    return {
        "type": "error",
        "code": "generation_failed",
        "message_id": message,
        "attempt": attempt,
        "event_id": f"e-{message}-{attempt}",
    }


def view_of(*frames: Frame) -> ConversationView:
    view = ConversationView()
    for frame in frames:
        view.feed(frame)
    return view


def test_deltas_in_order_are_appended() -> None:
    view = view_of(delta("Hel", 1), delta("lo", 2), delta(" you", 5, from_seq=3))
    assert view.exchanges["m1"].text == "Hello you"
    assert view.exchanges["m1"].phase is Phase.WRITING
    assert not view.wants_resume


def test_delta_that_leaves_a_gap_is_not_shown_and_asks_for_a_resume_once() -> None:
    view = view_of(delta("Hel", 1), delta("!", 3))
    assert view.exchanges["m1"].text == "Hel"
    assert view.wants_resume
    view.resuming()
    view.feed(delta("?", 4))
    assert not view.wants_resume


def test_gap_after_the_resume_was_answered_asks_again() -> None:
    view = view_of(delta("!", 3))
    view.resuming()
    view.feed({"type": "connection", "event_id": "e-1"})
    assert not view.wants_resume
    view.feed(delta("?", 5))
    assert view.wants_resume


def test_merged_delta_that_begins_before_what_is_missing_is_a_gap() -> None:
    view = view_of(delta("a", 1), delta("b", 2), delta("bc", 3, from_seq=2))
    assert view.exchanges["m1"].text == "ab"
    assert view.wants_resume


def test_snapshot_fills_a_gap() -> None:
    view = view_of(delta("a", 1), delta("d", 4), snapshot("abcd", 4), delta("e", 5))
    assert view.exchanges["m1"].text == "abcde"
    assert not view.wants_resume


def test_higher_attempt_in_any_frame_implies_a_reset() -> None:
    assert view_of(delta("old", 1), delta("new", 1, attempt=2)).exchanges["m1"].text == "new"
    assert view_of(delta("old", 1), snapshot("new", 3, attempt=2)).exchanges["m1"].text == "new"
    assert view_of(delta("old", 1), response("new", attempt=2)).exchanges["m1"].text == "new"


def test_reset_clears_earlier_attempts_and_lets_no_late_delta_in() -> None:
    view = view_of(delta("old", 1), reset(2), delta("er", 2))
    assert view.exchanges["m1"].text == ""
    assert view.exchanges["m1"].attempt == 2


def test_response_that_comes_again_changes_nothing() -> None:
    view = view_of(response("first"), response("first"), delta("late", 1), snapshot("late", 9), reset(1))
    assert view.exchanges["m1"].text == "first"
    assert view.exchanges["m1"].phase is Phase.COMPLETE


def test_regeneration_replaces_the_answer() -> None:
    view = view_of(response("first"), reset(2), delta("sec", 1, attempt=2))
    assert view.exchanges["m1"].text == "sec"
    view.feed(response("second", attempt=2))
    assert view.exchanges["m1"].text == "second"


def test_regeneration_that_is_stopped_shows_what_was_written_of_it() -> None:
    view = view_of(response("first"), reset(2), delta("sec", 1, attempt=2))
    view.feed(response("sec", attempt=2) | {"finish_reason": "stopped"})
    exchange = view.exchanges["m1"]
    assert (exchange.text, exchange.phase, exchange.finish_reason) == ("sec", Phase.COMPLETE, "stopped")


def test_reply_stopped_before_it_began_is_empty_and_ended() -> None:
    view = view_of({"type": "queued", "message_id": "m1", "position": 3}, response("") | {"finish_reason": "stopped"})
    exchange = view.exchanges["m1"]
    assert (exchange.text, exchange.ended, exchange.queue_position) == ("", True, None)


def test_queue_position_of_another_answer_is_shown_beside_the_one_that_is_there() -> None:
    view = view_of(response("first"), {"type": "queued", "message_id": "m1", "position": 2})
    exchange = view.exchanges["m1"]
    assert (exchange.text, exchange.phase, exchange.queue_position) == ("first", Phase.COMPLETE, 2)
    view.feed(reset(2))
    assert (exchange.text, exchange.phase, exchange.queue_position) == ("", Phase.WRITING, None)


def test_frames_of_the_answer_before_the_regeneration_change_nothing() -> None:
    view = view_of(response("first"), reset(2), delta("sec", 1, attempt=2), response("first"), delta("x", 2), reset(1))
    assert view.exchanges["m1"].text == "sec"
    assert view.exchanges["m1"].attempt == 2


def test_failed_regeneration_leaves_the_earlier_answer() -> None:
    view = view_of(response("first"), reset(2), delta("sec", 1, attempt=2), failure(2))
    assert view.exchanges["m1"].text == "first"
    assert view.exchanges["m1"].phase is Phase.FAILED


def test_failed_regeneration_before_the_late_earlier_response_shows_that_response() -> None:
    view = view_of(reset(2), failure(2), response("first", attempt=1))
    assert view.exchanges["m1"].text == "first"
    assert view.exchanges["m1"].phase is Phase.FAILED


def test_failure_keeps_its_reason() -> None:
    view = view_of({**failure(1), "message": "The model did not answer."})
    error = view.exchanges["m1"].error
    assert error is not None
    assert error["message"] == "The model did not answer."


def test_other_errors_belong_to_no_exchange() -> None:
    view = ConversationView()
    assert view.feed({"type": "error", "code": "rate_limited", "id": "k"}) is None
    assert not view.exchanges


def test_unknown_and_malformed_frames_are_ignored() -> None:
    view = view_of({"type": "edited", "message_id": "m1"}, {}, {"type": 3}, {"type": "delta"}, {"type": ["delta"]})
    assert not view.exchanges


def test_old_servers_response_without_attempt_ends_the_reply() -> None:
    view = view_of({"type": "response", "message_id": "m1", "content": "x"})
    assert view.exchanges["m1"].text == "x"
    assert view.exchanges["m1"].ended


def test_last_event_id_is_that_of_the_latest_durable_frame() -> None:
    view = view_of({"type": "connection", "event_id": "e-0"})
    assert view.last_event_id == "e-0"
    view.feed(delta("x", 1))
    assert view.last_event_id == "e-0"
    view.feed(response("x"))
    assert view.last_event_id == "e-m1-1"


def test_queue_position_is_shown_until_the_reply_begins() -> None:
    view = view_of({"type": "queued", "message_id": "m1", "position": 3, "eta_ms": 10})
    assert view.exchanges["m1"].queue_position == 3
    view.feed(delta("x", 1))
    assert view.exchanges["m1"].queue_position is None


def test_echo_after_deltas_completes_the_exchange() -> None:
    echo = {"type": "echo", "message_id": "m1", "id": "k", "conversation_id": "c", "content": "hi", "timestamp": "t"}
    view = view_of(delta("x", 1), echo)
    exchange = view.by_client_id("k")
    assert exchange is not None
    assert (exchange.content, exchange.conversation_id, exchange.text) == ("hi", "c", "x")


def test_in_conversation_sorts_by_time_and_puts_the_unseen_last() -> None:
    view = ConversationView()
    view.feed({**delta("x", 1, message="m3"), "conversation_id": "c"})
    for message, time in (("m2", "2"), ("m1", "1")):
        view.feed({"type": "echo", "message_id": message, "conversation_id": "c", "content": "", "timestamp": time})
    view.feed({"type": "echo", "message_id": "mx", "conversation_id": "d", "content": "", "timestamp": "0"})
    assert [one.message_id for one in view.in_conversation("c")] == ["m1", "m2", "m3"]


def test_history_rows_merge_by_message_and_the_higher_attempt_wins() -> None:
    view = view_of(delta("half", 1), response("newer", attempt=3, message="m2"))
    view.merge(
        [
            {"role": "user", "id": "m1", "content": "hi", "conversation_id": "c", "created_at": "t"},
            {"role": "assistant", "reply_to": "m1", "content": "whole", "state": "complete", "attempt": 1},
            {"role": "assistant", "reply_to": "m2", "content": "older", "state": "complete", "attempt": 2},
            {"role": "assistant", "reply_to": "m3", "content": "", "state": "generating", "attempt": 1},
            {"role": "assistant", "reply_to": "m4", "state": "failed", "attempt": 1, "error": {"code": "x"}},
            {"role": "assistant", "content": "no reply_to", "state": "complete"},
        ]
    )
    shown = {key: (one.text, one.phase) for key, one in view.exchanges.items()}
    assert shown == {
        "m1": ("whole", Phase.COMPLETE),
        "m2": ("newer", Phase.COMPLETE),
        "m3": ("", Phase.WAITING),
        "m4": ("", Phase.FAILED),
    }


def test_view_forgets_the_oldest_ended_exchanges_beyond_its_bound() -> None:
    view = ConversationView(keep=2)
    view.feed(delta("running", 1, message="m0"))
    for number in range(1, 6):
        view.feed(response("x", message=f"m{number}"))
    assert set(view.exchanges) == {"m0", "m5"}


@dataclass
class Reply:
    """The truth of one reply: the pieces of each of its attempts; the last attempt is the one that ends."""

    message: str
    attempts: list[list[str]]
    fails: bool

    def frames(self) -> list[Frame]:
        """Return everything that a server publishes about this reply, in order."""
        frames: list[Frame] = []
        for number, pieces in enumerate(self.attempts, start=1):
            if number > 1:
                frames.append(reset(number, self.message))
            frames += [delta(text, seq, attempt=number, message=self.message) for seq, text in enumerate(pieces, 1)]
        last = len(self.attempts)
        end = failure(last, self.message) if self.fails else response(self.text, attempt=last, message=self.message)
        return [*frames, end]

    @property
    def text(self) -> str:
        return "".join(self.attempts[-1])

    def shown_at(self, attempt: int, seq: int) -> str:
        return "".join(self.attempts[attempt - 1][:seq]) if attempt else ""


def _replies() -> st.SearchStrategy[list[Reply]]:
    attempts = st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=6), min_size=1, max_size=3)
    made = st.lists(st.tuples(attempts, st.booleans()), min_size=1, max_size=3)
    return made.map(lambda many: [Reply(f"m{number}", pieces, fails) for number, (pieces, fails) in enumerate(many)])


def _check_shown(view: ConversationView, replies: list[Reply]) -> None:
    for reply in replies:
        exchange = view.exchanges.get(reply.message)
        if exchange is not None and not exchange.ended:
            assert exchange.text == reply.shown_at(exchange.attempt, exchange.seq)


def _check_ended(view: ConversationView, replies: list[Reply]) -> None:
    for reply in replies:
        exchange = view.exchanges[reply.message]
        assert exchange.phase is (Phase.FAILED if reply.fails else Phase.COMPLETE)
        assert reply.fails or exchange.text == reply.text


@given(replies=_replies(), seed=st.randoms(use_true_random=False), copies=st.integers(1, 3))
def test_any_order_and_any_number_of_copies_ends_in_the_right_text(
    replies: list[Reply], seed: random.Random, copies: int
) -> None:
    frames = [frame for reply in replies for frame in reply.frames()] * copies
    seed.shuffle(frames)
    view = ConversationView()
    for frame in frames:
        view.feed(frame)
        _check_shown(view, replies)
    _check_ended(view, replies)


@dataclass
class LossyServer:
    """Publishes replies piece by piece, loses deltas, repeats frames, and answers a `resume` as the protocol says."""

    replies: list[Reply]
    seed: random.Random
    view: ConversationView = field(default_factory=ConversationView)
    live: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    durable: list[Frame] = field(default_factory=list)

    def run(self) -> None:
        pending = [reply.frames() for reply in self.replies]
        while pending:
            frames = self.seed.choice(pending)
            self._publish(frames.pop(0))
            if not frames:
                pending.remove(frames)
            if self.view.wants_resume:
                self._attach()
            _check_shown(self.view, self.replies)
        self._attach()

    def _publish(self, frame: Frame) -> None:
        self._keep(frame)
        if "event_id" in frame:
            self.durable.append(frame)
            self.live.pop(frame["message_id"], None)
        if self.seed.random() < 0.7:
            self.view.feed(frame)
        if self.seed.random() < 0.3:
            self.view.feed(frame)

    def _keep(self, frame: Frame) -> None:
        if frame["type"] == "reset":
            self.live[frame["message_id"]] = (frame["attempt"], 0, "")
        if frame["type"] == "delta":
            _, _, text = self.live.get(frame["message_id"], (1, 0, ""))
            self.live[frame["message_id"]] = (frame["attempt"], frame["seq"], text + frame["content"])

    def _attach(self) -> None:
        self.view.resuming()
        known = [frame["event_id"] for frame in self.durable]
        behind = known.index(self.view.last_event_id) + 1 if self.view.last_event_id in known else 0
        # A server may begin the replay earlier than asked: a repeat changes nothing.
        behind = self.seed.randint(0, behind)
        self.view.feed({"type": "connection", "recovered": True})
        for frame in self.durable[behind:]:
            self.view.feed(frame)
        for message, (attempt, seq, text) in self.live.items():
            self.view.feed(snapshot(text, seq, attempt=attempt, message=message))


@given(replies=_replies(), seed=st.randoms(use_true_random=False))
def test_lost_and_repeated_frames_with_resumes_end_in_the_right_text(replies: list[Reply], seed: random.Random) -> None:
    server = LossyServer(replies, seed)
    server.run()
    # A durable frame that was lost before a later one came is what `wants_resume` cannot see; the history has it.
    server.view.merge(
        {
            "role": "assistant",
            "reply_to": reply.message,
            "content": reply.text,
            "state": "failed" if reply.fails else "complete",
            "attempt": len(reply.attempts),
        }
        for reply in replies
    )
    _check_ended(server.view, replies)
