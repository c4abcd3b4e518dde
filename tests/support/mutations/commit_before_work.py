"""A record is done as soon as it is read: a crash forgets it."""

from __future__ import annotations

from duologue.ai_consumer.request import Request
from duologue.ai_consumer.worker import AiConsumer
from duologue.log.committer import Delivery

_read = AiConsumer._read


def _done_at_once(self: AiConsumer, delivery: Delivery) -> Request | None:
    request = _read(self, delivery)
    delivery.done()
    return request


AiConsumer._read = _done_at_once  # type: ignore[method-assign]
