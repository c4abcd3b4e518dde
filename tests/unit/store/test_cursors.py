"""Cursors of pages."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.domain.errors import Rejected
from duologue.store.cursors import Place, decode_cursor, encode_cursor


@given(st.builds(Place, st.integers(0, 2**62), st.text(), st.integers(0, 2**62)))
def test_cursor_decodes_to_its_place(place: Place) -> None:
    assert decode_cursor(encode_cursor(place)) == place


@given(st.builds(Place, st.integers(0, 2**62), st.text()))
def test_cursor_can_stand_in_an_address(place: Place) -> None:
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in encode_cursor(place))


@given(st.text())
def test_any_text_is_a_place_or_rejected(text: str) -> None:
    with suppress(Rejected):
        assert isinstance(decode_cursor(text), Place)


@pytest.mark.parametrize("text", ["", "x", "W10", "bnVsbA", "WzEsMl0"])
def test_text_that_is_no_cursor_is_rejected(text: str) -> None:
    with pytest.raises(Rejected):
        decode_cursor(text)


@pytest.mark.parametrize("made_up", [b"[-1]", b'[1,"",-1]', b"[9223372036854775808]", b'[1,"",99999999999999999999]'])
def test_cursor_with_a_number_that_no_column_holds_is_rejected(made_up: bytes) -> None:
    with pytest.raises(Rejected):
        decode_cursor(urlsafe_b64encode(made_up).decode())
