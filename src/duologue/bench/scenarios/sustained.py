"""The highest rate that is answered as it comes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from duologue.bench.options import Sustained
from duologue.bench.report.model import Step
from duologue.bench.run import Bench
from duologue.bench.scenarios import needs_of_load
from duologue.bench.target import Needs

_DRAINED_SECONDS: Final = 2.0
"""A rate that leaves more work behind than this is not kept up with, whatever its latencies were so far."""


def needs(asked: Sustained) -> Needs:
    """See `Scenario`."""
    return needs_of_load(asked)


async def run(bench: Bench, asked: Sustained) -> None:
    """See `Scenario`."""
    async with bench.crowd(asked.users, devices=asked.devices, turns=asked.turns, seed=asked.seed) as users:
        await bench.watch_idle(asked.idle_seconds)
        await bench.warm_up(users, asked, asked.start / 2)
        search = rates(asked.start, asked.step, asked.resolution)
        rate = next(search)
        while True:
            name, seed = f"{rate:g} messages/s", f"{asked.seed} {rate:g}"
            step = await bench.loaded(users, asked, name=name, rate=rate, seconds=asked.seconds, seed=seed)
            if step.unanswered:
                break
            try:
                rate = search.send(held(step, asked.bound_ms))
            except StopIteration:
                break
        best = max((each.offered_per_second for each in bench.steps if held(each, asked.bound_ms)), default=0.0)
        bench.figures |= {"sustained_per_second": best, "bound_ms": asked.bound_ms}


def held(step: Step, bound_ms: float) -> bool:
    """Tell whether a rate was answered as it came."""
    first = step.latencies.get("first_token")
    in_time = first is not None and first.p99 <= bound_ms and step.drained_after_seconds <= _DRAINED_SECONDS
    return in_time and not (step.unanswered or step.refused)


def rates(start: float, step: float, resolution: float) -> Generator[float, bool, None]:
    """Yield rates to be tried; each `send` tells whether the last one held.

    Up by `step` until one does not hold (down by halves if the first does not), then halfway between the highest that
    held and the lowest that did not, until those are no further apart than `resolution`.
    """
    good, bad, rate = 0.0, 0.0, start
    while not bad or bad - good > resolution:
        if (yield rate):
            good = rate
        else:
            bad = rate
        rate = (good + bad) / 2 if bad else rate + step
