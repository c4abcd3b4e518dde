"""The guard of what a message costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.bench_reports import report, step

from duologue.bench.guard import Baseline, baseline_of, read_baseline, verdicts
from duologue.domain.errors import StartRefused


def costing(duologue: float, valkey: float = 0.01, rate: float = 100.0) -> Baseline:
    return Baseline(cpu_per_message={"duologue": duologue, "valkey": valkey}, rate=rate, commit="abc")


def test_cost_is_counted_in_calibrations() -> None:
    assert baseline_of(report(), 0.1).cpu_per_message == {"duologue": 0.03, "valkey": 0.01}
    assert baseline_of(report(), 0.2).cpu_per_message == {"duologue": 0.015, "valkey": 0.005}


def test_cost_of_a_run_that_was_not_correct_is_not_told() -> None:
    with pytest.raises(StartRefused, match="doubled"):
        baseline_of(report(step(breaches={"doubled outcomes": 1})), 0.1)


@pytest.mark.parametrize(("now", "too_much"), [(0.02, False), (0.03, False), (0.0374, False), (0.0377, True)])
def test_more_than_a_quarter_worse_is_too_much(now: float, too_much: bool) -> None:
    assert [(name, much) for name, _, much in verdicts(costing(0.03), costing(now))] == [
        ("duologue", too_much),
        ("valkey", False),
    ]


def test_run_of_another_kind_is_refused() -> None:
    with pytest.raises(StartRefused, match="make bench-baseline"):
        verdicts(costing(0.03), costing(0.03, rate=50.0))


def test_missing_baseline_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="make bench-baseline"):
        read_baseline(tmp_path / "baseline.json")
