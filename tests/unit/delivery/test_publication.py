"""Publications as they are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.delivery.names import EventPosition
from duologue.delivery.publication import DELTA, DURABLE, OF_SOCKET, REVOCATION, REVOKED, Publication, parse


@given(frame=st.binary())
def test_parse_delta_with_any_frame_returns_it_whole(frame: bytes) -> None:
    assert parse(b"17 d - " + frame) == Publication(17, DELTA, None, frame)


def test_parse_durable_frame_returns_its_event() -> None:
    assert parse(b'17 e ab:3 {"a": 1}') == Publication(17, DURABLE, EventPosition("ab", 3), b'{"a": 1}')


def test_parse_frame_of_a_socket_returns_its_session() -> None:
    assert parse(b'17 s 0197-ab {"a": 1}') == Publication(17, OF_SOCKET, None, b'{"a": 1}', "0197-ab")


def test_parse_revocation_is_of_its_own_kind() -> None:
    assert parse(REVOCATION).kind == REVOKED


@pytest.mark.parametrize("payload", [b"", b"{}", b"x d - {}", b"1 d {}", b"1 e abc {}", b"1 e a:\xff {}"])
def test_parse_anything_else_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(payload)
