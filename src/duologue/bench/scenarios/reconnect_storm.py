"""All sockets are lost in one moment and come back, while replies are being written."""

from __future__ import annotations

import time

from duologue.bench.options import ReconnectStorm
from duologue.bench.run import Bench
from duologue.bench.target import Needs


def needs(asked: ReconnectStorm) -> Needs:
    """See `Scenario`."""
    model = {"tokens": asked.tokens, "tps": asked.tokens_per_second}
    return Needs(model=model, settings={"MAX_WORKERS": str(max(256, asked.users * 2))})


async def run(bench: Bench, asked: ReconnectStorm) -> None:
    """See `Scenario`."""
    lasting = asked.tokens / asked.tokens_per_second
    async with bench.crowd(asked.users, devices=asked.devices, seed=asked.seed) as users:
        longest = 0.0
        for number in range(1, asked.storms + 1):
            async with bench.phase(f"storm {number} of {len(users.devices)} sockets", users):
                await users.all_send(lasting / 4, share=asked.talking)
                began = time.perf_counter()
                await users.come_back_at_once()
                longest = max(longest, time.perf_counter() - began)
                await users.settled(lasting * 2)
        bench.figures["all_attached_again_seconds"] = round(longest, 2)
        bench.figures["sockets"] = len(users.devices)
