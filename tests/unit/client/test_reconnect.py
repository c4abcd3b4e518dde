from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duologue.client.reconnect import (
    LONGEST_DELAY_SECONDS,
    STABLE_SECONDS,
    Reaction,
    ReconnectPolicy,
    in_words,
)
from duologue.protocol.codes import CloseCode


@pytest.mark.parametrize(
    ("code", "reaction"),
    [
        (1000, Reaction.RECONNECT),
        (1001, Reaction.RECONNECT),
        (1006, Reaction.RECONNECT),
        (1008, Reaction.STAY_CLOSED),
        (1009, Reaction.WITHOUT_FRAME),
        (1011, Reaction.RECONNECT),
        (1012, Reaction.RECONNECT),
        (1013, Reaction.RECONNECT),
        (4401, Reaction.NEW_TOKEN),
        (4403, Reaction.STAY_CLOSED),
        (4429, Reaction.STAY_CLOSED),
        (4999, Reaction.RECONNECT),
    ],
)
def test_reaction_follows_the_close_code(code: int, reaction: Reaction) -> None:
    assert ReconnectPolicy().closed(code, open_seconds=0) is reaction


def test_second_invalid_token_in_a_row_stays_closed() -> None:
    policy = ReconnectPolicy()
    assert policy.closed(4401, open_seconds=0) is Reaction.NEW_TOKEN
    assert policy.closed(1006, open_seconds=0) is Reaction.RECONNECT
    assert policy.closed(4401, open_seconds=0) is Reaction.STAY_CLOSED


def test_invalid_token_after_a_stable_connection_gets_a_new_token_again() -> None:
    policy = ReconnectPolicy()
    policy.closed(4401, open_seconds=0)
    assert policy.closed(4401, open_seconds=STABLE_SECONDS) is Reaction.NEW_TOKEN


def test_delays_double_from_half_a_second_to_twenty_seconds() -> None:
    policy = ReconnectPolicy()
    assert [policy.delay(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 20, 20]


def test_stable_connection_makes_the_next_failure_a_first_one() -> None:
    policy = ReconnectPolicy()
    for _ in range(5):
        policy.delay(1.0)
    policy.closed(1006, open_seconds=STABLE_SECONDS)
    assert policy.delay(1.0) == 0.5


@given(draw=st.floats(0, 1), failures=st.integers(0, 5000))
def test_delay_is_a_full_jitter_within_its_bounds(draw: float, failures: int) -> None:
    policy = ReconnectPolicy()
    policy._failures = failures
    assert 0 <= policy.delay(draw) <= LONGEST_DELAY_SECONDS


def test_every_close_code_has_words() -> None:
    for code in CloseCode:
        assert "code" not in in_words(code)
    assert in_words(4999, "why") == "the connection was closed with code 4999 (why)"
