"""Sockets that do nothing."""

from __future__ import annotations

import asyncio
from typing import Final

from duologue.bench.options import Idle
from duologue.bench.run import Bench
from duologue.bench.target import Needs

_WARM_SOCKETS: Final = 50
_SETTLE_SECONDS: Final = 2.0
"""What connecting needed for a moment is given back within this."""


def needs(_: Idle) -> Needs:
    """See `Scenario`."""
    return Needs(own=True)


async def run(bench: Bench, asked: Idle) -> None:
    """See `Scenario`."""
    entrance = bench.target.direct() if asked.direct else bench.target.entrance
    async with bench.crowd(_WARM_SOCKETS, seed=asked.seed, entrance=entrance):
        before = bench.meter.resident(await bench.meter.mark())
        async with bench.crowd(asked.sockets, seed=asked.seed, entrance=entrance) as users:
            attached = users.recorder.histograms["attach"]
            await asyncio.sleep(_SETTLE_SECONDS)
            held = bench.meter.resident(await bench.meter.mark()) - before
            async with bench.phase(f"{asked.sockets} sockets", users) as phase:
                phase.histograms["attach"] = attached
                await asyncio.sleep(asked.seconds)
            share = sum(share for name, share in _mean_cpu(bench).items() if name != "load")
            bench.figures |= {
                "sockets": asked.sockets,
                "memory_per_socket_kib": round(held / asked.sockets / 1024, 1),
                "cpu_percent": round(share, 1),
            }


def _mean_cpu(bench: Bench) -> dict[str, float]:
    """Return the mean use of a core in percent, by role and engine."""
    series = bench.steps[-1].series
    names = {name for second in series for name in second.cpu_percent}
    return {name: sum(each.cpu_percent.get(name, 0.0) for each in series) / len(series) for name in names}
