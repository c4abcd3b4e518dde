"""The rhythm of deltas under load."""

import pytest

from duologue.ai_consumer.live_text import BUSY_REPLIES, Pace


def _pace(running: int) -> Pace:
    return Pace(interval_ms=40, max_bytes=256, running=lambda: running)


@pytest.mark.parametrize(
    ("running", "seconds"), [(0, 0.04), (BUSY_REPLIES, 0.04), (2 * BUSY_REPLIES, 0.06), (10 * BUSY_REPLIES, 0.08)]
)
def test_interval_with_more_replies_grows_to_double(running: int, seconds: float) -> None:
    assert _pace(running).interval_seconds() == pytest.approx(seconds)


def test_model_under_load_in_a_long_reply_is_read_once_a_delta() -> None:
    assert _pace(3 * BUSY_REPLIES).reading_pause_seconds(5.0) == pytest.approx(0.08)


@pytest.mark.parametrize(("running", "streaming_seconds"), [(BUSY_REPLIES, 5.0), (3 * BUSY_REPLIES, 0.5)])
def test_model_with_few_replies_or_a_short_one_is_read_at_once(running: int, streaming_seconds: float) -> None:
    assert _pace(running).reading_pause_seconds(streaming_seconds) == 0.0
