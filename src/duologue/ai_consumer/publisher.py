"""Putting the outcomes of replies on the log, in order for each user."""

from __future__ import annotations

import asyncio
from typing import Final
from weakref import WeakValueDictionary

from duologue.ai_consumer.completer import Completer
from duologue.ai_consumer.request import Request
from duologue.domain.ids import UserKey
from duologue.domain.records import RESPONSES_TOPIC, OutcomeRecord, ReplyFailed, encode
from duologue.log.dead_letters import DeadLetterBox
from duologue.log.port import LogProducer
from duologue.log.until_done import until_done

MAX_UNPUBLISHED: Final = 1000
"""Outcomes that wait for the log beside the replies that are written; from there on their slots wait with them."""


class Publisher:
    """Appends outcomes to `responses`; while the log is away they wait."""

    def __init__(self, producer: LogProducer, completer: Completer, box: DeadLetterBox) -> None:
        self._producer = producer
        self._completer = completer
        self._box = box
        self._waiting = 0
        self._locks: WeakValueDictionary[UserKey, asyncio.Lock] = WeakValueDictionary()

    @property
    def full(self) -> bool:
        """Whether so many outcomes wait that no further reply should be written before one has left."""
        return self._waiting >= MAX_UNPUBLISHED

    async def publish(self, request: Request, record: OutcomeRecord) -> None:
        """Append a stored outcome once its message's echo is applied; then the request's record is done.

        Outcomes of one user go out in the order of the calls, also when an append has to be repeated: a conversation's
        later reply never overtakes.
        """
        self._waiting += 1
        try:
            await self._publish(request, record)
        finally:
            self._waiting -= 1

    async def _publish(self, request: Request, record: OutcomeRecord) -> None:
        lock = self._locks.get(request.user)
        if lock is None:
            lock = self._locks[request.user] = asyncio.Lock()
        async with lock:
            if request.echo is not None:
                await request.echo
            await self._append(request, record)
        if isinstance(record, ReplyFailed):  # after the outcome: no trouble with that topic keeps it from its user
            await self._box.append(request.delivery.record, record.reason, record.cause)
        self._completer.mark_published(record.reply_id)
        request.delivery.done()

    async def _append(self, request: Request, record: OutcomeRecord) -> None:
        value, headers = encode(record), request.headers
        await until_done(
            lambda: self._producer.append(RESPONSES_TOPIC, record.user_id, value, headers), what="append_outcome"
        )
