"""Writing one reply: tries at the model, each streamed live, until there is an outcome."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import structlog

from duologue.ai_consumer.live_text import LiveText, Pace, Reason
from duologue.ai_consumer.prompt import build_prompt
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.ids import UserKey
from duologue.llm.port import (
    Chunk,
    Finished,
    LanguageModel,
    ModelEvent,
    ModelRefused,
    ModelRequest,
    ModelTemporaryError,
    PromptTooLong,
)
from duologue.llm.retry import RetryPolicy
from duologue.log.until_done import until_done
from duologue.observability.metrics import FENCED, FIRST_TOKEN_SECONDS, MODEL_TOKENS, MODEL_TRIES
from duologue.store.database import Database
from duologue.store.messages import StoredRequest
from duologue.store.outcomes import Completion, ReplyError
from duologue.store.replies import Claimed, advance_attempt, read_claims

_log = structlog.get_logger(__name__)

MAX_REPLY_CHARACTERS: Final = 150_000
"""A reply is cut there: in JSON a character takes 6 bytes at most, and a record on the log may have 1 MB."""


_TRIES_OK: Final = MODEL_TRIES.labels("ok")
_PROMPT_TOKENS: Final = MODEL_TOKENS.labels("prompt")
_COMPLETION_TOKENS: Final = MODEL_TOKENS.labels("completion")


@dataclass(frozen=True, slots=True)
class Writing:
    """What every reply is written with."""

    model: LanguageModel
    streams: UserStreams
    database: Database
    policy: RetryPolicy
    pace: Pace
    max_history_tokens: int
    clock: Clock = wall_clock
    draw: Callable[[], float] = random.random


_LEAST_HISTORY_TOKENS: Final = 256
"""A history that does not fit is halved down to this, then left out: the estimate fails on keys and rare scripts."""


class _Fenced(Exception):
    """A later attempt holds the reply, or it is gone."""


class Reply:
    """One reply under one claim. A context: leaving it ends the live text.

    `attempt` is the one that it holds now; `tries` counts those at the model.
    """

    def __init__(self, writing: Writing, request: StoredRequest, claim: Claimed) -> None:
        self.request = request
        self.attempt = claim.attempt
        self.tries = 0
        self._writing = writing
        self._claim = claim
        self.began = writing.clock()
        self._interrupt: asyncio.Timeout | None = None
        self._fenced = False
        self._live = LiveText(
            writing.streams,
            writing.pace,
            user=UserKey(request.tenant, request.user_id),
            message_id=request.message_id,
            conversation_id=request.conversation_id,
            still_held=self._still_held,
            on_fenced=self._on_fenced,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._live.aclose()

    async def run(self) -> Completion | None:
        """Write the reply.

        Returns:
            How it ended, also if it was stopped; None if it was fenced: somebody else's attempt holds, and this one has
            nothing more to say.
        """
        self._live.open(self.attempt, self._first_reason())
        try:
            async with asyncio.timeout(None) as interrupt:
                self._interrupt = interrupt
                return await self._until_outcome()
        except TimeoutError:
            if not interrupt.expired():
                raise
            if not self._fenced:
                return self.stopped(self._live.text)
        except _Fenced:
            pass
        finally:
            self._interrupt = None
        FENCED.inc()
        return None

    def stop(self) -> None:
        """End the model's request and the reply with what is written. Without effect once there is an outcome."""
        self._break_off()

    async def verify(self) -> None:
        """Break off if the attempt no longer holds in the store.

        Raises:
            StoreUnavailable: the store cannot tell.
        """
        attempt = self.attempt
        if not await self._still_held(attempt) and attempt == self.attempt:
            self._on_fenced()

    def stopped(self, text: str) -> Completion:
        """Return the completion of a reply that was stopped when this was written."""
        now = self._writing.clock()
        return Completion(
            reply_id=self.request.reply_id,
            attempt=self.attempt,
            state="stopped",
            completed_at=now,
            content=text,
            model=self.request.model or self._claim.prompt.model or self._writing.model.name,
            finish_reason="stopped",
            processing_time_ms=now - self.began,
        )

    def failed(self, error: ReplyError) -> Completion:
        """Return the completion of a reply that failed."""
        now = self._writing.clock()
        return Completion(
            reply_id=self.request.reply_id,
            attempt=self.attempt,
            state="failed",
            completed_at=now,
            error=error,
            processing_time_ms=now - self.began,
        )

    async def _until_outcome(self) -> Completion:
        loop = asyncio.get_running_loop()
        first_try_at = loop.time()
        history_tokens = self._writing.max_history_tokens
        while True:
            self.tries += 1
            try:
                finished = await self._try(self._model_request(history_tokens))
            except PromptTooLong as error:
                self._report(error.cause, error)
                if not history_tokens or not self._claim.prompt.history:
                    return self.failed(ReplyError(error.cause, str(error), temporary=False))
                history_tokens = history_tokens // 2 if history_tokens > _LEAST_HISTORY_TOKENS else 0
                continue
            except ModelRefused as error:
                self._report(error.cause, error)
                return self.failed(ReplyError(error.cause, str(error), temporary=False))
            except ModelTemporaryError as error:
                self._report(error.cause, error)
                elapsed = loop.time() - first_try_at
                delay = self._writing.policy.next_delay(self.tries, elapsed, error, self._writing.draw)
                if delay is None:
                    return self.failed(ReplyError(error.cause, str(error), temporary=True))
            else:
                return self._complete(finished)
            await asyncio.sleep(delay)
            await self._begin_again()

    async def _try(self, prompt: ModelRequest) -> Finished:
        """Make one try; whatever a model does beside its contract is a failed try as well."""
        loop = asyncio.get_running_loop()
        asked_at = first_at = loop.time()
        characters = 0
        async with _closing(self._writing.model.stream(prompt)) as events:
            async for event in events:
                if isinstance(event, Chunk):
                    now = loop.time()
                    if not characters:
                        first_at = now
                        FIRST_TOKEN_SECONDS.observe(now - asked_at)
                    characters += len(event.text)
                    if characters > MAX_REPLY_CHARACTERS:
                        return Finished("length", prompt.model or self._writing.model.name)
                    self._live.write(event.text)
                    if pause := self._writing.pace.reading_pause_seconds(now - first_at):
                        await asyncio.sleep(pause)
                elif characters:
                    return event
                else:
                    raise ModelTemporaryError("the model's answer was empty", cause="empty")
        raise ModelTemporaryError("the model's answer broke off", cause="broken_stream")

    async def _begin_again(self) -> None:
        """Prepare a further try: under the same attempt while nothing was shown (rule Try and attempt)."""
        if not self._live.shown:
            self._live.discard()
            return
        database, now = self._writing.database, self._writing.clock()
        attempt = await until_done(
            lambda: database.write(advance_attempt, self.request.reply_id, self.attempt, now), what="advance_attempt"
        )
        if attempt is None:
            raise _Fenced
        self.attempt = attempt
        self._live.open(attempt, "retry")

    def _complete(self, finished: Finished) -> Completion:
        _TRIES_OK.inc()
        if finished.usage is not None:
            _PROMPT_TOKENS.inc(finished.usage.prompt_tokens)
            _COMPLETION_TOKENS.inc(finished.usage.completion_tokens)
        now = self._writing.clock()
        return Completion(
            reply_id=self.request.reply_id,
            attempt=self.attempt,
            state="complete",
            completed_at=now,
            content=self._live.text,
            model=finished.model,
            finish_reason=finished.finish_reason,
            usage=finished.usage,
            processing_time_ms=now - self.began,
        )

    def _report(self, cause: str, error: Exception) -> None:
        MODEL_TRIES.labels(cause).inc()
        _log.warning(
            "model_try_failed",
            correlation_id=self.request.correlation_id,
            message_id=self.request.message_id,
            attempt=self.attempt,
            try_number=self.tries,
            cause=cause,
            error=str(error),
        )

    def _model_request(self, history_tokens: int) -> ModelRequest:
        source = self._claim.prompt
        return ModelRequest(
            messages=build_prompt(
                system_prompt=source.system_prompt,
                history=source.history,
                content=source.content,
                max_history_tokens=history_tokens,
            ),
            model=self.request.model or source.model,
            temperature=source.temperature,
            max_tokens=source.max_tokens,
            user=self.request.uid,
            correlation_id=self.request.correlation_id,
        )

    def _first_reason(self) -> Reason | None:
        if self._claim.taken_over:
            return "takeover"
        return "regenerate" if self.request.generation > 1 else None

    async def _still_held(self, attempt: int) -> bool:
        claims = await self._writing.database.read(read_claims, [self.request.reply_id])
        return claims.get(self.request.reply_id) == (attempt, "generating")

    def _on_fenced(self) -> None:
        """The live text found that the attempt no longer holds. Without effect once there is an outcome."""
        self._fenced = True
        self._break_off()

    def _break_off(self) -> None:
        if self._interrupt is not None:
            self._interrupt.reschedule(asyncio.get_running_loop().time())


@asynccontextmanager
async def _closing(events: AsyncIterator[ModelEvent]) -> AsyncIterator[AsyncIterator[ModelEvent]]:
    """Close a stream that is left before its end, so that the model's request ends with it."""
    try:
        yield events
    finally:
        aclose = getattr(events, "aclose", None)
        if aclose is not None:
            await aclose()
