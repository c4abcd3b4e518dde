"""More messages than the model can answer: what is refused and how fast, and that memory does not grow with it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from duologue.bench.options import Overload
from duologue.bench.run import Bench
from duologue.bench.target import Needs

_WORKERS: Final = 8
_TOKENS: Final = 10
_TOKENS_PER_SECOND: Final = 50.0
_LOOK_SECONDS: Final = 5.0
_OVERLOAD_SECONDS: Final = 5.0


def needs(_: Overload) -> Needs:
    """See `Scenario`."""
    settings = {"MAX_WORKERS": str(_WORKERS), "OVERLOAD_SECONDS": str(_OVERLOAD_SECONDS), "LOG_LEVEL": "WARNING"}
    return Needs(model={"tokens": _TOKENS, "tps": _TOKENS_PER_SECOND}, settings=settings, own=True)


async def run(bench: Bench, asked: Overload) -> None:
    """Send so many times more than the consumers can answer, and measure refusals, outcomes and memory."""
    capacity = bench.processes.get("ai-consumer", 1) * _WORKERS * _TOKENS_PER_SECOND / _TOKENS
    rate = asked.times * capacity
    async with bench.crowd(asked.users, seed=asked.seed) as users:
        async with bench.phase(f"{rate:g} messages/s of which {capacity:g} can be answered", users) as phase:
            phase.offered = rate
            looking = asyncio.create_task(_memory(bench))
            await users.send_at_rate(rate, asked.seconds, f"{asked.seed}", "Hello")
            phase.loaded()
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            await users.settled(20 * _OVERLOAD_SECONDS)
        bench.figures["capacity_per_second"] = capacity


async def _memory(bench: Bench) -> None:
    """Note the resident memory of the processes that hold sockets: at the begin, and by now, until cancelled."""
    bench.figures["memory_at_begin_mib"] = await _mib(bench)
    while True:
        bench.figures["memory_at_end_mib"] = await _mib(bench)
        most = bench.figures.get("memory_highest_mib", 0.0)
        bench.figures["memory_highest_mib"] = max(most, bench.figures["memory_at_end_mib"])
        await asyncio.sleep(_LOOK_SECONDS)


async def _mib(bench: Bench) -> float:
    return round(bench.meter.resident(await bench.meter.mark()) / 2**20, 1)
