"""Applies users' durable frames in order, whatever Redis does meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple, Self

import structlog

from duologue.delivery.stream import POISONED, Applied, DurableFrame, UserStreams
from duologue.delivery.tasks import Tasks
from duologue.domain.errors import RedisUnavailable
from duologue.domain.ids import UserKey
from duologue.engines.redis import RedisCommandError
from duologue.observability import metrics

_log = structlog.get_logger(__name__)

OnPoison = Callable[[UserKey, DurableFrame, RedisCommandError], Awaitable[None]]

MAX_BATCH: Final = 128
_FIRST_DELAY_SECONDS: Final = 0.05
_LONGEST_DELAY_SECONDS: Final = 1.0


class _Waiting(NamedTuple):
    frame: DurableFrame
    future: asyncio.Future[Applied]


_Lane = deque[_Waiting]


class OrderedApplier:
    """Sends each user's durable frames in the order in which they were submitted, one script call at a time.

    What waits of a user goes in one call; users do not wait for each other, their calls share a pipeline. While Redis
    is away a user's frames stay where they are and are sent again, before any later one, without end: the script drops
    those that it had applied already. Callers bound what they submit.
    """

    def __init__(self, streams: UserStreams, *, on_poison: OnPoison) -> None:
        """Apply to `streams`.

        Args:
            streams: the users' streams.
            on_poison: takes a frame that Redis refused for its data twice by itself; it is repeated until it returns.
        """
        self._streams = streams
        self._on_poison = on_poison
        self._lanes: dict[UserKey, _Lane] = {}
        self._tasks = Tasks("apply")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give up what still waits: its futures are cancelled. To have it applied first, `drain`."""
        await self._tasks.aclose()

    @property
    def waiting(self) -> int:
        """How many frames are not applied yet."""
        return sum(map(len, self._lanes.values()))

    def submit(self, user: UserKey, frame: DurableFrame) -> asyncio.Future[Applied]:
        """Take a frame; it has its place behind the user's earlier ones at once. The result tells what became of it."""
        future: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        lane = self._lanes.get(user)
        if lane is None:
            lane = self._lanes[user] = deque()
            self._tasks.spawn(self._run_lane(user, lane))
        lane.append(_Waiting(frame, future))
        return future

    async def drain(self) -> None:
        """Return when everything submitted so far is applied."""
        await self._tasks.joined()

    async def _run_lane(self, user: UserKey, lane: _Lane) -> None:
        """Apply a user's frames until none waits. A later one then opens a lane anew."""
        try:
            while lane:
                await self._apply_front(user, lane)
        finally:
            del self._lanes[user]
            for waiting in lane:
                waiting.future.cancel()

    async def _apply_front(self, user: UserKey, lane: _Lane) -> None:
        batch = list(islice(lane, MAX_BATCH))
        try:
            fates = await self._apply(user, [waiting.frame for waiting in batch])
        except RedisCommandError:
            fates = [await self._apply_alone(user, waiting.frame) for waiting in batch]
        for waiting, fate in zip(batch, fates, strict=True):
            lane.popleft()
            if not waiting.future.done():  # else its caller was cancelled
                waiting.future.set_result(fate)
            if fate.fate == "repeat":
                metrics.RECORDS_DROPPED.labels(waiting.frame.kind).inc()

    async def _apply(self, user: UserKey, frames: Sequence[DurableFrame]) -> list[Applied]:
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                return await self._streams.apply(user, frames)
            except RedisUnavailable as error:
                if delay == _LONGEST_DELAY_SECONDS:
                    _log.warning("apply_waits", tenant=user.tenant, user=user.user_id, error=str(error))
            metrics.APPLY_RETRIES.inc()
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def _apply_alone(self, user: UserKey, frame: DurableFrame) -> Applied:
        try:
            return (await self._apply(user, [frame]))[0]
        except RedisCommandError:
            pass
        try:
            return (await self._apply(user, [frame]))[0]
        except RedisCommandError as error:
            await self._set_aside(user, frame, error)
            return POISONED

    async def _set_aside(self, user: UserKey, frame: DurableFrame, error: RedisCommandError) -> None:
        """Hand a poisoned frame over. It keeps its place until that is done, or it would be lost."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                await self._on_poison(user, frame, error)
            except Exception:  # noqa: BLE001  # the edge of this loop: reported and repeated
                metrics.LOOP_FAILURES.labels("apply").inc()
                _log.exception("poison_not_set_aside", message_id=frame.message_id, kind=frame.kind)
            else:
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
