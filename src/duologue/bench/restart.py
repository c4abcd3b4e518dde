"""How long users wait when what writes their replies dies in the middle and is started again at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import aiohttp

from duologue.bench.scenarios import Figures, Mode, bench, percentiles
from duologue.client.connection import ClientConnection, ConnectionOptions
from duologue.client.events import Event, Received
from duologue.client.tokens import GuestTokens


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
    def resumed(self) -> bool:
        return self.resumed_at > 0

    @property
    def settled(self) -> bool:
        """Whether its reply goes on under the next attempt, or has come to its end under the first."""
        return self.resumed or self.answered


async def restart(*, mode: Mode = "embedded", users: int) -> Figures:
    """Kill what writes replies while every user's is written, start it at once, and measure from the kill to the first
    piece of the next attempt that a client sees, its own waiting before it reconnects included.

    In the embedded mode that is the whole system, in the distributed mode one of two ai-consumers.
    """
    async with bench(mode, {"tokens": "400", "tps": "20"}) as running, aiohttp.ClientSession() as http:
        system = running.system
        async with AsyncExitStack() as stack:
            waiters = [_Waiter(http, system.url, f"waiter-{number}") for number in range(users)]
            for waiter in waiters:
                await stack.enter_async_context(waiter.connection)
                waiter.connection.send("Tell me a story")
            await asyncio.gather(*(waiter.first_piece.wait() for waiter in waiters))
            victim = system if mode == "embedded" else system.server("ai-consumer-1")
            killed_at = time.perf_counter()
            await victim.kill()
            await victim.start()
            ready_at = time.perf_counter()
            await asyncio.gather(
                *(waiter.connection.until(lambda waiter=waiter: waiter.settled) for waiter in waiters)  # type: ignore[misc]
            )
            taken_over = [waiter.resumed_at - killed_at for waiter in waiters if waiter.resumed]
            return {
                "users": users,
                "taken_over": len(taken_over),
                "ready_again_seconds": round(ready_at - killed_at, 2),
                "first_piece_again_ms": percentiles(taken_over),
            }
