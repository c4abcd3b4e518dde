"""More messages than the model can answer: what is refused and how fast, and that memory does not grow with it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from duologue.bench.load import connect_users, send_at_rate, until_answered
from duologue.bench.scenarios import Bench, Figures, Mode, bench, faults, percentiles

_WORKERS: Final = 8
_TOKENS: Final = 10
_TOKENS_PER_SECOND: Final = 50.0
_CONSUMERS: Final = {"embedded": 1, "distributed": 2}
_LOOK_SECONDS: Final = 5.0
_OVERLOAD_SECONDS: Final = 5.0


async def overload(*, mode: Mode = "embedded", times: float, seconds: float, users: int) -> Figures:
    """Send so many times more than the consumers can answer, and measure refusals, outcomes and memory."""
    model = {"tokens": str(_TOKENS), "tps": str(_TOKENS_PER_SECOND)}
    capacity = _CONSUMERS[mode] * _WORKERS * _TOKENS_PER_SECOND / _TOKENS
    settings = {"MAX_WORKERS": str(_WORKERS), "OVERLOAD_SECONDS": str(_OVERLOAD_SECONDS), "LOG_LEVEL": "WARNING"}
    async with bench(mode, model, **settings) as running:
        crowd = await connect_users(running.system.url, running.system.ws_url, users, "bench")
        began = time.perf_counter()
        looking = asyncio.create_task(_memory(running, began))
        late = await send_at_rate(crowd, rate=times * capacity, seconds=seconds, content="Hello", seed=1)
        looking.cancel()
        (memory,) = await asyncio.gather(looking)
        unanswered = await until_answered(crowd, 20 * _OVERLOAD_SECONDS, refused=True)
        drained = time.perf_counter() - began - seconds
        exchanges = [each for user in crowd for each in user.measured() if each.acked]
        refusals = [took for user in crowd for took in user.refusals.values()]
        return {
            "capacity_per_second": capacity,
            "rate": times * capacity,
            "sent_late": late,
            "accepted": len(exchanges),
            "refused": len(refusals),
            "unanswered": unanswered,
            "drained_after_seconds": round(drained, 1),
            "refusal_ms": percentiles(refusals),
            "first_token_ms": percentiles([each.first_delta - each.sent for each in exchanges if each.deltas]),
            "memory_mib": memory,
            **faults(crowd, exchanges),
        }


async def _memory(running: Bench, began: float) -> dict[str, float]:
    """Return what the processes that hold sockets had resident, by the second, until cancelled."""
    found: dict[str, float] = {}
    while True:
        found[f"{time.perf_counter() - began:.0f} s:"] = round(running.resident() / 2**20, 1)
        try:
            await asyncio.sleep(_LOOK_SECONDS)
        except asyncio.CancelledError:
            return found
