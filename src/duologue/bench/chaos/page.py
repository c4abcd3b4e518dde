"""The report as one HTML page without anything from elsewhere: figures, and a timeline of faults and latency."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from duologue.bench.chaos.history import Happened, History
from duologue.bench.chaos.plan import role_of
from duologue.bench.chaos.report import Report, Spread
from duologue.bench.chaos.timing import Waited, waits
from duologue.bench.html_page import document, facts_table, number_table

_WIDTH: Final = 1400
_LEFT: Final = 130
_ROW: Final = 16
_PLOT: Final = 220
_MOST_POINTS: Final = 6000
_LEAST_SECONDS: Final = 0.01
_MOST_SECONDS: Final = 120.0

_STYLE: Final = """
:root { --first: #3b6fd1; --whole: #b9c8e6; }
@media (prefers-color-scheme: dark) { :root { --first: #7fa7f5; --whole: #3d4f74; } }
.first { fill: var(--first); } .whole { fill: var(--whole); }
.kill { fill: #d64545; } .term { fill: #d98e32; } .pause { fill: #8d6fd1; } .flush, .restart { fill: #c24f9b; }
.other { fill: #5f9ea0; } .healing { opacity: .25; }
"""


def page(report: Report, history: History) -> str:
    """Return the page."""
    parts = [
        _verdict(report),
        _timeline(history),
        _figures(report),
        _faults(report),
        _invariants(report),
        _breaches(report),
    ]
    return document(f"duologue chaos: {report.mode}, seed {report.seed}", _STYLE, parts)


def _verdict(report: Report) -> str:
    words = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    if report.is_clean:
        return f"<p class=good>All {len(report.invariants)} invariants held: {words}.</p>"
    return f"<p class=bad>{sum(map(bool, report.invariants.values()))} invariants did not hold: {words}.</p>"


def _figures(report: Report) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.began))
    rows = [
        ("began", f"{began}, {report.seconds:.0f} s"),
        ("run again", report.arguments),
        ("versions", f"duologue {report.version}, Python {report.python}"),
        ("clients", f"{report.users} users on {report.devices} devices"),
        ("messages", str(report.messages)),
        ("replies", _listed(report.answers)),
        ("failures by cause", _listed(report.failures)),
        ("regenerations", str(report.regenerations)),
        ("asked of the model", _listed(report.asked)),
        ("takeovers", str(report.taken_over)),
        ("first piece", _spread(report.first_piece)),
        ("whole reply", _spread(report.whole_reply)),
        ("kill to the first piece of the next attempt", _spread(report.resumed_after_kill)),
    ]
    return f"<h2>Figures</h2>{facts_table(rows)}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _spread(spread: Spread) -> str:
    if spread.p50 is None:
        return "none"
    return f"p50 {spread.p50:.2f} s, p99 {spread.p99:.2f} s, longest {spread.longest:.2f} s, of {spread.count}"


def _faults(report: Report) -> str:
    rows = []
    for name, count in report.faults.items():
        healed = report.healing.get(name)
        cells = (
            ["" if value is None else f"{value:.1f} s" for value in (healed.p50, healed.p99, healed.longest)]
            if healed
            else ["", "", ""]
        )
        rows.append([name, str(count), *cells])
    return f"<h2>Faults</h2>{number_table(('fault', 'times', 'healed after, p50', 'p99', 'longest'), rows)}"


def _invariants(report: Report) -> str:
    rows = (
        f"<tr><td>{html.escape(name)}<td class={'bad' if count else 'good'}>{f'{count} breaches' if count else 'held'}"
        for name, count in report.invariants.items()
    )
    return f"<h2>Invariants</h2><table>{''.join(rows)}</table>"


def _breaches(report: Report) -> str:
    if not report.breaches:
        return ""
    rows = (
        f"<tr><td>{_clock(breach.at)}<td>{html.escape(breach.invariant)}<td><code>{html.escape(breach.evidence)}</code>"
        for breach in report.breaches
    )
    return f"<h2>Breaches</h2><table>{''.join(rows)}</table>"


def _clock(at: float | None) -> str:
    return "" if at is None else time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}"


# The timeline


class _Scale:
    """Where times and durations are on the picture."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin = begin
        self.end = max(end, begin + 1)

    def x(self, at: float) -> float:
        return _LEFT + (at - self.begin) / (self.end - self.begin) * (_WIDTH - _LEFT)

    def y(self, seconds: float) -> float:
        """Durations are logarithmic, from 10 ms at the bottom to two minutes at the top."""
        within = min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)
        return _PLOT - math.log(within / _LEAST_SECONDS) / math.log(_MOST_SECONDS / _LEAST_SECONDS) * (_PLOT - 10)


def _timeline(history: History) -> str:
    waited = waits(history)
    times = [each.at for each in waited] + [moment for fault in history.faults for moment in (fault.began, fault.ended)]
    if not times:
        return ""
    scale = _Scale(min(times), max(times))
    targets = sorted({role_of(fault.target) for fault in history.faults})
    height = _PLOT + 20 + _ROW * len(targets) + 20
    parts = [*_grid(scale, height), *_points(scale, waited), *_bars(scale, history.faults, targets)]
    words = "First piece (blue) and whole reply (pale) of each message, by when it was sent. Faults: pale until healed."
    return f"<h2>Timeline</h2><p>{words}</p><svg viewBox='0 0 {_WIDTH} {height}'>{''.join(parts)}</svg>"


def _grid(scale: _Scale, height: int) -> Iterator[str]:
    for seconds, words in ((0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (60.0, "60 s")):
        y = scale.y(seconds)
        yield f"<line class=grid x1={_LEFT} x2={_WIDTH} y1={y:.0f} y2={y:.0f} /><text x=0 y={y + 4:.0f}>{words}</text>"
    step = next(step for step in (10, 30, 60, 300, 600, 3600) if (scale.end - scale.begin) / step <= 24 or step == 3600)
    for tick in range(0, int(scale.end - scale.begin) + 1, step):
        yield f"<text x={scale.x(scale.begin + tick):.0f} y={height - 4}>{tick // 60}:{tick % 60:02d}</text>"


def _points(scale: _Scale, waited: Sequence[Waited]) -> Iterator[str]:
    every = max(1, math.ceil(len(waited) / _MOST_POINTS))
    for each in waited[::every]:
        for name, seconds in (("whole", each.outcome), ("first", each.first)):
            if seconds is not None:
                yield f"<circle class={name} cx={scale.x(each.at):.1f} cy={scale.y(seconds):.1f} r=2 />"


def _bars(scale: _Scale, faults: Iterable[Happened], targets: Sequence[str]) -> Iterator[str]:
    for place, target in enumerate(targets):
        yield f"<text x=0 y={_PLOT + 20 + _ROW * place + 11}>{html.escape(target)}</text>"
    for fault in faults:
        y = _PLOT + 20 + _ROW * targets.index(role_of(fault.target))
        kind = fault.fault if fault.fault in ("kill", "term", "pause", "flush", "restart") else "other"
        title = f"{fault.number}: {fault.fault} {fault.target}, {fault.ended - fault.began:.1f} s"
        if fault.healed is not None:
            yield _bar(scale, fault.began, fault.healed, y, f"{kind} healing", "")
        yield _bar(scale, fault.began, fault.ended, y, kind, title)


def _bar(scale: _Scale, begin: float, end: float, y: float, kind: str, title: str) -> str:
    x, width = scale.x(begin), max(2.0, scale.x(end) - scale.x(begin))
    inner = f"<title>{html.escape(title)}</title>" if title else ""
    return f"<rect class='{kind}' x={x:.1f} y={y} width={width:.1f} height={_ROW - 4}>{inner}</rect>"
