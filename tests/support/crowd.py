"""Users who talk all the while that something happens to the system."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.support.model_server import ModelServer
from tests.support.users import unique
from tests.support.witness import Witness, witness

from duologue.client.events import Open

_LOOK_SECONDS = 0.02


class Crowd:
    """Some users, each of whom sends a message every so often, whether or not the last one was answered."""

    def __init__(self, users: Sequence[Witness]) -> None:
        self.users = users
        self._random = random.Random(7)

    @property
    def answered(self) -> int:
        """Messages that were told their outcome."""
        return sum(len(user.outcomes) for user in self.users)

    @property
    def acknowledged(self) -> int:
        """Messages that were acknowledged."""
        return sum(len(user.acknowledged) for user in self.users)

    @property
    def refusals(self) -> set[str]:
        """The codes of all errors that users were told, beside failed replies."""
        return {error["code"] for user in self.users for error in user.errors}

    @asynccontextmanager
    async def talking(self, gap_seconds: float = 1.0) -> AsyncIterator[None]:
        """Let every user talk until the context ends."""
        tasks = [asyncio.create_task(self._talk(user, gap_seconds)) for user in self.users]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends

    async def _talk(self, user: Witness, gap_seconds: float) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0, 2 * gap_seconds))
            user.say()

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Wait until something holds of all users together."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110  # many connections' events
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {seconds:g} s") from None

    async def until_answered_more(self, messages: int) -> None:
        """Wait until so many more messages were answered."""
        wanted = self.answered + messages
        await self.until(lambda: self.answered >= wanted, f"{messages} more answers")

    async def until_on(self, server_id: str, seconds: float) -> None:
        """Wait until every user is on that websocket-server."""
        await self.until(lambda: all(_is_on(user, server_id) for user in self.users), f"all on {server_id}", seconds)

    async def assert_kept(
        self, model_server: ModelServer, *, told: bool = True, asked_once: bool = False, tries: int = 1
    ) -> None:
        """Wait for the last outcome; nothing is lost, doubled, out of order or stuck, and no model asked too often.

        Args:
            model_server: which was asked.
            told: see `Witness.assert_kept`.
            asked_once: no reply was begun twice. Its attempt may be the second nevertheless: a claim may be handed
                over before the model is asked.
            tries: at the model that an attempt may take.
        """
        await asyncio.gather(*(user.until_answered() if told else user.until_shown() for user in self.users))
        for user in self.users:
            await user.assert_kept(told=told)
        asked = (await model_server.stats())["contents"]
        for user in self.users:
            for number in range(user.sent):
                exchange = user.connection.view.by_client_id(f"{user.name}-{number}")
                assert exchange is not None
                times = asked[f"{user.name} asks {number}"]
                assert 1 <= times <= (1 if asked_once else tries * exchange.attempt), f"asked {times} times: {exchange}"


def _is_on(user: Witness, server_id: str) -> bool:
    return isinstance(user.connection.state, Open) and user.servers[-1] == server_id


@asynccontextmanager
async def crowd(url: str, folder: Path, users: int) -> AsyncIterator[Crowd]:
    """Connect so many users."""
    async with AsyncExitStack() as stack:
        names = [unique(f"user{number}") for number in range(users)]
        yield Crowd([await stack.enter_async_context(witness(url, name, folder)) for name in names])
