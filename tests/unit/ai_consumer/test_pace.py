"""When the next delta leaves."""

from __future__ import annotations

import pytest

from duologue.ai_consumer.live_text import Pace


@pytest.mark.parametrize(("running", "expected"), [(0, 0.04), (100, 0.04), (200, 0.06), (300, 0.08), (5000, 0.08)])
def test_interval_under_load_grows_to_double(running: int, expected: float) -> None:
    pace = Pace(interval_ms=40, max_bytes=256, running=lambda: running)
    assert pace.interval_seconds() == pytest.approx(expected)
