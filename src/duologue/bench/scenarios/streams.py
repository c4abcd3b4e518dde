"""Replies that stream at once."""

from __future__ import annotations

import asyncio
from typing import Final

from duologue.bench.options import Streams
from duologue.bench.run import Bench
from duologue.bench.scenarios import needs_of_load
from duologue.bench.target import Needs

_WARM_TOKENS: Final = 8
_SPREAD_SECONDS: Final = 1.0
"""The replies begin within this: all in one moment would measure that moment."""


def needs(asked: Streams) -> Needs:
    """See `Scenario`."""
    of_load = needs_of_load(asked)
    return Needs(model=of_load.model, settings={"MAX_WORKERS": str(asked.users * 2)})


async def run(bench: Bench, asked: Streams) -> None:
    """See `Scenario`."""
    model = bench.target.model
    async with bench.crowd(asked.users, devices=asked.devices, seed=asked.seed) as users:
        await bench.watch_idle(asked.idle_seconds)
        if model is not None:
            await model.configure({"tokens": _WARM_TOKENS, "tps": 0})
        await bench.warm_up(users, asked, asked.users / 5)
        if model is not None:
            await model.configure({"tokens": asked.tokens, "tps": asked.tokens_per_second, "stamp": True})
        lasting = asked.tokens / asked.tokens_per_second + asked.ttft_ms / 1000
        async with bench.phase(f"{asked.users} replies at {asked.tokens_per_second:g} tokens/s each", users) as phase:
            phase.offered = asked.users / lasting
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(users.all_send(_SPREAD_SECONDS))
                tasks.create_task(users.lose_sockets(asked.reconnects_per_minute, lasting, asked.seed))
            await users.settled(lasting * 2)
        step = bench.steps[-1]
        bench.figures["deltas_per_reply"] = round(step.deltas / max(step.answered, 1) / asked.devices, 1)
        if "delta_delay" not in step.latencies:
            bench.notes.append("no delay of deltas: the model does not stamp its chunks (give --model-url)")
