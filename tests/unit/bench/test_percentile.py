"""Percentiles of a few values."""

from __future__ import annotations

from duologue.bench.percentile import percentile


def test_percentile_of_nothing_is_nothing() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0], 0.99) == 1.0
