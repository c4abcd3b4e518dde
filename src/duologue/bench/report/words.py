"""What terminal and page say in the same words."""

from __future__ import annotations

import time
from collections.abc import Sequence

from duologue.bench.report.model import Report


def facts(report: Report) -> Sequence[tuple[str, str]]:
    """Return on what a report was measured, and how to measure it again."""
    machine = report.machine
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.began))
    checkout = f" ({report.commit})" if report.commit else ""
    found = [
        ("began", f"{began}, {report.seconds:.0f} s"),
        ("run again", report.arguments),
        ("duologue", f"{report.version}{checkout}, Python {machine.python}"),
        ("machine", f"{machine.cores} cores, {machine.processor}, {machine.memory_gib:g} GiB, {machine.kernel}"),
        ("open files of a process", str(machine.open_files)),
        ("load", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.parameters.items())),
    ]
    if report.processes:
        found.append(("processes", ", ".join(f"{count} {name}" for name, count in report.processes.items())))
    if report.idle_cpu_percent:
        idle = ", ".join(f"{name} {share:g} %" for name, share in report.idle_cpu_percent.items())
        found.append(("CPU of a core without load", idle))
    if report.steps:
        share = max(step.load_core_share for step in report.steps)
        found.append(("the load's own CPU", f"{share:.0%} of a core at most"))
    return found


def verdict(report: Report) -> Sequence[str]:
    """Return whether all was correct, and if not, what was seen."""
    if report.is_clean and not any(step.answered for step in report.steps):
        return ["All correct: nothing was left unanswered."]
    if report.is_clean:
        answered = sum(step.answered for step in report.steps)
        return [
            f"All correct: {answered} messages answered once, their pieces without a gap, the same on every device."
        ]
    lines = [f"{count} {name}" for name, count in report.breaches.items()]
    return [f"Not correct: {', '.join(lines)}.", *(f"  {each}"[:300] for each in report.evidence)]


def figure_name(name: str) -> str:
    """Return the name of a scenario's own figure as words."""
    return name.replace("_", " ")
