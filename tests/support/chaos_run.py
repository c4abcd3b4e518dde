"""Short runs of chaos for tests: an explicit plan, on a system as it is or with a change made to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

from duologue.bench.chaos.checks import check
from duologue.bench.chaos.history import History
from duologue.bench.chaos.plan import FaultName, Step
from duologue.bench.chaos.run import Load, run, run_folder
from duologue.bench.chaos.subject import open_subject
from duologue.bench.process import PATCH

Mutation = Literal["commit_before_work", "dedupe_off", "fence_removed", "replay_before_subscribe"]
MUTATIONS: tuple[Mutation, ...] = ("commit_before_work", "dedupe_off", "fence_removed", "replay_before_subscribe")


class Hit(NamedTuple):
    """A fault of a plan that is written down."""

    fault: FaultName
    target: str
    seconds: float = 0.0
    joined: bool = False
    pause_seconds: float = 0.0


def plan(*hits: Hit) -> list[Step]:
    """Return the steps of a plan that is written down."""
    return [
        Step(
            number=number,
            fault=hit.fault,
            target=hit.target,
            seconds=hit.seconds,
            joined=hit.joined,
            pause_seconds=hit.pause_seconds,
        )
        for number, hit in enumerate(hits, 1)
    ]


class Outcome(NamedTuple):
    """A run's history, and the names of the invariants that did not hold."""

    history: History
    broken: set[str]
    evidence: list[str]


async def run_embedded(steps: Sequence[Step], load: Load, *, mutation: Mutation | None = None) -> Outcome:
    """Carry out a plan on an embedded system of its own."""
    settings = {} if mutation is None else {PATCH: f"tests.support.mutations.{mutation}"}
    async with run_folder(lambda: False) as folder:
        history = await run(steps, load, partial(open_subject, "embedded"), folder, settings=settings)
        return compared(history)


def compared(history: History) -> Outcome:
    """Compare the views of a run; its files are still there."""
    breaches = check(history)
    evidence = [f"{breach.invariant}: {breach.evidence}" for breach in breaches]
    return Outcome(history, {breach.invariant for breach in breaches}, evidence)
