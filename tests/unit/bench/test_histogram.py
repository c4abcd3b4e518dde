"""The histogram's percentiles against those of the values themselves."""

from __future__ import annotations

import random

import pytest

from duologue.bench.histogram import Histogram

SHARES = (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


def of(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def exact(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1_000_000 * len(ordered)) // 1_000_000) - 1)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("longest", [0.0005, 0.02, 1.0, 300.0])
def test_percentile_is_the_true_one_or_less_than_a_thousandth_above(share: float, longest: float) -> None:
    chance = random.Random(f"{longest}")
    values = [chance.uniform(0, 1) ** 3 * longest for _ in range(5000)]
    true, found = exact(values, share), of(values).percentile(share)
    assert true - 1e-12 <= found <= true * (1 + 1 / 1024) + 1e-6


def test_percentiles_of_known_data_are_known() -> None:
    histogram = of([number / 1000 for number in range(1, 101)])
    assert [round(histogram.percentile(share), 3) for share in (0.5, 0.95, 0.99)] == [0.05, 0.095, 0.099]
    assert (histogram.count, histogram.longest, histogram.percentile(1.0)) == (100, 0.1, 0.1)


def test_histogram_of_nothing_has_percentiles_of_zero() -> None:
    assert (Histogram().percentile(0.99), Histogram().longest, Histogram().count) == (0.0, 0.0, 0)


def test_negative_duration_counts_as_zero() -> None:
    histogram = of([-1.0, -1.0, 0.5])
    assert (histogram.count, histogram.percentile(0.5)) == (3, 1e-6)


def test_added_histograms_are_as_one_of_all_values() -> None:
    one, other = [0.001, 0.2, 3.0], [0.0005, 0.7]
    added = of(one)
    added.add(of(other))
    together = of(one + other)
    assert [added.percentile(share) for share in SHARES] == [together.percentile(share) for share in SHARES]
    assert (added.count, added.longest) == (5, 3.0)
