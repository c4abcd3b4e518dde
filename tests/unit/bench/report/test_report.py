"""Reports: written and read, on the terminal and as a page."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.bench_reports import latency, report, second, step

from duologue.bench.report.model import Report, read_report, write_report
from duologue.bench.report.page import page
from duologue.bench.report.terminal import print_report
from duologue.domain.errors import StartRefused


def printed(of: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_report(of, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def broken() -> Report:
    return report(step(breaches={"doubled outcomes": 2}), evidence=["doubled outcomes: m <b>"])


def test_report_that_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    whole = report(figures={"sustained_per_second": 600.0}, notes=["something"])
    path = write_report(whole, tmp_path / "reports", page(whole))
    assert path.name == "bench-messages-embedded-20231114T221320Z.json"
    assert read_report(path) == whole
    assert path.with_suffix(".html").read_text() == page(whole)


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 99}', "[]", '{"schema": 1}'])
def test_file_that_is_no_report_is_refused_in_words(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(StartRefused, match=r"schema|no report"):
        read_report(path)


def test_file_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="No such file"):
        read_report(tmp_path / "a.json")


def test_terminal_tells_percentiles_cost_bytes_and_verdict() -> None:
    text = printed(report(figures={"sustained_per_second": 600.0}, notes=["a note"]))
    for words in (
        "added time to the first token",
        "20.0",
        "duologue 3.000, valkey 1.000",
        "duologue 200 + 2000",
        "sustained per second",
        "Note: a note.",
        "All correct: 3000 messages answered once",
        "2 cores, EPYC",
    ):
        assert words in text


def test_terminal_names_what_was_not_correct() -> None:
    text = printed(broken())
    assert "Not correct: 2 doubled outcomes." in text
    assert "m <b>" in text
    assert not broken().is_clean


def test_page_is_whole_by_itself_and_has_its_plots() -> None:
    text = page(report())
    assert text.count("<svg") == 3
    for title in ("Latency over time", "CPU by role over time", "Messages over time"):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<path") == 2 + 2 + 3  # two percentiles, two roles, three flows
    assert "://" not in text
    assert "<script" not in text
    assert "EPYC &lt;b&gt;" in text


def test_page_of_steps_at_different_rates_plots_latency_against_load() -> None:
    steps = [
        step(f"{rate} messages/s", offered_per_second=rate, latencies={"first_token": latency(5, rate)}, series=[])
        for rate in (100.0, 200.0, 300.0)
    ]
    text = page(report(*steps, scenario="sustained"))
    assert "<h2>Latency against load</h2>" in text
    assert text.count("<svg") == 2
    assert text.count("<path") == 2 + 3


def test_page_of_streams_plots_the_delay_of_deltas() -> None:
    streaming = step(series=[second(1.0, delta_delay_p50=4.0, delta_delay_p99=90.0), second(2.0)])
    assert "delta delay p99" in page(report(streaming))
    assert "delta delay p99" not in page(report())


def test_page_escapes_what_others_wrote() -> None:
    assert "m &lt;b&gt;" in page(broken())
