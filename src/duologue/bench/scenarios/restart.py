"""How long users wait when what writes their replies dies in the middle and is started again at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import aiohttp

from duologue.bench.histogram import Histogram
from duologue.bench.options import Restart
from duologue.bench.report.model import Step, latency
from duologue.bench.run import Bench
from duologue.bench.target import Needs
from duologue.client.connection import ClientConnection, ConnectionOptions
from duologue.client.events import Event, Received
from duologue.client.tokens import GuestTokens

_MOST_SECONDS: Final = 120.0


def needs(_: Restart) -> Needs:
    """See `Scenario`."""
    return Needs(model={"tokens": 400, "tps": 20.0}, settings={"MAX_WORKERS": "256"}, own=True)


class _Waiter:
    """A user with a well-behaved client; notes when the first piece of a second attempt came."""

    def __init__(self, http: aiohttp.ClientSession, url: str, user_id: str) -> None:
        self.first_piece = asyncio.Event()
        self.resumed_at = 0.0
        self.answered = False
        self.connection = ClientConnection(
            ConnectionOptions(server=url, user_id=user_id), GuestTokens(http, url, user_id), on_event=self._hear
        )

    def _hear(self, event: Event) -> None:
        if not isinstance(event, Received) or event.frame.get("type") not in ("delta", "snapshot", "response"):
            return
        self.first_piece.set()
        self.answered |= event.frame.get("type") == "response"
        if event.frame.get("attempt", 1) > 1 and not self.resumed_at:
            self.resumed_at = time.perf_counter()

    @property
    def settled(self) -> bool:
        """Whether its reply goes on under the next attempt, or has come to its end under the first."""
        return self.resumed_at > 0 or self.answered


async def run(bench: Bench, asked: Restart) -> None:
    """Kill what writes replies while every user's is written, start it at once, and measure from the kill to the first
    piece of the next attempt that a client sees, its own waiting before it reconnects included.

    In the embedded mode that is the whole system, in the distributed mode the first of the ai-consumers.
    """
    system = bench.target.system
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        waiters = [_Waiter(http, system.url, f"waiter-{number}") for number in range(asked.users)]
        for waiter in waiters:
            await stack.enter_async_context(waiter.connection)
            waiter.connection.send("Tell me a story")
        await asyncio.gather(*(waiter.first_piece.wait() for waiter in waiters))
        bench.display.begin("killed, and started again")
        victim = system if bench.target.mode == "embedded" else system.server("ai-consumer-1")
        killed_at = time.perf_counter()
        await victim.kill()
        await victim.start()
        ready_at = time.perf_counter()
        await _until_settled(waiters)
        again = Histogram()
        for waiter in waiters:
            if waiter.resumed_at:
                again.record(waiter.resumed_at - killed_at)
        unanswered = sum(1 for waiter in waiters if not waiter.settled)
        step = Step(
            name="restart",
            seconds=round(time.perf_counter() - killed_at, 2),
            sent=asked.users,
            unanswered=unanswered,
            breaches={"unanswered messages": unanswered} if unanswered else {},
            latencies={"first_piece_again": latency(again)},
        )
        bench.steps.append(step)
        bench.figures |= {"taken_over": again.count, "ready_again_seconds": round(ready_at - killed_at, 2)}


async def _until_settled(waiters: Sequence[_Waiter]) -> None:
    """Wait for all, but not for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MOST_SECONDS), asyncio.TaskGroup() as tasks:
            for waiter in waiters:
                tasks.create_task(waiter.connection.until(lambda waiter=waiter: waiter.settled))  # type: ignore[misc]
