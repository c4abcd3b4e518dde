"""Telling users where their waiting messages stand."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from duologue.ai_consumer.dispatcher import Dispatcher, Line, Waiting
from duologue.ai_consumer.request import Request
from duologue.ai_consumer.service_times import ServiceTimes
from duologue.delivery.stream import UserStreams
from duologue.domain.tasks import ignore_end
from duologue.protocol.frames import Queued, encode

SWEEP_SECONDS: Final = 0.25
"""A wait that is shorter than this, or than twice this, is not worth a frame."""
REPEAT_SECONDS: Final = 2.0
REFRESH_SECONDS: Final = 10.0
"""After which a place that has not changed is told once more: a device may have come that has not heard of it."""
SWEPT_PER_SECOND: Final = 1000
"""A sweep looks at everything that waits, at 4 µs each: the more waits, the rarer it is, down to one in 2 s."""
NOTICES_PER_SECOND: Final = 250
"""With thousands waiting, telling all of them at once would slow all of them; they are told one after the other."""
SLICE: Final = 250
"""How many places are worked out before the event loop has its turn."""


class Place(NamedTuple):
    """Where a request stands: its place in the queue, from 1, and when it is thought to begin."""

    request: Request
    position: int
    eta_ms: int


class QueueNotices:
    """Publishes `queued`: soon after a message began to wait, then at most every 2 s while its place changes."""

    def __init__(
        self,
        dispatcher: Dispatcher[Request],
        streams: UserStreams,
        times: ServiceTimes,
        *,
        slots: int,
        slots_per_user: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._streams = streams
        self._times = times
        self._slots = slots
        self._slots_per_user = min(slots, slots_per_user)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            pause = min(max(SWEEP_SECONDS, self._dispatcher.waiting / SWEPT_PER_SECOND), REPEAT_SECONDS)
            await asyncio.sleep(pause)
            if self._dispatcher.waiting:
                await self.sweep(asyncio.get_running_loop().time(), int(NOTICES_PER_SECOND * pause))

    async def sweep(self, now: float, most: int = NOTICES_PER_SECOND) -> None:
        """Tell those who waited at the last sweep already and of whom something is to be told; `most` of them.

        If there are more, those who have heard nothing for the longest time come first, and before them those who have
        heard nothing yet.
        """
        due = [place async for place in self.places(now) if _is_due(place, now)]
        if len(due) > most:
            due = heapq.nsmallest(most, due, key=_told_at)
        for place in due:
            place.request.noticed_at, place.request.noticed_place = now, place.position
            self._tell(place)

    async def places(self, now: float) -> AsyncIterator[Place]:
        """Yield the place of each waiting request, in the order of places. An estimate: later ones of others may pass.

        Users take turns, so a user's request with k of the same user before it comes after k of every user who has so
        many, and after the next of those whose turn is before that user's.
        """
        lines = await self._lines()
        mean = self._times.mean(now)
        position, work, number = 0, mean, 0  # the first begins when a slot is free again
        while lines:
            for line in lines:
                position += 1
                waiting = line.waiting[number]
                eta = max(work / self._slots, self._for_conversation(waiting, now), self._for_user(line, number, mean))
                yield Place(waiting.request, position, round(eta * 1000))
                work += self._times.expected(waiting.request.model, now)
                if position % SLICE == 0:
                    await asyncio.sleep(0)
            number += 1
            lines = [line for line in lines if len(line.waiting) > number]

    async def _lines(self) -> list[Line[Request]]:
        lines, count = [], 0
        for line in self._dispatcher.lines():
            lines.append(line)
            count += len(line.waiting)
            if count >= SLICE:
                count = 0
                await asyncio.sleep(0)
        return lines

    def _for_conversation(self, waiting: Waiting[Request], now: float) -> float:
        """Return how long its own conversation alone lets it wait: replies in it come one after the other."""
        ahead = 0.0 if waiting.running is None else self._times.remaining(waiting.running, now)
        return ahead + waiting.ahead * self._times.expected(waiting.request.model, now) if waiting.ahead else ahead

    def _for_user(self, line: Line[Request], number: int, mean: float) -> float:
        """Return how long the limit of its user's replies at once alone lets it wait."""
        before = line.running + number + 1 - self._slots_per_user
        return max(0, before) * mean / self._slots_per_user

    def _tell(self, place: Place) -> None:
        request = place.request
        frame = encode(Queued(message_id=request.message_id, position=place.position, eta_ms=place.eta_ms))
        self._streams.publish(request.user, frame).add_done_callback(ignore_end)


def _is_due(place: Place, now: float) -> bool:
    request = place.request
    if not request.noticed_at:
        if not request.seen_at:  # if it still waits at the next sweep, it is told
            request.seen_at = now
        return request.seen_at < now
    since = now - request.noticed_at
    changed = place.position != request.noticed_place
    return since >= REPEAT_SECONDS and (changed or since >= REFRESH_SECONDS)


def _told_at(place: Place) -> float:
    return place.request.noticed_at
