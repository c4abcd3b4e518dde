"""Telling users where their waiting messages stand."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any, Final

from duologue.ai_consumer.dispatcher import Dispatcher
from duologue.ai_consumer.request import Request
from duologue.delivery.stream import UserStreams
from duologue.protocol.frames import Queued, encode

SWEEP_SECONDS: Final = 0.25
"""A wait that is shorter than this or twice this is not worth a frame."""
REPEAT_SECONDS: Final = 2.0
LONG_QUEUE: Final = 2000
"""From here on a sweep, which looks at everything that waits, takes milliseconds, and there is one in 2 s only."""
MAX_NOTICES: Final = 500
"""In one sweep, of the first in the queue: with thousands waiting, telling all of them would slow all of them."""

_FIRST_GUESS_MS: Final = 2000.0
_WEIGHT: Final = 0.1


class QueueNotices:
    """Publishes `queued`: soon after a message began to wait, then at most every 2 s while its place changes."""

    def __init__(self, dispatcher: Dispatcher[Request], streams: UserStreams, *, slots: int) -> None:
        self._dispatcher = dispatcher
        self._streams = streams
        self._slots = slots
        self._reply_ms = _FIRST_GUESS_MS

    def reply_took(self, milliseconds: int) -> None:
        """Learn from a reply how long replies take: a moving average."""
        self._reply_ms += _WEIGHT * (milliseconds - self._reply_ms)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS if self._dispatcher.waiting < LONG_QUEUE else REPEAT_SECONDS)
            if self._dispatcher.waiting:
                self.sweep(asyncio.get_running_loop().time())

    def sweep(self, now: float) -> None:
        """Tell those who waited at the last sweep already and of whom something is to be told."""
        for request, place in islice(self._dispatcher.places(), MAX_NOTICES):
            if not request.noticed_at:  # seen for the first time; if it still waits at the next sweep, it is told
                request.noticed_at = now - REPEAT_SECONDS
            elif now - request.noticed_at >= REPEAT_SECONDS and place != request.noticed_place:
                request.noticed_at, request.noticed_place = now, place
                self._tell(request, place)

    def _tell(self, request: Request, place: int) -> None:
        eta_ms = int(place * self._reply_ms / self._slots)
        frame = encode(Queued(message_id=request.message_id, position=place, eta_ms=eta_ms))
        self._streams.publish(request.user, frame).add_done_callback(_ignore)


def _ignore(future: asyncio.Future[Any]) -> None:
    """A notice is best effort: that Redis is away is reported elsewhere."""
    if not future.cancelled():
        future.exception()
