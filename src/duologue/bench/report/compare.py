"""Two reports side by side: what changed, and whether that is more than two runs of the same differ by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from duologue.bench.report.model import LATENCIES, Report, Step
from duologue.bench.report.words import figure_name
from duologue.domain.errors import StartRefused

NOISE: Final = {
    "cpu": 0.10,
    "p50": 0.15,
    "p95": 0.25,
    "p99": 0.30,
    "p99_9": 0.50,
    "max": 0.75,
    "bytes": 0.03,
    "figure": 0.10,
}
"""By how much two runs of the same thing on a machine that does nothing else differ, by the kind of a figure."""

_LEAST_MS: Final = 0.5
"""Latencies that differ by less than this are the same: the timers are no finer."""

_HIGHER_IS_BETTER: Final = frozenset({"sustained_per_second"})
_LOAD: Final = "load"
_NEVER_COMPARED: Final = frozenset({"seed"})

Verdict: TypeAlias = Literal["same", "better", "worse"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure in both reports. `relative` is None if it was 0 before."""

    step: str
    name: str
    before: float
    after: float
    relative: float | None
    verdict: Verdict


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be compared. `yardstick`: the relative change of the load's own CPU per message, which does the same
    work each time: so much slower was the machine. Everything is allowed that much more."""

    scenario: str
    differences: list[str]
    yardstick: float
    changes: list[Change]


def compared(before: Report, after: Report, *, anyway: bool = False) -> Comparison:
    """Compare two reports, step by step.

    Raises:
        StartRefused: they are of different scenarios, or, without `anyway`, were asked for different things.
    """
    if before.scenario != after.scenario:
        raise StartRefused(f"{before.scenario} and {after.scenario} cannot be compared: they are different scenarios")
    differences = list(_differences(before, after))
    if differences and not anyway:
        raise StartRefused(f"they were asked for different things: {'; '.join(differences)} (--anyway compares them)")
    pairs = _pairs(before, after)
    yardstick = _yardstick(pairs)
    changes = [change for pair in pairs for change in _of_step(*pair, abs(yardstick))]
    changes += _of_figures(before, after, abs(yardstick))
    return Comparison(scenario=before.scenario, differences=differences, yardstick=yardstick, changes=changes)


def _differences(before: Report, after: Report) -> Iterator[str]:
    if before.mode != after.mode:
        yield f"mode {before.mode} and {after.mode}"
    if before.processes != after.processes:
        yield f"processes {before.processes} and {after.processes}"
    for name in sorted(before.parameters.keys() | after.parameters.keys()):
        values = before.parameters.get(name), after.parameters.get(name)
        if values[0] != values[1] and name not in _NEVER_COMPARED:
            yield f"{name.replace('_', ' ')} {values[0]} and {values[1]}"
    if before.machine.processor != after.machine.processor or before.machine.cores != after.machine.cores:
        yield "different machines"


def _pairs(before: Report, after: Report) -> Sequence[tuple[Step, Step]]:
    """Return the steps of the same name; of one each, those, whatever they are called."""
    if len(before.steps) == len(after.steps) == 1:
        return [(before.steps[0], after.steps[0])]
    found = {step.name: step for step in after.steps}
    return [(step, found[step.name]) for step in before.steps if step.name in found]


def _yardstick(pairs: Sequence[tuple[Step, Step]]) -> float:
    spent = [
        (one.cpu_ms_per_message[_LOAD], other.cpu_ms_per_message[_LOAD])
        for one, other in pairs
        if one.cpu_ms_per_message.get(_LOAD) and other.cpu_ms_per_message.get(_LOAD)
    ]
    return sum(after for _, after in spent) / sum(before for before, _ in spent) - 1 if spent else 0.0


def _of_step(before: Step, after: Step, slower: float) -> Iterator[Change]:
    for name, found in before.latencies.items():
        other = after.latencies.get(name)
        for share in ("p50", "p95", "p99", "p99_9", "max") if other else ():
            words = f"{LATENCIES.get(name, name)}, {share.replace('_', '.')}, ms"
            values = getattr(found, share), getattr(other, share)
            yield _change(before.name, words, *values, NOISE[share] + slower, least=_LEAST_MS)
    for role in before.cpu_ms_per_message.keys() & after.cpu_ms_per_message.keys() - {_LOAD}:
        values = before.cpu_ms_per_message[role], after.cpu_ms_per_message[role]
        yield _change(before.name, f"CPU per message, {role}, ms", *values, NOISE["cpu"] + slower)
    for hop in before.bytes_per_message.keys() & after.bytes_per_message.keys():
        one, two = before.bytes_per_message[hop], after.bytes_per_message[hop]
        values = one.to_server + one.from_server, two.to_server + two.from_server
        yield _change(before.name, f"bytes per message, {hop}", *values, NOISE["bytes"])


def _of_figures(before: Report, after: Report, slower: float) -> Iterator[Change]:
    for name in before.figures:
        if name in after.figures:
            values = before.figures[name], after.figures[name]
            higher = name in _HIGHER_IS_BETTER
            yield _change("", figure_name(name), *values, NOISE["figure"] + slower, higher_is_better=higher)


def _change(
    step: str,
    name: str,
    before: float,
    after: float,
    noise: float,
    *,
    least: float = 0.0,
    higher_is_better: bool = False,
) -> Change:
    relative = after / before - 1 if before else None
    beyond = abs(after - before) > max(least, noise * before)
    verdict: Verdict = "same"
    if beyond:
        verdict = "better" if (after > before) == higher_is_better else "worse"
    return Change(step=step, name=name, before=before, after=after, relative=relative, verdict=verdict)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print it; what changed by more than noise is marked."""
    for difference in comparison.differences:
        console.print(Text(f"Different: {difference}", style="yellow"))
    table = Table(
        "",
        "figure",
        "before",
        "after",
        "change",
        "",
        title=f"duologue bench {comparison.scenario}",
        title_justify="left",
    )
    last = ""
    for change in comparison.changes:
        shown = "" if change.step == last else change.step
        last = change.step
        relative = "" if change.relative is None else f"{change.relative:+.0%}"
        mark = {"same": "", "better": "better", "worse": "worse"}[change.verdict]
        style = {"same": "dim", "better": "green", "worse": "red"}[change.verdict]
        table.add_row(shown, change.name, f"{change.before:g}", f"{change.after:g}", relative, mark, style=style)
    console.print(table)
    words = f"The load's own CPU per message, the yardstick, changed by {comparison.yardstick:+.0%}"
    console.print(f"{words}; marked is what changed by more than noise and that.", style="dim")
