"""When a run's figures are those of the load itself."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bench_reports import step

from duologue.bench.run import load_note


@pytest.mark.parametrize("changes", [{"load_core_share": 0.7}, {"sent": 1000, "late": 10}, {"sent": 0, "late": 0}])
def test_load_within_its_bounds_is_not_mentioned(changes: dict[str, Any]) -> None:
    assert load_note(step(**changes)) is None


@pytest.mark.parametrize("changes", [{"load_core_share": 0.71}, {"sent": 1000, "late": 11}])
def test_load_that_was_busy_or_late_is_marked(changes: dict[str, Any]) -> None:
    note = load_note(step(**changes))
    assert note is not None
    assert note.startswith("load generator at its end in 100 messages/s")
