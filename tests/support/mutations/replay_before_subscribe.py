"""A socket is replayed what it missed, and hears its user's channel only a moment later; gaps are not noticed."""

from __future__ import annotations

import asyncio

from duologue.delivery.attachment import Attachment
from duologue.delivery.hub import Hub, _Feed
from duologue.delivery.publication import Publication

_MOMENT_SECONDS = 0.3

_subscribe = Hub._subscribe
_forward = Attachment._forward


async def _subscribe_later(self: Hub, feed: _Feed) -> None:
    async def later() -> None:
        await asyncio.sleep(_MOMENT_SECONDS)
        await _subscribe(self, feed)

    self._tasks.spawn(later())


def _forward_all(self: Attachment, publication: Publication) -> bool:
    if publication.number > self.number:
        self.number = publication.number - 1
    return _forward(self, publication)


Hub._subscribe = _subscribe_later  # type: ignore[method-assign]
Attachment._forward = _forward_all  # type: ignore[method-assign]
