"""Replies under way: which piece leaves when, and where one breaks off."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from duologue.bench.mock_llm.config import MockConfig
from duologue.bench.mock_llm.draws import Draws, Fault
from duologue.bench.mock_llm.request import ChatRequest
from duologue.bench.mock_llm.stats import MockStats
from duologue.bench.mock_llm.wire import WORD, stream, whole_answer

_TICK_SECONDS: Final = 0.002


class Peer(Protocol):
    """Where a reply goes."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Close once everything written has left."""
        ...

    def reply_ended(self) -> None:
        """The reply has sent its last."""
        ...


class Ticker:
    """Calls back at times rounded up to 2 ms: one timer for all that is due together, where each having its own would
    cost as much as its piece."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call at a time of the loop's clock."""
        slot = math.ceil(when / _TICK_SECONDS)
        callbacks = self._slots.get(slot)
        if callbacks is None:
            callbacks = self._slots[slot] = []
            self._loop.call_at(slot * _TICK_SECONDS, self._fire, slot)
        callbacks.append(callback)

    def _fire(self, slot: int) -> None:
        for callback in self._slots.pop(slot):
            callback()


class Replies:
    """What all replies share: the clock, the draws, the counts, and how they are answered from now on."""

    def __init__(self, config: MockConfig, draws: Draws) -> None:
        self.config = config
        self.draws = draws
        self.stats = MockStats()
        self.loop = asyncio.get_running_loop()
        self.ticker = Ticker()

    def reply(self, peer: Peer, asked: ChatRequest, fault: Fault, said: str) -> Reply:
        """Return the reply to a request, not yet begun; `said` is what it echoes."""
        return (StreamedReply if asked.streams else WholeReply)(self, peer, asked, fault, said)


class Reply(ABC):
    """One reply. Times are counted from its begin, so that lateness does not add up."""

    def __init__(self, replies: Replies, peer: Peer, asked: ChatRequest, fault: Fault, said: str) -> None:
        self._replies = replies
        self._peer = peer
        self._asked = asked
        self._fault = fault
        self._said = said
        config, draws = replies.config, replies.draws
        self._stamps = config.stamp
        self._tokens = draws.tokens(config)
        self._wait = draws.first_token_seconds(config)
        self._tps = draws.tokens_per_second(config)
        self._loop = replies.loop
        self._first = self._loop.time() + self._wait
        self._abandoned = False
        replies.stats.in_flight += 1

    @abstractmethod
    def begin(self) -> None:
        """Send what is due at once; the rest follows by itself."""

    def abandon(self) -> None:
        """The client is gone."""
        self._abandoned = True
        self._replies.stats.in_flight -= 1
        self._replies.stats.abandoned += 1

    def _text(self, index: int) -> str:
        text = f"@{time.time():.6f} " if self._stamps else WORD
        return f"{self._said} {text}" if index == 0 and self._said else text

    def _complete(self) -> None:
        stats = self._replies.stats
        stats.completed += 1
        stats.in_flight -= 1
        self._peer.reply_ended()

    def _break(self) -> None:
        if self._fault == "silence":  # it stays in flight until its client gives up
            self._replies.stats.silent += 1
            return
        self._replies.stats.cut += 1
        self._replies.stats.in_flight -= 1
        self._peer.close()
        self._peer.reply_ended()


class StreamedReply(Reply):
    """A piece per token, each at its time. A fault strikes after half of them."""

    _sent = 0

    def begin(self) -> None:
        if self._wait:
            self._replies.ticker.call_at(self._first, self._step)
        else:
            self._step()

    def _step(self) -> None:
        """Send every piece that is due."""
        if self._abandoned:
            return
        last = max(1, self._tokens // 2) if self._fault else self._tokens
        due = last
        if self._tps:
            due = min(last, int((self._loop.time() - self._first) * self._tps + 1e-6) + 1)
        is_whole = due == last and not self._fault
        start, self._sent = self._sent, due
        self._replies.stats.pieces += due - start
        self._peer.write(self._encoded(start, due, is_whole))
        if is_whole:
            self._complete()
        elif due == last:
            self._break()
        else:
            self._replies.ticker.call_at(self._first + due / self._tps, self._step)

    def _encoded(self, start: int, end: int, is_whole: bool) -> bytes:
        encoding = stream(self._asked.model, self._asked.has_usage)
        tokens = self._tokens if is_whole else 0
        if not self._stamps and not self._said:
            return encoding.plain(end - start, start == 0, tokens)
        return encoding.of([self._text(index) for index in range(start, end)], start == 0, tokens)


class WholeReply(Reply):
    """All tokens in one response, when a stream would have sent its last. A fault strikes after half of its bytes."""

    def begin(self) -> None:
        takes = self._wait + ((self._tokens - 1) / self._tps if self._tps else 0.0)
        if takes:
            self._replies.ticker.call_at(self._first - self._wait + takes, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if self._abandoned:
            return
        text = "".join(self._text(index) for index in range(self._tokens))
        data = whole_answer(self._asked.model, text, self._tokens)
        if self._fault:
            self._peer.write(data[: len(data) // 2])
            self._break()
            return
        self._replies.stats.pieces += self._tokens
        self._peer.write(data)
        self._complete()
