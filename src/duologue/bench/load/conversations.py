"""Conversations that end and are followed by others: `--turns` messages each, more or less."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from duologue.bench.bare_socket import open_socket
from duologue.bench.load.user import LoadUser

_MAKERS: Final = 4
_GREETING_SECONDS: Final = 30.0
_AGAIN_SECONDS: Final = 0.5


class Conversations:
    """Makes each user's next conversation while the user is in the one before, so that no message waits for it.

    Args:
        address: gives the address of a user's socket, with a token.
        turns: messages of a conversation, 1 or more; drawn for each from half to one and a half times that.
        seed: of the draws.
    """

    def __init__(self, address: Callable[[str], str], *, turns: int, seed: int) -> None:
        self._address = address
        self._turns = turns
        self._random = random.Random(f"conversations {seed}")  # noqa: S311  # lengths, no secrets
        self._wanted: asyncio.Queue[LoadUser] = asyncio.Queue()  # each user is in it once at most
        self.late = 0
        """Messages that stayed in a conversation because the next one was not made yet."""

    async def begin(self, users: Sequence[LoadUser]) -> None:
        """Give each user a first conversation, and the next. Raises OSError."""
        for user in users:
            user.talk.following = await self._made(user)
            self.before_message(user)

    def before_message(self, user: LoadUser) -> None:
        """Take a user to the next conversation if the present one has had its messages."""
        talk = user.talk
        if talk.left > 0:
            talk.left -= 1
        elif talk.following:
            talk.conversation_id, talk.following = talk.following, ""
            talk.left = self._random.randint(max(1, self._turns // 2), self._turns + self._turns // 2) - 1
            self._wanted.put_nowait(user)
        else:
            self.late += 1

    async def run(self) -> None:
        """Make what is wanted, again if need be, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_MAKERS):
                tasks.create_task(self._make())

    async def _make(self) -> None:
        while True:
            user = await self._wanted.get()
            with contextlib.suppress(
                OSError, TimeoutError, msgspec.ValidationError
            ):  # not let in: said by other sockets
                user.talk.following = await self._made(user)
            if not user.talk.following:
                await asyncio.sleep(_AGAIN_SECONDS)
                self._wanted.put_nowait(user)

    async def _made(self, user: LoadUser) -> str:
        """Return a new conversation, as the greeting of a socket tells it that asks for one. Raises OSError."""
        greeting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def closed(code: int) -> None:
            if not greeting.done():
                greeting.set_exception(ConnectionError(f"closed with {code}"))

        def told(text: bytes) -> None:
            if not greeting.done():
                greeting.set_result(text)

        async with asyncio.timeout(_GREETING_SECONDS):
            socket = await open_socket(f"{self._address(user.user_id)}&conversation_id=new", told, closed)
            made = msgspec.json.decode(await greeting, type=_Made).conversation_id
        socket.leave()
        return made


class _Made(msgspec.Struct):
    conversation_id: str
