"""Short runs of chaos for tests: an explicit plan, on a system as it is or with a change made to it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from duologue.bench.chaos.checks import check
from duologue.bench.chaos.history import History
from duologue.bench.chaos.plan import FaultName, Step
from duologue.bench.chaos.run import Load, run, run_folder
from duologue.bench.chaos.subject import DistributedSubject, distributed_subject, open_subject
from duologue.bench.distributed import OwnEngines
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
    async with run_folder(lambda: False) as folder:
        history = await run(steps, load, partial(open_subject, "embedded"), folder, settings=_settings(mutation))
        return compared(history)


@asynccontextmanager
async def _with_engines(
    engines: OwnEngines, folder: Path, settings: Mapping[str, str]
) -> AsyncIterator[DistributedSubject]:
    """Start the roles with a database and topics of their own."""
    name = engines.postgres.create_database("template")
    prefix = f"{uuid.uuid4()}-"
    async with distributed_subject(folder, engines, settings, database=name, topic_prefix=prefix) as subject:
        yield subject
    engines.restore()
    engines.postgres.drop_database(name)


async def run_distributed(
    engines: OwnEngines, steps: Sequence[Step], load: Load, *, mutation: Mutation | None = None
) -> Outcome:
    """Carry out a plan on a distributed system of its own, on engines that tests share."""
    async with run_folder(lambda: False) as folder:
        history = await run(steps, load, partial(_with_engines, engines), folder, settings=_settings(mutation))
        return compared(history)


def _settings(mutation: Mutation | None) -> dict[str, str]:
    return {} if mutation is None else {PATCH: f"tests.support.mutations.{mutation}"}


def compared(history: History) -> Outcome:
    """Compare the views of a run; its files are still there."""
    breaches = check(history)
    evidence = [f"{breach.invariant}: {breach.evidence}" for breach in breaches]
    return Outcome(history, {breach.invariant for breach in breaches}, evidence)
