"""Writing one reply: tries at the model, each streamed live, until there is an outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Self

from duologue.ai_consumer.live_text import LiveText, Reason
from duologue.ai_consumer.tries import Asking, Tries
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import Clock, wall_clock
from duologue.domain.ids import UserKey
from duologue.domain.records import Usage
from duologue.llm.port import Finished, ModelRefused, ModelTemporaryError
from duologue.log.until_done import until_done
from duologue.observability.metrics import FENCED, MODEL_TOKENS
from duologue.store.database import Database
from duologue.store.messages import StoredRequest
from duologue.store.outcomes import Completion, Outcome, ReplyError
from duologue.store.replies import Claimed, advance_attempt, read_claims

_PROMPT_TOKENS: Final = MODEL_TOKENS.labels("prompt")
_COMPLETION_TOKENS: Final = MODEL_TOKENS.labels("completion")


@dataclass(frozen=True, slots=True)
class Writing:
    """What every reply is written with."""

    asking: Asking
    streams: UserStreams
    database: Database
    clock: Clock = wall_clock


class _Fenced(Exception):
    """A later attempt holds the reply, or it is gone."""


class Reply:
    """One reply under one claim. A context: leaving it ends the live text.

    `attempt` is the one that it holds now.
    """

    def __init__(self, writing: Writing, request: StoredRequest, claim: Claimed) -> None:
        self.request = request
        self.attempt = claim.attempt
        self._writing = writing
        self._claim = claim
        self.began = writing.clock()
        self._interrupt: asyncio.Timeout | None = None
        self._fenced = False
        self._live = LiveText(
            writing.streams,
            writing.asking.pace,
            user=UserKey(request.tenant, request.user_id),
            message_id=request.message_id,
            conversation_id=request.conversation_id,
            still_held=self._still_held,
            on_fenced=self._on_fenced,
        )
        self._tries = Tries(
            writing.asking,
            request,
            claim.prompt,
            self._live,
            attempt=claim.attempt,
            begin_again=self._begin_again,
        )

    @property
    def tries(self) -> int:
        """Requests made to models."""
        return self._tries.count

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
        return self._ended("stopped", content=text, model=self._tries.model, finish_reason="stopped")

    def failed(self, error: ReplyError) -> Completion:
        """Return the completion of a reply that failed."""
        return self._ended("failed", error=error)

    async def _until_outcome(self) -> Completion:
        try:
            finished = await self._tries.run()
        except (ModelTemporaryError, ModelRefused) as error:
            temporary = isinstance(error, ModelTemporaryError)
            return self.failed(ReplyError(error.cause, str(error), temporary=temporary))
        return self._complete(finished)

    async def _begin_again(self) -> int:
        """Prepare a further try, at whatever model, and return its attempt: the same while nothing was shown (rule Try
        and attempt)."""
        if not self._live.shown:
            self._live.discard()
            return self.attempt
        database, now = self._writing.database, self._writing.clock()
        attempt = await until_done(
            lambda: database.write(advance_attempt, self.request.reply_id, self.attempt, now), what="advance_attempt"
        )
        if attempt is None:
            raise _Fenced
        self.attempt = attempt
        self._live.open(attempt, "retry")
        return attempt

    def _complete(self, finished: Finished) -> Completion:
        if finished.usage is not None:
            _PROMPT_TOKENS.inc(finished.usage.prompt_tokens)
            _COMPLETION_TOKENS.inc(finished.usage.completion_tokens)
        return self._ended(
            "complete",
            content=self._live.text,
            model=finished.model,
            finish_reason=finished.finish_reason,
            usage=finished.usage,
        )

    def _ended(
        self,
        state: Outcome,
        *,
        content: str = "",
        model: str | None = None,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        error: ReplyError | None = None,
    ) -> Completion:
        now = self._writing.clock()
        return Completion(
            reply_id=self.request.reply_id,
            attempt=self.attempt,
            state=state,
            completed_at=now,
            content=content,
            model=model,
            finish_reason=finish_reason,
            usage=usage,
            error=error,
            processing_time_ms=now - self.began,
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
        """Once: a model's request may take a while to end, and what is ending cannot be told to end again."""
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            interrupt.reschedule(asyncio.get_running_loop().time())
