"""Short messages at a steady rate."""

from __future__ import annotations

from duologue.bench.options import Messages
from duologue.bench.run import Bench
from duologue.bench.scenarios import needs_of_load
from duologue.bench.target import Needs


def needs(asked: Messages) -> Needs:
    """See `Scenario`."""
    return needs_of_load(asked)


async def run(bench: Bench, asked: Messages) -> None:
    """See `Scenario`."""
    async with bench.crowd(asked.users, devices=asked.devices, turns=asked.turns, seed=asked.seed) as users:
        await bench.watch_idle(asked.idle_seconds)
        await bench.warm_up(users, asked, asked.rate)
        name = f"{asked.rate:g} messages/s"
        await bench.loaded(users, asked, name=name, rate=asked.rate, seconds=asked.seconds, seed=f"{asked.seed}")
        if users.conversations is not None and users.conversations.late:
            bench.notes.append(
                f"{users.conversations.late} messages waited for no new conversation and stayed in the old"
            )
