"""More messages than the model can answer: what is refused and how fast, and that memory does not grow with it."""

from __future__ import annotations

from typing import Final

from duologue.bench.options import Overload
from duologue.bench.run import Bench
from duologue.bench.target import Needs

_WORKERS: Final = 8
_TOKENS: Final = 10
_TOKENS_PER_SECOND: Final = 50.0
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
            before = await bench.meter.mark()
            await users.send_at_rate(rate, asked.seconds, f"{asked.seed}", "Hello")
            phase.loaded()
            memory = bench.meter.memory_between(before, await bench.meter.mark())
            await users.settled(20 * _OVERLOAD_SECONDS)
        bench.figures |= {
            "capacity_per_second": capacity,
            "memory_at_begin_mib": _mib(memory.begin_bytes),
            "memory_at_end_mib": _mib(memory.end_bytes),
            "memory_highest_mib": _mib(memory.highest_bytes),
        }


def _mib(count: int) -> float:
    return round(count / 2**20, 1)
