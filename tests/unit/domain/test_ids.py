"""Identities."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from duologue.domain.ids import is_valid_user_id, message_id, new_id

_text = st.text(max_size=20)
_parts = st.tuples(_text, _text, _text, _text, st.none() | st.text(min_size=1, max_size=20))


def _id(parts: tuple[str, str, str, str, str | None]) -> str:
    tenant, uid, client_id, content, conversation_id = parts
    return message_id(tenant=tenant, uid=uid, client_id=client_id, content=content, conversation_id=conversation_id)


@given(_parts, _parts)
def test_message_id_of_two_frames_is_equal_only_for_the_same_frame(
    one: tuple[str, str, str, str, str | None], other: tuple[str, str, str, str, str | None]
) -> None:
    assert (_id(one) == _id(other)) == (one == other)


def test_message_id_is_a_uuid5() -> None:
    assert uuid.UUID(_id(("default", "u", "1", "hi", None))).version == 5


def test_message_id_with_parts_shifted_differs() -> None:
    assert _id(("default", "u", "ab", "c", None)) != _id(("default", "u", "a", "bc", None))


def test_new_id_sorts_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


def test_user_id_of_allowed_characters_is_valid() -> None:
    assert is_valid_user_id("Tony.Stark_3000@avengers-hq")


def test_user_id_too_long_empty_or_foreign_is_invalid() -> None:
    assert not any(map(is_valid_user_id, ["", "a" * 65, "a b", "a{b}", "a\n", "ü"]))
