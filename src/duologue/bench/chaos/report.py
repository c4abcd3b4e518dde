"""What a run is told as: figures, for JSON, the terminal and the page."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from duologue import __version__
from duologue.bench.chaos.history import Happened, History
from duologue.bench.chaos.invariants.breach import INVARIANTS, MOST_COUNTED, Breach
from duologue.bench.chaos.plan import role_of
from duologue.bench.chaos.timing import resumptions, waits
from duologue.bench.percentile import percentile

_SHOWN: Final = 3

KINDS: Final[Mapping[str, Sequence[str]]] = {
    "lost": ("an acknowledged message is stored once", "nothing stays unseen"),
    "doubled": (
        "an outcome is told once",
        "nothing is told again to a client that keeps its position",
        "two versions are two answers",
        "the model is asked once an attempt",
    ),
    "reordered": (
        "event ids are gapless and increasing",
        "pieces of a reply follow each other",
        "replies are told in the order of their turns",
        "a reply starts after the one before has ended",
    ),
    "stuck": ("every message has exactly one outcome", "it heals"),
}
"""The four words of the guarantees, and the invariants behind each. All others count as `other`."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds; `count` of them."""

    count: int
    p50: float | None
    p99: float | None
    longest: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that is told of a run.

    `failures` are counted by the code of their cause, `faults` and `healing` by the name of a fault; `breaches` are all
    that were kept. `resumed_after_lone_kill` leaves out what waited for something else as well; `resumed_seconds` are
    all its values, so that those of several runs can be put together.
    """

    seed: int
    mode: str
    arguments: str
    version: str
    python: str
    began: float
    seconds: float
    messages: int
    answers: dict[str, int]
    failures: dict[str, int]
    regenerations: int
    taken_over: int
    asked: dict[str, int]
    users: int
    devices: int
    faults: dict[str, int]
    healing: dict[str, Spread]
    first_piece: Spread
    whole_reply: Spread
    resumed_after_kill: Spread
    resumed_after_lone_kill: Spread
    resumed_seconds: list[float]
    counts: dict[str, int]
    invariants: dict[str, int]
    breaches: list[Breach]

    @property
    def is_clean(self) -> bool:
        """Whether every invariant held."""
        return not self.breaches


def make_report(
    history: History, breaches: Sequence[Breach], *, seed: int, arguments: str, began: float, seconds: float
) -> Report:
    """Return the report of a run.

    Args:
        history: what it left behind.
        breaches: what did not hold.
        seed: of its plan.
        arguments: how to run it again.
        began: seconds since the Unix epoch.
        seconds: how long it took.
    """
    broken = Counter(breach.invariant for breach in breaches)
    waited, resumed = waits(history), resumptions(history)
    lone = sorted(round(each.seconds, 3) for each in resumed if each.lone)
    return Report(
        seed=seed,
        mode=history.mode,
        arguments=arguments,
        version=__version__,
        python=f"{platform.python_version()} on {platform.system()} {platform.release()}",
        began=began,
        seconds=round(seconds, 1),
        messages=len(history.questions),
        answers=dict(Counter(reply.state for reply in history.replies)),
        failures=dict(Counter(reply.error_code or "none" for reply in history.replies if reply.state == "failed")),
        regenerations=sum(1 for reply in history.replies if reply.generation > 1),
        taken_over=sum(reply.takeovers for reply in history.replies),
        asked=dict(Counter(each.how or "killed" for each in history.asked)),
        users=len({device.name.user_id for device in history.devices}),
        devices=len(history.devices),
        faults=dict(sorted(Counter(map(name_of, history.faults)).items())),
        healing=_healing(history.faults),
        first_piece=spread([each.first for each in waited if each.first is not None]),
        whole_reply=spread([each.outcome for each in waited if each.outcome is not None]),
        resumed_after_kill=spread([each.seconds for each in resumed]),
        resumed_after_lone_kill=spread(lone),
        resumed_seconds=lone,
        counts=_counts(broken),
        invariants={name: broken[name] for name in INVARIANTS},
        breaches=list(breaches),
    )


def name_of(fault: Happened) -> str:
    """Return what a fault is counted as: processes of one role together, and those that last a minute apart."""
    lasting = " for a minute" if fault.ended - fault.began >= 60 and fault.fault in ("kill", "pause", "restart") else ""
    return f"{fault.fault} {role_of(fault.target)}{lasting}"


def _counts(broken: Mapping[str, int]) -> dict[str, int]:
    counts = {kind: sum(broken.get(name, 0) for name in names) for kind, names in KINDS.items()}
    return counts | {"other": sum(broken.values()) - sum(counts.values())}


def _healing(faults: Sequence[Happened]) -> dict[str, Spread]:
    taken: dict[str, list[float]] = {}
    for fault in faults:
        if fault.healed is not None:
            taken.setdefault(name_of(fault), []).append(fault.healed - fault.began)
    return {name: spread(values) for name, values in sorted(taken.items())}


def spread(values: Sequence[float]) -> Spread:
    """Return how these durations are spread."""
    shown = [None if (value := percentile(values, share)) is None else round(value, 3) for share in (0.5, 0.99, 1.0)]
    return Spread(count=len(values), p50=shown[0], p99=shown[1], longest=shown[2])


# The terminal


def print_report(report: Report, console: Console) -> None:
    """Print a report: what was done, how long users waited, what held."""
    console.print(Group(_figures(report), _fault_table(report), _verdict(report)))


def _figures(report: Report) -> RenderableType:
    table = Table(title=f"duologue chaos, {report.mode}, seed {report.seed}", show_header=False, title_justify="left")
    answers = ", ".join(f"{count} {state}" for state, count in sorted(report.answers.items()))
    asked = ", ".join(f"{count} {how}" for how, count in sorted(report.asked.items()))
    table.add_row("duologue", f"{report.version}, Python {report.python}")
    table.add_row("time", f"{report.seconds:.0f} s, {sum(report.faults.values())} faults")
    table.add_row("clients", f"{report.users} users on {report.devices} devices")
    table.add_row("messages", f"{report.messages}; replies: {answers}; {report.regenerations} of them regenerated")
    if report.failures:
        table.add_row("failures", ", ".join(f"{count} {code}" for code, count in sorted(report.failures.items())))
    table.add_row("asked of the model", asked)
    table.add_row("taken over", f"{report.taken_over} replies")
    table.add_row("first piece", _words(report.first_piece))
    table.add_row("whole reply", _words(report.whole_reply))
    table.add_row("kill to first piece of the next attempt", _words(report.resumed_after_kill))
    table.add_row("… with nothing else wrong", _words(report.resumed_after_lone_kill))
    return table


def _words(spread: Spread) -> str:
    if spread.p50 is None:
        return "none"
    return f"p50 {spread.p50:.2f} s, p99 {spread.p99:.2f} s, longest {spread.longest:.2f} s, of {spread.count}"


def _fault_table(report: Report) -> RenderableType:
    table = Table("fault", "times", "healed after, p50", "p99", "longest", title_justify="left")
    for name, count in report.faults.items():
        healed = report.healing.get(name)
        spread = (
            ["", "", ""] if healed is None else [_seconds(each) for each in (healed.p50, healed.p99, healed.longest)]
        )
        table.add_row(name, str(count), *spread)
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _verdict(report: Report) -> RenderableType:
    words = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    if report.is_clean:
        return Text(f"All {len(report.invariants)} invariants held: {words}.", style="green")
    lines = [f"{sum(1 for count in report.invariants.values() if count)} invariants did not hold: {words}."]
    for name, count in report.invariants.items():
        if count:
            lines.append(f"{name}: {_times(count)}")
            lines += [f"  {breach.evidence}"[:500] for breach in _of(report, name)[:_SHOWN]]
    return Text("\n".join(lines), style="red")


def _of(report: Report, name: str) -> list[Breach]:
    return [breach for breach in report.breaches if breach.invariant == name]


def _times(count: int) -> str:
    """No more than so many are counted of one."""
    return f"{count} times" if count < MOST_COUNTED else f"{count} times or more"
