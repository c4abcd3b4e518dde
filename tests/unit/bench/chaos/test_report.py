"""Reports: what is counted, what is told, and what the page shows."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from tests.support.chaos_history import clean

from duologue.bench.chaos.command import _write
from duologue.bench.chaos.history import Happened
from duologue.bench.chaos.invariants.breach import Breach
from duologue.bench.chaos.page import page
from duologue.bench.chaos.report import Report, make_report, name_of, print_report
from duologue.bench.chaos.summary import read_report, summary
from duologue.bench.chaos.timing import resumptions, waits


def report(breaches: Sequence[Breach] = ()) -> Report:
    return make_report(
        clean().history(), breaches, seed=7, arguments="duologue chaos --seed 7", began=1000.0, seconds=9
    )


def printed(of: Report) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_report(of, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_report_counts_messages_versions_and_faults() -> None:
    made = report()
    assert (made.messages, made.answers, made.regenerations) == (3, {"complete": 3, "stopped": 1}, 1)
    assert (made.faults, made.taken_over) == ({"kill ai-consumer": 1}, 1)
    assert made.is_clean


def test_report_of_a_breach_counts_it_as_what_it_is() -> None:
    made = report([Breach("an outcome is told once", "twice <b>", 1001.0), Breach("nothing is left behind", "a key")])
    assert (made.counts["doubled"], made.counts["other"], made.is_clean) == (1, 1, False)
    assert "2 invariants did not hold: 0 lost, 1 doubled" in printed(made)
    assert "twice <b>" in printed(made)
    assert "twice &lt;b&gt;" in page(made, clean().history())


def test_report_of_a_clean_run_says_so() -> None:
    assert "invariants held: 0 lost, 0 doubled, 0 reordered, 0 stuck, 0 other" in printed(report())


def test_page_is_whole_by_itself_and_shows_each_fault() -> None:
    text = page(report(), clean().history())
    assert text.count("<rect") == 2  # the fault, and until it had healed
    assert text.count("<circle") == 6
    assert "://" not in text


def test_fault_that_lasted_a_minute_is_counted_apart() -> None:
    fault = Happened(number=1, fault="pause", target="message-relay-2", began=1000.0, ended=1060.1)
    assert name_of(fault) == "pause message-relay for a minute"


def test_resumption_is_the_time_from_the_kill_to_the_first_piece_of_the_next_attempt() -> None:
    history = clean().history()
    (resumed,) = resumptions(history)
    assert resumed.message_id == "m2"
    assert 2.0 < resumed.seconds < 2.1
    assert resumed.lone


def test_resumption_beside_another_fault_is_not_a_lone_one() -> None:
    history = clean().history()
    (kill,) = history.faults
    beside = Happened(number=2, fault="slow", target="model", began=kill.began - 1, ended=kill.began + 0.5)
    (resumed,) = resumptions(dataclasses.replace(history, faults=[*history.faults, beside]))
    assert not resumed.lone


def test_summary_adds_up_what_runs_have_written(tmp_path: Path) -> None:
    _write(report([Breach("an outcome is told once", "twice")]), clean().history(), tmp_path)
    made = read_report(tmp_path / "chaos-distributed-7.json")
    text = summary([made, report()])
    assert "| faults | 2 |" in text
    assert "| messages accepted | 6 |" in text
    assert "| kill ai-consumer | 2 |" in text
    assert "| lost, doubled, reordered, stuck, any other breach | 0, 1, 0, 0, 0 |" in text
    assert "nothing else wrong: p50, p99, longest | 2.0 s, 2.0 s, 2.0 s, of 2 |" in text


def test_waits_are_counted_from_the_first_sending() -> None:
    first, second, third = waits(clean().history())
    assert first.outcome is not None
    assert first.outcome < 0.1
    assert second.outcome is not None
    assert second.outcome > 2
    assert third.first is not None
