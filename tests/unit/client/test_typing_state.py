from __future__ import annotations

from typing import Any

from duologue.client.typing_state import LAPSE_SECONDS, REPEAT_SECONDS, TypingElsewhere, TypingTeller


def typing(active: bool, *, role: str = "user", conversation: str = "c") -> dict[str, Any]:
    return {"type": "typing", "role": role, "conversation_id": conversation, "active": active}


def told(teller: TypingTeller) -> list[bool]:
    return [frame["active"] for frame in teller.take_due()]


def test_teller_says_it_once_and_again_after_a_while() -> None:
    teller = TypingTeller()
    teller.tell("c", active=True, now=10.0)
    assert teller.take_due() == [{"type": "typing", "conversation_id": "c", "active": True}]
    teller.tell("c", active=True, now=10.0 + REPEAT_SECONDS - 0.1)
    assert told(teller) == []
    teller.tell("c", active=True, now=10.0 + REPEAT_SECONDS)
    assert told(teller) == [True]


def test_teller_says_the_end_only_of_what_it_has_begun() -> None:
    teller = TypingTeller()
    teller.tell("c", active=False, now=10.0)
    assert told(teller) == []
    teller.tell("c", active=True, now=10.0)
    teller.tell("c", active=False, now=10.1)
    assert told(teller) == [False]
    teller.tell("c", active=True, now=10.2)
    assert told(teller) == [True]


def test_teller_that_forgets_begins_anew() -> None:
    teller = TypingTeller()
    teller.tell("c", active=True, now=10.0)
    teller.forget()
    assert told(teller) == []
    teller.tell("c", active=True, now=10.1)
    assert told(teller) == [True]


def test_typing_elsewhere_holds_until_it_ends_or_lapses() -> None:
    elsewhere = TypingElsewhere()
    elsewhere.feed(typing(True), now=10.0)
    assert elsewhere.is_active("c", now=10.0 + LAPSE_SECONDS - 0.1)
    assert not elsewhere.is_active("other", now=10.0)
    assert not elsewhere.is_active("c", now=10.0 + LAPSE_SECONDS)
    elsewhere.feed(typing(True), now=20.0)
    elsewhere.feed(typing(False), now=20.1)
    assert not elsewhere.is_active("c", now=20.1)


def test_typing_elsewhere_ends_with_what_was_said() -> None:
    elsewhere = TypingElsewhere()
    elsewhere.feed(typing(True), now=10.0)
    elsewhere.feed({"type": "echo", "conversation_id": "other"}, now=10.1)
    assert elsewhere.is_active("c", now=10.1)
    elsewhere.feed({"type": "echo", "conversation_id": "c"}, now=10.1)
    assert not elsewhere.is_active("c", now=10.1)


def test_typing_of_the_model_and_malformed_frames_are_not_somebody_elsewhere() -> None:
    elsewhere = TypingElsewhere()
    for frame in (typing(True, role="ai"), {"type": "typing", "role": "user", "active": True}, {}):
        elsewhere.feed(frame, now=10.0)
    assert not elsewhere.is_active("c", now=10.0)
