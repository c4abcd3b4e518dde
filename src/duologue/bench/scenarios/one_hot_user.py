"""One user on many devices sends far more than others do."""

from __future__ import annotations

import asyncio

from duologue.bench.options import OneHotUser
from duologue.bench.run import Bench
from duologue.bench.scenarios import needs_of_load
from duologue.bench.target import Needs


def needs(asked: OneHotUser) -> Needs:
    """See `Scenario`."""
    return needs_of_load(asked)


async def run(bench: Bench, asked: OneHotUser) -> None:
    """See `Scenario`."""
    async with (
        bench.crowd(asked.users, devices=asked.devices, turns=asked.turns, seed=asked.seed) as others,
        bench.crowd(1, devices=asked.hot_devices, seed=asked.seed) as hot,
    ):
        await bench.watch_idle(asked.idle_seconds)
        await bench.warm_up(others, asked, asked.rate)
        alone = await bench.loaded(
            others, asked, name="others alone", rate=asked.rate, seconds=asked.seconds, seed=f"{asked.seed}"
        )
        async with bench.phase("others beside the hot user", others, hot) as phase:
            phase.offered = asked.rate
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(others.send_at_rate(asked.rate, asked.seconds, f"{asked.seed}"))
                tasks.create_task(hot.send_at_rate(asked.hot_rate, asked.seconds, f"hot {asked.seed}"))
        beside = bench.steps[-1]
        for name in ("first_token", "ack"):
            if name in alone.latencies and name in beside.latencies:
                bench.figures[f"{name}_p99_ms_alone"] = alone.latencies[name].p99
                bench.figures[f"{name}_p99_ms_beside"] = beside.latencies[name].p99
        bench.figures |= {
            "hot_sent": hot.recorder.sent,
            "hot_answered": hot.recorder.answered,
            "hot_refused": hot.recorder.refused,
        }
