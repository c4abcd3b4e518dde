"""Finishing replies whose partition has gone to another worker (rule Owner)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from duologue.ai_consumer.request import Request
from duologue.domain.clock import Clock
from duologue.domain.errors import StoreUnavailable
from duologue.store.database import Database
from duologue.store.replies import mark_leaving

_log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.5


class Leaving:
    """Keeps the next owner from replies that run here, for `seconds`, and sees whether it has stopped one."""

    def __init__(self, database: Database, clock: Clock, *, seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._seconds = seconds

    async def mark(self, running: Sequence[Request]) -> None:
        """Tell the store that these are being finished; what is not, when the time is over, is broken off."""
        for request in running:
            if request.task is not None:
                asyncio.get_running_loop().call_later(self._seconds, request.task.cancel)
        attempts = {request.reply_id: request.reply.attempt for request in running if request.reply is not None}
        await self._database.write(mark_leaving, attempts, int(self._seconds * 1000), self._clock())

    async def watch(self, running: Sequence[Request]) -> None:
        """Look at them until they have ended. Stops are read by the next owner, which cannot reach a model's request
        here: it takes the reply over, and a model that says nothing for a while would not let that be noticed."""
        while running := [request for request in running if request.reply is not None]:
            await asyncio.sleep(_LOOK_SECONDS)
            for request in running:
                try:
                    if request.reply is not None:
                        await request.reply.verify()
                except StoreUnavailable as error:
                    _log.warning("leaving_not_verified", message_id=request.message_id, error=str(error))
