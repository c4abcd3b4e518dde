"""Two reports side by side: what is better, worse, the same, and what cannot be compared."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.support.bench_reports import latency, report, step
from typer.testing import CliRunner

from duologue.bench.options import Messages, parameters
from duologue.bench.report.compare import Change, compared
from duologue.bench.report.model import Report, write_report
from duologue.cli import app
from duologue.domain.errors import StartRefused


def costing(**cpu: float) -> Report:
    return report(step(cpu_ms_per_message={"duologue": 3.0, "load": 0.4} | cpu))


def change(before: Report, after: Report, name: str) -> Change:
    return next(each for each in compared(before, after).changes if each.name == name)


@pytest.mark.parametrize(
    ("duologue", "verdict"), [(3.0, "same"), (3.25, "same"), (3.4, "worse"), (2.75, "same"), (2.6, "better")]
)
def test_cpu_that_changes_by_more_than_noise_is_marked(duologue: float, verdict: str) -> None:
    found = change(costing(), costing(duologue=duologue), "CPU per message, duologue, ms")
    assert found.verdict == verdict
    assert found.relative == pytest.approx(duologue / 3.0 - 1)


def test_machine_that_was_slower_by_its_yardstick_is_allowed_that_much_more() -> None:
    slower = costing(duologue=3.6, load=0.5)
    assert compared(costing(), slower).yardstick == pytest.approx(0.25)
    assert change(costing(), slower, "CPU per message, duologue, ms").verdict == "same"
    assert change(costing(), costing(duologue=3.6), "CPU per message, duologue, ms").verdict == "worse"


def test_latencies_have_noise_of_their_own_and_differ_by_half_a_millisecond_at_least() -> None:
    def of(p50: float, p99: float) -> Report:
        return report(step(latencies={"first_token": latency(p50, p99)}))

    name = "added time to the first token"
    assert change(of(5, 20), of(6, 20), f"{name}, p50, ms").verdict == "worse"
    assert change(of(5, 20), of(5, 25), f"{name}, p99, ms").verdict == "same"
    assert change(of(1, 20), of(1.4, 20), f"{name}, p50, ms").verdict == "same"


def test_rate_that_is_sustained_is_better_when_it_is_higher() -> None:
    before, after = report(figures={"sustained_per_second": 600.0}), report(figures={"sustained_per_second": 800.0})
    assert change(before, after, "sustained per second").verdict == "better"
    assert change(after, before, "sustained per second").verdict == "worse"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "distributed"}, "mode embedded and distributed"),
        ({"parameters": parameters(Messages(rate=50))}, "rate 100 and 50"),
        ({"processes": {"duologue": 2}}, "processes"),
        ({"machine": msgspec.structs.replace(report().machine, cores=8)}, "different machines"),
    ],
)
def test_runs_that_were_asked_for_different_things_are_refused_unless_it_is_wanted(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(StartRefused, match=words):
        compared(report(), report(**changes))
    assert compared(report(), report(**changes), anyway=True).differences


def test_different_seed_is_no_difference() -> None:
    assert not compared(report(), report(parameters=parameters(Messages(seed=2)))).differences


def test_different_scenarios_are_refused_whatever_is_wanted() -> None:
    with pytest.raises(StartRefused, match="different scenarios"):
        compared(report(), report(scenario="streams"), anyway=True)


def test_steps_are_compared_by_their_names() -> None:
    before = report(step("200 messages/s"), step("300 messages/s"))
    after = report(step("300 messages/s"), step("400 messages/s"))
    assert {each.step for each in compared(before, after).changes} == {"300 messages/s"}


def test_command_shows_both_and_exits_with_2_for_what_cannot_be_compared(tmp_path: Any) -> None:
    one = write_report(costing(), tmp_path / "a", "")
    two = write_report(costing(duologue=6.0), tmp_path / "b", "")
    other = write_report(report(scenario="streams"), tmp_path / "c", "")
    shown = CliRunner().invoke(app, ["bench", "compare", str(one), str(two)], env={"COLUMNS": "160"})
    assert (shown.exit_code, "+100%" in shown.output, "worse" in shown.output) == (0, True, True)
    refused = CliRunner().invoke(app, ["bench", "compare", str(one), str(other)])
    assert (refused.exit_code, "different scenarios" in refused.output) == (2, True)
