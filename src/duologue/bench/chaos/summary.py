"""Several runs as one table: `python -m duologue.bench.chaos.summary FILE.json …` prints Markdown."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from duologue.bench.chaos.report import KINDS, Report, spread

_TITLES = {"embedded": "Embedded", "distributed": "Distributed"}


def read_report(path: Path) -> Report:
    """Read a report that `duologue chaos --report` has written."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def summary(reports: Sequence[Report]) -> str:
    """Return what runs of one mode or of both add up to."""
    modes = [mode for mode in _TITLES if any(report.mode == mode for report in reports)]
    return "\n".join(_of_mode(mode, [report for report in reports if report.mode == mode]) for mode in modes)


def _of_mode(mode: str, reports: Sequence[Report]) -> str:
    return "\n".join([f"## {_TITLES[mode]}", "", *_totals(reports), "", *_faults(reports), "", *_runs(reports), ""])


def _totals(reports: Sequence[Report]) -> Iterable[str]:
    counts: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
        answers.update(report.answers)
    resumed = spread([seconds for report in reports for seconds in report.resumed_seconds])
    yield "| figure | value |"
    yield "| --- | --- |"
    yield f"| runs, hours | {len(reports)}, {sum(report.seconds for report in reports) / 3600:.1f} |"
    yield f"| faults | {sum(sum(report.faults.values()) for report in reports):,} |"
    yield f"| messages accepted | {sum(report.messages for report in reports):,} |"
    yield f"| replies | {', '.join(f'{count:,} {state}' for state, count in sorted(answers.items()))} |"
    yield f"| of them another answer to the same message | {sum(report.regenerations for report in reports):,} |"
    yield f"| taken over by another attempt | {sum(report.taken_over for report in reports):,} |"
    yield f"| {', '.join(KINDS)}, any other breach | {', '.join(str(counts[kind]) for kind in (*KINDS, 'other'))} |"
    if resumed.p50 is not None:
        words = f"{resumed.p50:.1f} s, {resumed.p99:.1f} s, {resumed.longest:.1f} s, of {resumed.count}"
        yield f"| kill to the first piece of the next attempt, nothing else wrong: p50, p99, longest | {words} |"


def _faults(reports: Sequence[Report]) -> Iterable[str]:
    times: Counter[str] = Counter()
    longest: dict[str, float] = {}
    for report in reports:
        times.update(report.faults)
        for name, healed in report.healing.items():
            longest[name] = max(longest.get(name, 0.0), healed.longest or 0.0)
    yield "| fault | times | healed after, at the longest |"
    yield "| --- | --- | --- |"
    for name, count in sorted(times.items()):
        yield f"| {name} | {count} | {longest.get(name, 0.0):.0f} s |"


def _runs(reports: Sequence[Report]) -> Iterable[str]:
    yield "| run | faults | messages | breaches |"
    yield "| --- | --- | --- | --- |"
    for report in sorted(reports, key=lambda each: each.began):
        faults = sum(report.faults.values())
        yield f"| `{report.arguments}` | {faults:,} | {report.messages:,} | {sum(report.counts.values())} |"


if __name__ == "__main__":
    print(summary([read_report(Path(name)) for name in sys.argv[1:]]))  # noqa: T201  # this is its output
