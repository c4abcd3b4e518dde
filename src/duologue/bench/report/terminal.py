"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from duologue.bench.report.model import LATENCIES, Report, Step
from duologue.bench.report.words import facts, figure_name, verdict


def print_report(report: Report, console: Console) -> None:
    """Print a report: on what it was measured, each step, the scenario's own figures, and whether all was correct."""
    parts: list[RenderableType] = [_facts(report), *(_step(step, report.scenario) for step in report.steps)]
    if report.figures:
        parts.append(_figures(report))
    parts += [Text(f"Note: {note}.", style="yellow") for note in report.notes]
    console.print(Group(*parts, _verdict(report)))


def _facts(report: Report) -> RenderableType:
    table = Table(title=f"duologue bench {report.scenario}, {report.mode}", show_header=False, title_justify="left")
    for name, words in facts(report):
        table.add_row(name, words)
    return table


def _step(step: Step, scenario: str) -> RenderableType:
    table = Table(step.name, "count", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "longest ms", title_justify="left")
    for name, found in step.latencies.items():
        values = (found.p50, found.p95, found.p99, found.p99_9, found.max)
        table.add_row(LATENCIES.get(name, name), str(found.count), *(f"{value:.1f}" for value in values))
    return Group(table, *(Text(line) for line in step_lines(step, scenario)))


def step_lines(step: Step, scenario: str) -> Sequence[str]:
    """Return what a step is told of beside its latencies, a line each."""
    sent = f"sent {step.sent} ({step.late} late), answered {step.answered}, unanswered {step.unanswered}"
    more = {"refused": step.refused, "resent": step.resent, "reconnects": step.reconnects} | step.errors
    sent += "".join(f", {name} {count}" for name, count in more.items() if count)
    lines = [f"  {sent}; all done {step.drained_after_seconds:.1f} s after the last"]
    if step.cpu_ms_per_message:
        lines.append(f"  CPU ms a message: {listed(step.cpu_ms_per_message)}")
        lines.append(f"  … beyond idle: {listed(step.cpu_ms_per_message_beyond_idle)}")
    if scenario == "streams" and step.cpu_us_per_delta:
        lines.append(f"  CPU µs a delta, beyond idle: {listed(step.cpu_us_per_delta, digits=1)}")
    if step.bytes_per_message:
        hops = (f"{name} {hop.to_server:.0f} + {hop.from_server:.0f}" for name, hop in step.bytes_per_message.items())
        lines.append(f"  bytes a message, to and from: {', '.join(hops)}")
    return lines


def listed(figures: Mapping[str, float], digits: int = 3) -> str:
    """Return figures in one line."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in figures.items())


def _figures(report: Report) -> RenderableType:
    table = Table(show_header=False)
    for name, value in report.figures.items():
        table.add_row(figure_name(name), f"{value:g}")
    return table


def _verdict(report: Report) -> RenderableType:
    return Text("\n".join(verdict(report)), style="green" if report.is_clean else "red")
