"""Who reads a topic of the Streams log: a lock in Valkey with a token, renewed while its holder lives (rule Owner)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from duologue.domain.errors import ConsumerRefused, DuologueError, RedisUnavailable
from duologue.engines.redis import Argument, Redis, Script

_POLL_SECONDS: Final = 0.05

_HERE: Final = Path(__file__).parent
_RENEW: Final = Script.from_file(_HERE / "renew.lua")
_RELEASE: Final = Script.from_file(_HERE / "release.lua")
LOCK_SCRIPTS: Final = (_RENEW, _RELEASE)


class LockTimes(NamedTuple):
    """How long a lock is valid without renewal, how often it is renewed, and how long others wait for its end."""

    valid_seconds: float = 5.0
    renew_seconds: float = 1.5
    wait_seconds: float = 6.0

    @property
    def valid_ms(self) -> int:
        return int(self.valid_seconds * 1000)


class Lock:
    """A lock that is held, as far as this process can know."""

    def __init__(self, redis: Redis, key: str, token: str, times: LockTimes, taken: float) -> None:
        self._redis = redis
        self._times = times
        self._taken = taken
        self._doubted = asyncio.Event()
        self.key = key
        self.token = token

    def doubt(self) -> None:
        """Let `until_lost` look at once: somebody found another token in Valkey."""
        self._doubted.set()

    async def until_lost(self) -> None:
        """Renew the lock now and then; return when it is another's, or was not renewed for as long as it is valid.

        Time counts from before each renewal was sent, so that this ends no later than the lock does in Valkey.
        """
        loop = asyncio.get_running_loop()
        renewed = self._taken
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times.renew_seconds):
                    await self._doubted.wait()
            self._doubted.clear()
            sent = loop.time()
            if not await self._renewed(renewed + self._times.valid_seconds):
                return
            renewed = sent

    async def release(self) -> None:
        """Give it up; if Valkey is away it ends by itself."""
        with suppress(RedisUnavailable):
            await self._redis.run(_RELEASE, [self.key], [self.token])

    async def _renewed(self, deadline: float) -> bool:
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return bool(await self._redis.run(_RENEW, [self.key], [self.token, self._times.valid_ms]))
                    except DuologueError:  # whatever it is: without a renewal in time the lock is lost
                        await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            return False


@asynccontextmanager
async def held_lock(redis: Redis, key: str, *, times: LockTimes, takeover: bool, refusal: str) -> AsyncIterator[Lock]:
    """Take a lock; leaving the context gives it up.

    Args:
        redis: knows `LOCK_SCRIPTS`.
        key: the lock's key.
        times: the same for everybody who may want this lock.
        takeover: take it whoever holds it: the caller knows that the holder is dead. Else wait for its end.
        refusal: what to say to people if there is a living holder.

    Raises:
        ConsumerRefused: there is.
        RedisUnavailable: Valkey cannot be reached.
    """
    token = secrets.token_hex(16)
    condition = () if takeover else ("NX",)
    taken = await _take(redis, ("SET", key, token, "PX", times.valid_ms, *condition), times.wait_seconds)
    if taken is None:
        raise ConsumerRefused(refusal)
    lock = Lock(redis, key, token, times, taken)
    try:
        yield lock
    finally:
        await lock.release()


async def _take(redis: Redis, command: Sequence[Argument], wait_seconds: float) -> float | None:
    """Return when the lock was asked for that was then given; None if it never was."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    while (asked := loop.time()) <= deadline:
        if await redis.call(*command) is not None:
            return asked
        await asyncio.sleep(_POLL_SECONDS)
    return None
