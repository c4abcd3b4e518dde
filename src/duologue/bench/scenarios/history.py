"""Users with a long conversation behind them, beside users with a short one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec

from duologue.bench.histogram import Histogram
from duologue.bench.load.crowd import Crowd, names_of
from duologue.bench.options import History
from duologue.bench.past import give_past
from duologue.bench.report.model import Step
from duologue.bench.run import Bench
from duologue.bench.scenarios import needs_of_load
from duologue.bench.target import Needs

_PAGE_GAP_SECONDS: Final = 0.02
_COMPARED: Final = ("first_token", "ack", "attach", "page")


def needs(asked: History) -> Needs:
    """See `Scenario`."""
    of_load = needs_of_load(asked)
    return Needs(model=of_load.model, settings=of_load.settings, own=True)


async def run(bench: Bench, asked: History) -> None:
    """Measure the same with both kinds of users, one after the other, at the same rate. Both are warmed up before."""
    long, short = names_of(asked.users, "long"), names_of(asked.users, "short")
    threads: dict[int, list[str]] = {}
    for names, count in ((long, asked.long), (short, asked.short)):
        bench.display.begin(f"writing {len(names)} conversations of {count} messages")
        threads[count] = await asyncio.to_thread(give_past, bench.target.database_url, names, count)
    async with (
        bench.crowd(long, devices=asked.devices, seed=asked.seed) as with_long,
        bench.crowd(short, devices=asked.devices, seed=asked.seed) as with_short,
    ):
        await bench.watch_idle(asked.idle_seconds)
        await bench.warm_up(with_short, asked, asked.rate)
        await bench.warm_up(with_long, asked, asked.rate)
        await _measure(bench, asked, with_short, asked.short, threads[asked.short])
        await _measure(bench, asked, with_long, asked.long, threads[asked.long])
    _compare(bench, bench.steps[-2], bench.steps[-1])


async def _measure(bench: Bench, asked: History, users: Crowd, count: int, threads: Sequence[str]) -> None:
    async with bench.phase(f"{count} messages behind each", users) as phase:
        phase.offered = asked.rate
        await users.send_at_rate(asked.rate, asked.seconds, f"{asked.seed}")
    step = bench.steps.pop()
    async with bench.phase(step.name, users) as phase:
        for _ in range(asked.attaches):
            await users.come_back_at_once()
        phase.histograms["page"] = await _read_pages(bench, asked, users, threads)
    more = bench.steps.pop()
    bench.steps.append(_both(step, more))


async def _read_pages(bench: Bench, asked: History, users: Crowd, threads: Sequence[str]) -> Histogram:
    """Read the newest page of each user's conversation, one after the other."""
    taken, entrance = Histogram(), bench.target.entrance
    order = [pair for pair in zip(users.users, threads, strict=True) for _ in range(asked.pages)]
    random.Random(asked.seed).shuffle(order)  # noqa: S311  # an order, no secret
    async with aiohttp.ClientSession() as http:
        for user, thread in order:
            headers = {"Authorization": f"Bearer {entrance.token(user.user_id)}"}
            began = time.perf_counter()
            async with http.get(f"{entrance.url}/conversations/{thread}/messages", headers=headers) as response:
                await response.read()
                if response.status != 200:
                    users.recorder.breach("pages of the history that could not be read", f"{thread}: {response.status}")
            taken.record(time.perf_counter() - began)
            await asyncio.sleep(_PAGE_GAP_SECONDS)
    return taken


def _both(messages: Step, rest: Step) -> Step:
    """Return what messages cost, with the latencies of attaching and reading from the part that had no messages."""
    found = {name: rest.latencies[name] for name in ("attach", "page") if name in rest.latencies}
    breaches = {
        name: messages.breaches.get(name, 0) + rest.breaches.get(name, 0) for name in messages.breaches | rest.breaches
    }
    return msgspec.structs.replace(
        messages, latencies={**messages.latencies, **found}, breaches=breaches, reconnects=rest.reconnects
    )


def _compare(bench: Bench, short: Step, long: Step) -> None:
    """Tell how many times as much it is with the long conversation."""
    for name in _COMPARED:
        if name in short.latencies and name in long.latencies and short.latencies[name].p50:
            bench.figures[f"{name}_p50_times"] = round(long.latencies[name].p50 / short.latencies[name].p50, 2)
    spent = [sum(step.cpu_ms_per_message_beyond_idle.values()) for step in (short, long)]
    if spent[0]:
        bench.figures["cpu_per_message_times"] = round(spent[1] / spent[0], 2)
