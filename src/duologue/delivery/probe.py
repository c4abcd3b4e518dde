"""Whether a subscription is alive: a word is published on a channel of its own, and must come back on it.

A connection that accepts and never delivers (half open, behind a proxy that swallows, at a Redis that has forgotten its
subscriptions) looks like one on which nothing happens. Only a word that is known to have been published tells.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from enum import Enum, auto

from duologue.delivery.names import probe_channel
from duologue.delivery.stream import UserStreams
from duologue.domain.errors import DuologueError


class Echo(Enum):
    """What became of a word."""

    HEARD = auto()
    """It came back; with it, all that was published before it and heard by the same connection."""
    UNHEARD = auto()
    """Redis has published it, and it did not come back in time."""
    AWAY = auto()
    """Redis did not publish it: whether the subscription is alive is not known."""


class Probe:
    """Speaks on `streams`' connection and listens on that of the subscription, whose owner passes on what it hears."""

    def __init__(self, streams: UserStreams, *, timeout_seconds: float) -> None:
        """Speak on `streams`; a word must be back within `timeout_seconds` of its publication."""
        self.channel = probe_channel()
        self._streams = streams
        self._timeout = timeout_seconds
        self._numbers = itertools.count(1)
        self._expected: dict[str, asyncio.Event] = {}

    async def ask(self, connected: asyncio.Event) -> Echo:
        """Publish a word and wait for it. `connected`: whether the subscription's connection is there to hear it."""
        word, back = str(next(self._numbers)), asyncio.Event()
        self._expected[word] = back
        try:
            await self._within_time(connected)
            await self._streams.say(self.channel, word)
            if connected.is_set():
                await self._within_time(back)
        except DuologueError:
            return Echo.AWAY
        finally:
            del self._expected[word]
        return Echo.HEARD if back.is_set() else Echo.UNHEARD

    def hear(self, word: bytes) -> None:
        """A word has come back."""
        expected = self._expected.get(word.decode(errors="replace"))
        if expected is not None:
            expected.set()

    async def _within_time(self, event: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await event.wait()
