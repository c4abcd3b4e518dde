"""The tries at the models for one reply, each streamed live, until one succeeds or none is left to be made."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from duologue.ai_consumer.live_text import LiveText, Pace
from duologue.ai_consumer.prompt import build_prompt
from duologue.llm.breaker import Permit
from duologue.llm.choice import Candidate, ModelChain, ModelChoice, Step
from duologue.llm.port import (
    Chunk,
    Finished,
    ModelEvent,
    ModelFailure,
    ModelRefused,
    ModelRequest,
    ModelTemporaryError,
    PromptTooLong,
)
from duologue.llm.retry import RetryPolicy
from duologue.observability.metrics import FIRST_TOKEN_SECONDS, MODEL_SWITCHES, MODEL_TRIES
from duologue.store.messages import StoredRequest
from duologue.store.prompts import PromptSource

_log = structlog.get_logger(__name__)

MAX_REPLY_CHARACTERS: Final = 150_000
"""A reply is cut there: in JSON a character takes 6 bytes at most, and a record on the log may have 1 MB."""

_LEAST_HISTORY_TOKENS: Final = 256
"""A history that does not fit is halved down to this, then left out: the estimate fails on keys and rare scripts."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What every reply asks, and how often."""

    models: ModelChain
    policy: RetryPolicy
    pace: Pace
    max_history_tokens: int
    draw: Callable[[], float] = random.random


class Tries:
    """The tries for one reply under one claim. `count` is the number of requests that were made.

    Args:
        asking: what every reply asks, and how often.
        request: the reply's.
        source: what the model is to be asked.
        live: takes what it answers.
        attempt: the one under which it begins.
        begin_again: prepares a further try, and returns the attempt under which it is made.
    """

    def __init__(
        self,
        asking: Asking,
        request: StoredRequest,
        source: PromptSource,
        live: LiveText,
        *,
        attempt: int,
        begin_again: Callable[[], Awaitable[int]],
    ) -> None:
        self.count = 0
        self._asking = asking
        self._request = request
        self._source = source
        self._live = live
        self._attempt = attempt
        self._begin_again = begin_again
        self._history_tokens = asking.max_history_tokens
        self._held_back = False
        self._choice = ModelChoice(
            asking.models.candidates(request.model or source.model),
            asking.policy,
            asker=request.reply_id,
            clock=asyncio.get_running_loop().time,
            draw=asking.draw,
        )

    @property
    def model(self) -> str:
        """The name of the model that is asked now, or was last."""
        return self._choice.candidate.name

    async def run(self) -> Finished:
        """Make tries until one succeeds, and return how it ended; its text is in the live text.

        Raises:
            ModelTemporaryError: no try is left; one made later may succeed.
            ModelRefused: no try will succeed.
        """
        while True:
            answered = await self._ask()
            if isinstance(answered, Finished):
                return answered
            if answered.action == "given_up":
                raise self._choice.failure
            await asyncio.sleep(answered.seconds)
            self._attempt = await self._begin_again()

    async def _ask(self) -> Finished | Step:
        """Make one try if its provider's breaker lets it through; return how it ended, or what follows."""
        candidate, permit = self._choice.candidate, self._choice.admit()
        if permit is None:
            step = self._turned(self._choice.held_back())
            if step.action != "retry" or not self._held_back:  # who waits asks again and again
                _log.warning("model_held_back", **self._about(candidate), **self._following(step))
            self._held_back = True
            return step
        self._held_back = False
        self.count += 1
        try:
            finished = await self._try(candidate, permit)
        except (ModelTemporaryError, ModelRefused) as failure:
            step = self._step_after(failure)
            self._report(candidate, failure, step)
            return step
        MODEL_TRIES.labels(candidate.provider.name, "ok").inc()
        return finished

    def _step_after(self, failure: ModelFailure) -> Step:
        if isinstance(failure, PromptTooLong) and self._history_tokens and self._source.history:
            tokens = self._history_tokens
            self._history_tokens = tokens // 2 if tokens > _LEAST_HISTORY_TOKENS else 0
            return Step("retry")
        return self._turned(self._choice.failed(failure))

    async def _try(self, candidate: Candidate, permit: Permit) -> Finished:
        """Make one try; whatever a model does beside its contract is a failed try as well."""
        loop = asyncio.get_running_loop()
        asked_at = first_at = loop.time()
        characters = 0
        with permit:
            async with _closing(candidate.provider.model.stream(self._model_request(candidate))) as events:
                async for event in events:
                    if isinstance(event, Chunk):
                        now = loop.time()
                        if not characters:
                            permit.answered()
                            first_at = now
                            FIRST_TOKEN_SECONDS.observe(now - asked_at)
                        characters += len(event.text)
                        if characters > MAX_REPLY_CHARACTERS:
                            return Finished("length", candidate.name)
                        self._live.write(event.text)
                        if pause := self._asking.pace.reading_pause_seconds(now - first_at):
                            await asyncio.sleep(pause)
                    elif characters:
                        return event
                    else:
                        raise ModelTemporaryError("the model's answer was empty", cause="empty")
            raise ModelTemporaryError("the model's answer broke off", cause="broken_stream")

    def _model_request(self, candidate: Candidate) -> ModelRequest:
        source = self._source
        return ModelRequest(
            messages=build_prompt(
                system_prompt=source.system_prompt,
                history=source.history,
                content=source.content,
                max_history_tokens=self._history_tokens,
            ),
            model=candidate.model,
            temperature=source.temperature,
            max_tokens=source.max_tokens,
            user=self._request.uid,
            correlation_id=self._request.correlation_id,
        )

    def _turned(self, step: Step) -> Step:
        """Begin with the whole history at another model: it may take more."""
        if step.action == "next_model":
            self._history_tokens = self._asking.max_history_tokens
            MODEL_SWITCHES.labels(step.reason).inc()
        return step

    def _report(self, candidate: Candidate, failure: ModelFailure, step: Step) -> None:
        MODEL_TRIES.labels(candidate.provider.name, failure.cause).inc()
        _log.warning(
            "model_try_failed",
            **self._about(candidate),
            try_number=self.count,
            cause=failure.cause,
            error=str(failure),
            **self._following(step),
        )

    def _following(self, step: Step) -> dict[str, object]:
        """Return what a line of the log tells of the next step."""
        if step.action == "given_up":
            return {"next": step.action}
        following: dict[str, object] = {"next": step.action, "in_seconds": round(step.seconds, 3)}
        if step.action == "next_model":
            following |= {"reason": step.reason, "to_model": self._choice.candidate.name}
        return following

    def _about(self, candidate: Candidate) -> dict[str, object]:
        return {
            "correlation_id": self._request.correlation_id,
            "message_id": self._request.message_id,
            "attempt": self._attempt,
            "provider": candidate.provider.name,
            "model": candidate.name,
        }


@asynccontextmanager
async def _closing(events: AsyncIterator[ModelEvent]) -> AsyncIterator[AsyncIterator[ModelEvent]]:
    """Close a stream that is left before its end, so that the model's request ends with it."""
    try:
        yield events
    finally:
        aclose = getattr(events, "aclose", None)
        if aclose is not None:
            await aclose()
