"""Names in Redis and ids of events."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.delivery.names import NOWHERE, EventPosition, epochs, names_of, parse_event_id
from duologue.domain.ids import UserKey


@given(number=st.integers(min_value=0, max_value=10**15 - 1))
def test_event_id_read_back_is_the_same_position(number: int) -> None:
    position = EventPosition(next(epochs()), number)

    assert parse_event_id(position.event_id) == position
    assert re.fullmatch(r"[A-Za-z0-9_:.-]{1,64}", position.event_id)


@given(st.text())
def test_event_id_of_any_text_is_read_without_error(text: str) -> None:
    position = parse_event_id(text)

    assert position == NOWHERE or position.event_id.partition(":")[0] == position.epoch


@pytest.mark.parametrize(
    "text", ["", ":", "a:", ":1", "a:1:2", "a:-1", "a:1\n", "ä:1", "a:" + "9" * 16, "a" * 41 + ":1"]
)
def test_event_id_that_is_none_of_ours_is_nowhere(text: str) -> None:
    assert parse_event_id(text) == NOWHERE


def test_epochs_of_two_sources_never_meet() -> None:
    first, second = epochs(), epochs()

    drawn = [*itertools.islice(first, 1000), *itertools.islice(second, 1000)]

    assert len(set(drawn)) == 2000


def test_keys_of_a_user_share_one_hash_tag() -> None:
    names = names_of(UserKey("acme", "a.b@c"))

    keys = [names.state, names.events, names.applied, names.rate, names.repeat_rate, names.note("m")]
    assert len(set(keys)) == 6
    assert all("{acme:a.b@c}" in key for key in keys)
