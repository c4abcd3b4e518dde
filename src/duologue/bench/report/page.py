"""The report as one HTML page: plots, then every figure that the tables have."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Final

from duologue.bench.html_page import document, facts_table, number_table
from duologue.bench.plot import PLOT_STYLE, Line, plot
from duologue.bench.report.model import LATENCIES, Report, Second, Step
from duologue.bench.report.terminal import step_lines
from duologue.bench.report.words import facts, figure_name, verdict

_PERCENTILES: Final = ("p50", "p95", "p99", "p99_9", "max")


def page(report: Report) -> str:
    """Return the page."""
    parts = [_verdict(report), *_load_plots(report)]
    for step in report.steps:
        parts += _step(step, report)
    if report.figures:
        parts.append("<h2>Figures of the scenario</h2>")
        parts.append(facts_table((figure_name(name), f"{value:g}") for name, value in report.figures.items()))
    parts.append("<h2>What was measured, and on what</h2>" + facts_table(facts(report)))
    return document(f"duologue bench {report.scenario}, {report.mode}", PLOT_STYLE, parts)


def _verdict(report: Report) -> str:
    kind = "good" if report.is_clean else "bad"
    lines = "".join(f"<p class={kind}>{html.escape(line)}</p>" for line in verdict(report))
    return lines + "".join(f"<p>Note: {html.escape(note)}.</p>" for note in report.notes)


def _load_plots(report: Report) -> Sequence[str]:
    """Return what steps of different rates tell together: latency and cost against load."""
    steps = sorted(report.steps, key=lambda step: step.offered_per_second)
    if len({step.offered_per_second for step in steps}) < 3:
        return []
    with_first = [step for step in steps if "first_token" in step.latencies]
    latencies = {
        name: [(step.offered_per_second, getattr(step.latencies["first_token"], name)) for step in with_first]
        for name in ("p50", "p99")
    }
    roles = {name for step in steps for name in step.cpu_ms_per_message}
    cost = {
        name: [(step.offered_per_second, step.cpu_ms_per_message.get(name, 0.0)) for step in steps]
        for name in sorted(roles)
    }
    return [
        plot("Latency against load", latencies, x="messages a second", y="first token, ms", logarithmic=True),
        plot("CPU per message against load", cost, x="messages a second", y="ms"),
    ]


def _step(step: Step, report: Report) -> Sequence[str]:
    head = ("", "count", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "longest ms")
    rows = [
        (LATENCIES.get(name, name), str(found.count), *(f"{getattr(found, each):.1f}" for each in _PERCENTILES))
        for name, found in step.latencies.items()
    ]
    lines = "".join(f"<p>{html.escape(line.strip())}</p>" for line in step_lines(step, report.scenario))
    return [f"<h2>{html.escape(step.name)}</h2>", number_table(head, rows), lines, *_time_plots(step)]


def _time_plots(step: Step) -> Sequence[str]:
    series = step.series
    latencies = {
        "first token p50": _over_time(series, lambda each: each.first_token_p50),
        "first token p99": _over_time(series, lambda each: each.first_token_p99),
        "delta delay p50": _over_time(series, lambda each: each.delta_delay_p50),
        "delta delay p99": _over_time(series, lambda each: each.delta_delay_p99),
    }
    roles = sorted({name for second in series for name in second.cpu_percent})
    cpu = {name: [(second.at, second.cpu_percent.get(name, 0.0)) for second in series] for name in roles}
    flow = {
        "sent": _over_time(series, lambda each: float(each.sent)),
        "answered": _over_time(series, lambda each: float(each.answered)),
        "in flight": _over_time(series, lambda each: float(each.in_flight)),
    }
    return [
        plot("Latency over time", latencies, x="seconds", y="ms, of what came in each second", logarithmic=True),
        plot("CPU by role over time", cpu, x="seconds", y="% of a core"),
        plot("Messages over time", flow, x="seconds", y="a second; in flight"),
    ]


def _over_time(series: Sequence[Second], value: Callable[[Second], float | None]) -> Line:
    return [(each.at, found) for each in series if (found := value(each)) is not None]
