"""A connection's states: what each input does in each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from duologue.domain.errors import Rejected, StoreUnavailable
from duologue.domain.ids import UserKey
from duologue.protocol import frames
from duologue.protocol.codes import ErrorCode
from duologue.protocol.parsing import FrameRefused
from duologue.protocol.session import (
    FEATURES,
    Accept,
    Attach,
    Close,
    Effect,
    Handshake,
    IllegalTransition,
    Place,
    Reattach,
    Resolve,
    Send,
    SendError,
    Session,
    State,
    Submit,
    TellTyping,
    Terms,
    Verify,
)

ANN: Final = UserKey("default", "ann")
BOB: Final = UserKey("default", "bob")
PLACE: Final = Place(uid="row", username="Ann", character_id="a", conversation_id="c")
LIMITS: Final = frames.Limits(
    frame_bytes=1,
    content_characters=2,
    connections_per_user=3,
    send_queue_bytes=4,
    metadata_bytes=5,
    messages=6,
    messages_window_seconds=7,
)
TERMS: Final = Terms(server_id="here", app_name="Duologue", limits=LIMITS, models=frozenset({"small"}))
ACK: Final[dict[str, Any]] = {
    "client_id": "k",
    "message_id": "m",
    "conversation_id": "c",
    "timestamp": 1_000,
    "duplicate": False,
}


def _session() -> Session:
    return Session("session", TERMS, lambda: 1_700_000_000_123)


def _in_state(state: State, handshake: Handshake = Handshake(token="t")) -> Session:  # noqa: B008
    """Return a session that was led to a state."""
    session = _session()
    steps: list[tuple[State, Callable[[], object]]] = [
        (State.CONNECTING, lambda: session.handshake_received(handshake)),
        (State.VERIFYING, lambda: session.token_verified(ANN)),
        (State.RESOLVING, lambda: session.resolved(PLACE)),
        (State.ATTACHING, session.attached),
        (State.OPEN, session.draining),
        (State.CLOSING, session.client_closed),
    ]
    for before, step in steps:
        if session.state is state:
            break
        assert session.state is before
        step()
    assert session.state is state
    return session


def _frame(effect: Effect) -> dict[str, Any]:
    assert isinstance(effect, Send | SendError)
    frame = json.loads(effect.frame)
    assert isinstance(frame, dict)
    return frame


def _failure(effects: list[Effect]) -> tuple[str, int]:
    """Return the codes of an error frame and of the close behind it."""
    error, close = effects
    assert isinstance(error, SendError)
    assert isinstance(close, Close)
    assert _frame(error)["code"] == error.code
    return error.code, close.code


# Connecting


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ((), None),
        (("other",), None),
        (("duologue.v1",), "duologue.v1"),
        (("bearer", "t"), "bearer"),
        (("duologue.v1", "bearer", "t"), "bearer"),
    ],
)
def test_handshake_is_accepted_and_the_token_verified(offered: tuple[str, ...], selected: str | None) -> None:
    session = _session()
    effects = session.handshake_received(Handshake(token="t", subprotocols=offered))
    assert effects == [Accept(selected), Verify("t")]
    assert session.state is State.VERIFYING


def test_handshake_without_token_is_accepted_to_say_so() -> None:
    session = _session()
    accept, *failure = session.handshake_received(Handshake(subprotocols=("bearer",)))
    assert accept == Accept("bearer")
    assert _failure(failure) == (ErrorCode.INVALID_TOKEN, 4401)
    assert session.state is State.CLOSING


def test_token_verified_leads_to_the_store() -> None:
    session = _in_state(State.VERIFYING, Handshake(token="t", user_id="ann", character="x", conversation_id="new"))
    assert session.token_verified(ANN) == [Resolve("x", "new")]
    assert session.state is State.RESOLVING


def test_token_of_another_than_claimed_is_4403() -> None:
    session = _in_state(State.VERIFYING, Handshake(token="t", user_id="ann"))
    assert _failure(session.token_verified(BOB)) == (ErrorCode.USERID_MISMATCH, 4403)


@pytest.mark.parametrize("state", [State.VERIFYING, State.RESOLVING])
def test_token_refused_is_4401_also_by_the_store(state: State) -> None:
    assert _failure(_in_state(state).token_refused("no")) == (ErrorCode.INVALID_TOKEN, 4401)


def test_resolved_leads_to_the_stream() -> None:
    session = _in_state(State.RESOLVING, Handshake(token="t", last_event_id="e:7"))
    assert session.resolved(PLACE) == [Attach("e:7")]
    assert session.state is State.ATTACHING


def test_place_that_is_not_there_is_1008() -> None:
    refusal = Rejected("conversation_not_found", "no")
    assert _failure(_in_state(State.RESOLVING).not_found(refusal)) == (ErrorCode.CONVERSATION_NOT_FOUND, 1008)


@pytest.mark.parametrize("state", [State.RESOLVING, State.ATTACHING])
def test_dependency_away_is_1013_with_a_time_to_retry(state: State) -> None:
    effects = _in_state(state).unavailable(StoreUnavailable("secret words", retry_after_seconds=3.5))
    assert _failure(effects) == (ErrorCode.SERVICE_UNAVAILABLE, 1013)
    frame = _frame(effects[0])
    assert (frame["temporary"], frame["retry_after"]) == (True, 3.5)
    assert "secret" not in frame["message"]


def test_greeting_is_the_connection_frame() -> None:
    session = _in_state(State.ATTACHING)
    [effect] = session.greeted(recovered=True, event_id="e:7")
    assert _frame(effect) == {
        "type": "connection",
        "message": "Connected to Duologue",
        "session_id": "session",
        "userid": "ann",
        "username": "Ann",
        "character_id": "a",
        "conversation_id": "c",
        "server_id": "here",
        "protocol": 1,
        "features": FEATURES,
        "server_time": "2023-11-14T22:13:20.123Z",
        "limits": json.loads(frames._encoder.encode(LIMITS)),
        "recovered": True,
        "event_id": "e:7",
    }
    assert session.state is State.ATTACHING
    assert session.attached() == []
    assert session.state.value == "open"


# Open


@pytest.mark.parametrize(
    "frame",
    [
        frames.Message(content="Hello", userid="ann", model="small"),
        frames.Stop(message_id="m", id="k"),
        frames.Regenerate(message_id="m", attempt=2),
    ],
)
def test_message_stop_and_regenerate_are_submitted(frame: frames.Submittable) -> None:
    assert _in_state(State.OPEN).frame_received(frame) == [Submit(frame)]


def test_typing_is_told() -> None:
    frame = frames.ClientTyping(conversation_id="c", active=True)
    assert _in_state(State.OPEN).frame_received(frame) == [TellTyping(frame)]


@pytest.mark.parametrize("feature", ["stop", "regenerate", "typing", "queued"])
def test_feature_that_is_there_is_listed(feature: str) -> None:
    assert feature in FEATURES


@pytest.mark.parametrize(
    ("frame", "code", "client_id"),
    [
        (frames.Message(content="a", id="k", userid="bob"), ErrorCode.USERID_MISMATCH, "k"),
        (frames.Message(content="a", id="k", model="large"), ErrorCode.MODEL_NOT_ALLOWED, "k"),
    ],
)
def test_frame_that_is_refused_is_told_by_its_id_and_the_socket_lives(
    frame: frames.ClientFrame, code: ErrorCode, client_id: str | None
) -> None:
    session = _in_state(State.OPEN)
    [effect] = session.frame_received(frame)
    error = _frame(effect)
    assert (error["code"], error.get("id"), error["userid"]) == (code, client_id, "ann")
    assert session.state is State.OPEN


def test_ping_is_answered_with_its_id_and_the_time() -> None:
    [effect] = _in_state(State.OPEN).frame_received(frames.Ping(id="k"))
    assert _frame(effect) == {"type": "pong", "id": "k", "server_time": "2023-11-14T22:13:20.123Z"}


def test_resume_attaches_again_and_is_greeted_on_the_open_socket() -> None:
    session = _in_state(State.OPEN)
    assert session.frame_received(frames.Resume(last_event_id="e:7")) == [Reattach("e:7")]
    [effect] = session.greeted(recovered=False, event_id="e:0")
    assert _frame(effect)["recovered"] is False
    assert session.state is State.OPEN


def test_token_is_renewed_in_place() -> None:
    session = _in_state(State.OPEN)
    assert session.frame_received(frames.Auth(token="t2")) == [Verify("t2", renewal=True)]
    assert session.token_renewed(ANN) == []
    assert _frame(session.token_renewed(BOB)[0])["code"] == "userid_mismatch"
    assert _frame(session.renewal_refused("no")[0])["code"] == "invalid_token"
    assert session.state is State.OPEN


def test_acknowledgement_names_message_and_conversation() -> None:
    [effect] = _in_state(State.OPEN).acknowledged(**ACK)
    assert _frame(effect) == {
        "type": "ack",
        "id": "k",
        "message_id": "m",
        "conversation_id": "c",
        "timestamp": "1970-01-01T00:00:01.000Z",
        "duplicate": False,
    }


def test_frame_without_id_is_not_acknowledged() -> None:
    assert _in_state(State.OPEN).acknowledged(**ACK | {"client_id": None}) == []


def test_rejection_carries_id_wait_and_correlation() -> None:
    refusal = Rejected("rate_limited", "slowly", retry_after_seconds=1.5)
    [effect] = _in_state(State.OPEN).rejected(refusal, client_id="k", correlation_id="x")
    error = _frame(effect)
    assert (error["code"], error["id"], error["retry_after"], error["correlation_id"], error["temporary"]) == (
        "rate_limited",
        "k",
        1.5,
        "x",
        True,
    )


def test_refused_frame_is_told_by_its_id() -> None:
    [effect] = _in_state(State.OPEN).frame_refused(FrameRefused(ErrorCode.INVALID_JSON, "no", "k"))
    assert (_frame(effect)["code"], _frame(effect)["id"]) == ("invalid_json", "k")


# Closing


@pytest.mark.parametrize(
    ("end", "error", "close"),
    [
        (Session.revoked, ErrorCode.INVALID_TOKEN, Close(4401)),  # type: ignore[arg-type]
        (Session.displaced, ErrorCode.TOO_MANY_CONNECTIONS, Close(4429)),  # type: ignore[arg-type]
        (lambda session: session.failed("x"), ErrorCode.INTERNAL_ERROR, Close(1013)),  # type: ignore[arg-type]
        (Session.draining, None, Close(1012)),  # type: ignore[arg-type]
        (Session.feed_lost, None, Close(1013)),  # type: ignore[arg-type]
        (Session.reader_too_slow, None, Close(1013, drop=True)),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("state", [State.VERIFYING, State.RESOLVING, State.ATTACHING, State.OPEN])
def test_end_closes_once_in_every_state(
    state: State, end: Callable[[Session], list[Effect]], error: ErrorCode | None, close: Close
) -> None:
    session = _in_state(state)
    effects = end(session)
    assert effects[-1] == close
    assert [effect.code for effect in effects if isinstance(effect, SendError)] == ([error] if error else [])
    assert session.state is State.CLOSING
    assert end(session) == []


INPUTS: Final[dict[str, Callable[[Session], list[Effect]]]] = {
    "token_verified": lambda session: session.token_verified(ANN),
    "token_refused": lambda session: session.token_refused("no"),
    "resolved": lambda session: session.resolved(PLACE),
    "not_found": lambda session: session.not_found(Rejected("character_not_found", "no")),
    "greeted": lambda session: session.greeted(recovered=True, event_id="e:1"),
    "attached": lambda session: session.attached(),
    "frame_received": lambda session: session.frame_received(frames.Ping()),
    "frame_refused": lambda session: session.frame_refused(FrameRefused(ErrorCode.INVALID_JSON, "no")),
    "unavailable": lambda session: session.unavailable(StoreUnavailable("away")),
}
LEGAL: Final = {
    State.CONNECTING: set[str](),
    State.VERIFYING: {"token_verified", "token_refused"},
    State.RESOLVING: {"resolved", "not_found", "token_refused", "unavailable"},
    State.ATTACHING: {"greeted", "attached", "unavailable"},
    State.OPEN: {"greeted", "frame_received", "frame_refused"},
}
ANY_TIME: Final[dict[str, Callable[[Session], list[Effect]]]] = {
    "acknowledged": lambda session: session.acknowledged(**ACK),
    "rejected": lambda session: session.rejected(Rejected("rate_limited", "no"), client_id="k"),
    "token_renewed": lambda session: session.token_renewed(BOB),
    "renewal_refused": lambda session: session.renewal_refused("no"),
    "revoked": Session.revoked,
    "displaced": Session.displaced,
    "draining": Session.draining,
    "feed_lost": Session.feed_lost,
    "reader_too_slow": Session.reader_too_slow,
    "failed": lambda session: session.failed("x"),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("state", LEGAL)
def test_input_is_legal_in_its_states_only(state: State, name: str) -> None:
    session = _in_state(state)
    if name in LEGAL[state]:
        INPUTS[name](session)
    else:
        with pytest.raises(IllegalTransition):
            INPUTS[name](session)
        assert session.state is state


@pytest.mark.parametrize("name", [*INPUTS, *ANY_TIME])
@pytest.mark.parametrize("state", [State.CLOSING, State.CLOSED])
def test_input_that_comes_too_late_has_no_effect(state: State, name: str) -> None:
    session = _in_state(state)
    assert (INPUTS | ANY_TIME)[name](session) == []
    assert session.state is state


@pytest.mark.parametrize("state", [state for state in State if state is not State.CONNECTING])
def test_second_handshake_is_illegal(state: State) -> None:
    with pytest.raises(IllegalTransition):
        _in_state(state).handshake_received(Handshake())


class Walk(RuleBasedStateMachine):
    """Any inputs, in any order: the promises about what goes out hold in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.session = _session()
        self.effects: list[Effect] = []

    @rule(token=st.sampled_from([None, "t"]), user_id=st.sampled_from([None, "ann", "bob"]))
    @precondition(lambda self: self.session.state is State.CONNECTING)
    def connect(self, token: str | None, user_id: str | None) -> None:
        self.effects += self.session.handshake_received(Handshake(token=token, user_id=user_id))

    @rule(name=st.sampled_from(sorted(INPUTS)))
    def put_in(self, name: str) -> None:
        before = self.session.state
        try:
            self.effects += INPUTS[name](self.session)
        except IllegalTransition:
            assert name not in LEGAL[before]
            assert self.session.state is before

    @rule(name=st.sampled_from(sorted(ANY_TIME)))
    @precondition(lambda self: self.session.state is not State.CONNECTING)
    def happen(self, name: str) -> None:
        self.effects += ANY_TIME[name](self.session)

    @rule()
    def lose(self) -> None:
        self.session.client_closed()

    @invariant()
    def accepts_first_and_closes_last(self) -> None:
        kinds = [type(effect) for effect in self.effects]
        assert kinds.count(Accept) <= 1
        assert kinds.count(Close) <= 1
        assert not kinds or kinds[0] is Accept
        if Close in kinds:
            assert kinds[-1] is Close
            assert self.session.state in (State.CLOSING, State.CLOSED)

    @invariant()
    def asks_each_thing_once_and_in_order(self) -> None:
        order = [kind for effect in self.effects if (kind := type(effect)) in (Accept, Verify, Resolve, Attach)]
        assert order == [Accept, Verify, Resolve, Attach][: len(order)]


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)


ANY_FRAME: Final[list[frames.ClientFrame]] = [
    frames.Ping(),
    frames.Resume(last_event_id="e"),
    frames.Message(content="a"),
    frames.Stop(message_id="m"),
    frames.ClientTyping(conversation_id="c", active=False),
]


@given(st.sampled_from(ANY_FRAME))
def test_open_socket_answers_every_frame(frame: frames.ClientFrame) -> None:
    assert len(_in_state(State.OPEN).frame_received(frame)) == 1
