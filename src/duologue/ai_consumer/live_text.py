"""A reply's text on its way to the user's devices while it is written.

Pieces leave at once at first, then in the rhythm of `Pace`, with one piece in flight: what comes meanwhile joins the
next. The first does not wait for the text to be opened: calls take effect in their order, and it is refused if the
opening is. Nothing here can fail a reply. When Redis refuses a piece or is away, the text is kept and one task asks
the store whether the attempt still holds, and opens the text anew with a snapshot (rule Live text).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import structlog

from duologue.delivery.stream import UserStreams
from duologue.domain.errors import DuologueError
from duologue.domain.ids import UserKey
from duologue.engines.redis import RedisCommandError
from duologue.observability.metrics import DELTAS
from duologue.protocol.frames import Delta, encode

_log = structlog.get_logger(__name__)

Reason = Literal["retry", "takeover", "regenerate"]

BUSY_REPLIES: Final = 100
"""Replies at once up to which deltas keep their interval; from there to three times as many it grows to double."""

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0

_SHORT_REPLY_SECONDS: Final = 1.0


class Pace:
    """When the next delta leaves: after an interval, or earlier with enough text.

    Load is the number of replies running in this process. A delta costs about the same whatever its length, so under
    load fewer and longer ones are sent.
    """

    def __init__(self, *, interval_ms: int, max_bytes: int, running: Callable[[], int]) -> None:
        self._interval_seconds = interval_ms / 1000
        self._running = running
        self.max_bytes = max_bytes

    def interval_seconds(self) -> float:
        """Return the least time between two deltas of one reply, now."""
        excess = (self._running() - BUSY_REPLIES) / (2 * BUSY_REPLIES)
        return self._interval_seconds * (1 + min(max(excess, 0.0), 1.0))

    def reading_pause_seconds(self, streaming_seconds: float) -> float:
        """Return how long to leave a model's pieces where they arrive before looking again.

        Looking costs more than reading: under load, pieces of long replies are better read as many as make a delta.
        Short replies are read at once, as their end frees a place for the next.

        Args:
            streaming_seconds: since the reply's first piece.
        """
        if streaming_seconds < _SHORT_REPLY_SECONDS or self._running() <= BUSY_REPLIES:
            return 0.0
        return self.interval_seconds()


class LiveText:
    """The live text of one reply, over all its attempts. Close it: it may own a timer and a task.

    `still_held(attempt)` asks the store (it may raise Retryable); `on_fenced` hears that the answer was no.
    """

    __slots__ = (
        "_attempt", "_closed", "_conversation_id", "_due", "_flight", "_loop", "_message_id", "_muted", "_on_fenced",
        "_opening", "_pace", "_parts", "_pending", "_pending_bytes", "_recovery", "_seq", "_still_held", "_streams",
        "_timer", "_user", "shown",
    )  # fmt: skip

    def __init__(
        self,
        streams: UserStreams,
        pace: Pace,
        *,
        user: UserKey,
        message_id: str,
        conversation_id: str,
        still_held: Callable[[int], Awaitable[bool]],
        on_fenced: Callable[[], None],
    ) -> None:
        self._streams = streams
        self._pace = pace
        self._user = user
        self._message_id = message_id
        self._conversation_id = conversation_id
        self._still_held = still_held
        self._on_fenced = on_fenced
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._opening: asyncio.Future[Any] | None = None
        self._flight: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._begin(0)

    def open(self, attempt: int, reason: Reason | None) -> None:
        """Start anew under a claimed attempt; devices forget what they show of earlier ones."""
        self._begin(attempt)
        if self._recovery is None:
            self._opening = self._streams.open_live(
                self._user, self._message_id, self._conversation_id, attempt, reason
            )
            self._opening.add_done_callback(self._opened)

    def write(self, text: str) -> None:
        """Add text. It leaves now or a little later."""
        self._parts.append(text)
        self._pending.append(text)
        self._pending_bytes += len(text.encode())
        if self._flight is None and self._recovery is None:
            self._send_when_due()

    def discard(self) -> None:
        """Forget what was written, none of which was shown: the same attempt begins again."""
        self._parts.clear()
        self._pending.clear()
        self._pending_bytes = 0

    @property
    def text(self) -> str:
        """All that was written under this attempt."""
        return "".join(self._parts)

    async def aclose(self) -> None:
        """Send nothing more. That nobody is typing is told with the outcome."""
        self._closed = True
        self._cancel_timer()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])

    def _begin(self, attempt: int) -> None:
        """`shown` tells that a piece of this attempt has left, whether or not it arrived."""
        self._attempt = attempt
        self._opening = self._flight = None  # what becomes of an earlier attempt's calls no longer matters
        self._parts: list[str] = []
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._seq = 0
        self._due = 0.0
        self._muted = False
        self.shown = False
        self._cancel_timer()

    def _send_when_due(self) -> None:
        if self._closed or self._muted or not self._pending:
            return
        if self._pending_bytes >= self._pace.max_bytes or self._loop.time() >= self._due:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._flight is None and self._recovery is None:
            self._send_when_due()

    def _send(self) -> None:
        self._cancel_timer()
        text = self._take_pending()
        seq = self._seq
        frame = encode(
            Delta(
                message_id=self._message_id,
                conversation_id=self._conversation_id,
                attempt=self._attempt,
                seq=seq,
                content=text,
            )
        )
        self._due = self._loop.time() + self._pace.interval_seconds()
        DELTAS.inc()
        self._follow(self._streams.append_live(self._user, self._message_id, self._attempt, seq, seq, text, frame))

    def _take_pending(self) -> str:
        text = "".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._seq += 1
        self.shown = True
        return text

    def _follow(self, future: asyncio.Future[Any]) -> None:
        self._flight = future
        future.add_done_callback(self._settled)

    def _opened(self, future: asyncio.Future[Any]) -> None:
        taken = self._was_taken(future)
        if future is self._opening:
            self._opening = None
            if not taken:
                self._start_recovery()

    def _settled(self, future: asyncio.Future[Any]) -> None:
        taken = self._was_taken(future)
        if future is not self._flight:
            return
        self._flight = None
        if not taken:
            self._start_recovery()
        elif self._recovery is None:
            self._send_when_due()

    def _was_taken(self, future: asyncio.Future[Any]) -> bool:
        """Tell whether Redis took a call; look at its failure in any case, so that it is not reported as forgotten."""
        if future.cancelled():
            return False
        failure = future.exception()
        if isinstance(failure, RedisCommandError):
            _log.error("delta_failed", message_id=self._message_id, error=str(failure))
        return failure is None and bool(future.result())

    def _start_recovery(self) -> None:
        if self._recovery is None and not self._closed:
            self._recovery = self._loop.create_task(self._recover(), name=f"live-text-{self._message_id}")

    async def _recover(self) -> None:
        """Find out whether the attempt still holds; if so bring Redis up to date with all that was written."""
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not await self._reopened():
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        finally:
            self._recovery = None
        self._send_when_due()

    async def _reopened(self) -> bool:
        attempt = self._attempt
        try:
            held = await self._still_held(attempt)
            if held and attempt == self._attempt:
                await self._send_snapshot()
        except DuologueError as error:
            _log.warning("live_text_waits", message_id=self._message_id, error=str(error))
            return False
        if attempt != self._attempt:  # a further one was opened meanwhile: it is this task that tells Redis
            return False
        if not held and not self._closed:
            self._on_fenced()
        return True

    async def _send_snapshot(self) -> None:
        if self._pending:
            self._take_pending()
        self._due = self._loop.time() + self._pace.interval_seconds()
        opened = await self._streams.reopen_live(
            self._user, self._message_id, self._conversation_id, self._attempt, self._seq, self.text
        )
        self._muted = not opened  # Redis knows an end or a later attempt that the store does not: say no more

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
