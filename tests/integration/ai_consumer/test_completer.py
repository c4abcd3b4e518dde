"""Storing how replies end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar

import pytest
from sqlalchemy import Connection
from tests.support.pipeline import Pipeline, Plug, PluggedDatabase

from duologue.ai_consumer.completer import Completer
from duologue.ai_consumer.outcomes import outcome_record
from duologue.domain.clock import wall_clock
from duologue.domain.errors import StoreUnavailable
from duologue.domain.records import Usage
from duologue.store.database import Database, StoreRefused
from duologue.store.messages import Incoming, StoredRequest
from duologue.store.outcomes import Completion, ReplyError, outcome
from duologue.store.replies import store_and_claim

P = ParamSpec("P")
T = TypeVar("T")


class LossyDatabase(PluggedDatabase):
    """Loses the answer to the first completion, which has taken place."""

    lost = False

    async def autocommit(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = await super().autocommit(query, *args, **kwargs)
        if not self.lost:
            self.lost = True
            raise StoreUnavailable("the answer was lost")
        return result


@asynccontextmanager
async def running(database: Database) -> AsyncIterator[Completer]:
    completer = Completer(database, wall_clock)
    task = asyncio.create_task(completer.run())
    try:
        yield completer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def claimed(pipeline: Pipeline) -> StoredRequest:
    """Return a request whose reply is claimed under attempt 1."""
    message = pipeline.message(await pipeline.conversation(), "hello")
    batch = [Incoming(message, "incoming_messages", 0, 1)]
    (stored,), _ = await pipeline.database.write(store_and_claim, batch, {0}, "me", wall_clock())
    assert isinstance(stored, StoredRequest)
    return stored


def done(request: StoredRequest, attempt: int = 1, content: str = "an answer") -> Completion:
    return Completion(
        reply_id=request.reply_id,
        attempt=attempt,
        state="complete",
        completed_at=wall_clock(),
        content=content,
        model="scripted",
        finish_reason="length",
        usage=Usage(1, 2, 3),
        processing_time_ms=5,
    )


async def test_completion_whose_attempt_holds_is_stored(pipeline: Pipeline) -> None:
    request = await claimed(pipeline)
    async with running(pipeline.database) as completer:
        assert await completer.complete(done(request))
    assert await pipeline.replies() == {request.reply_id: (1, "complete")}


async def test_completion_of_an_earlier_attempt_is_dropped(pipeline: Pipeline) -> None:
    request = await claimed(pipeline)
    async with running(pipeline.database) as completer:
        assert not await completer.complete(done(request, attempt=0))
    assert await pipeline.replies() == {request.reply_id: (1, "generating")}


async def test_completion_whose_answer_was_lost_counts_as_stored_when_repeated(pipeline: Pipeline) -> None:
    request = await claimed(pipeline)
    async with running(LossyDatabase(pipeline.database, Plug())) as completer:
        assert await completer.complete(done(request))


async def test_completion_that_the_store_refuses_spares_the_others_of_its_batch(pipeline: Pipeline) -> None:
    good, bad = await claimed(pipeline), await claimed(pipeline)
    async with running(pipeline.database) as completer:
        results = await asyncio.gather(
            completer.complete(done(good)), completer.complete(done(bad, content="\ud800")), return_exceptions=True
        )
    assert results[0] is True
    assert isinstance(results[1], StoreRefused)


async def test_marks_without_a_completion_are_stored_soon(pipeline: Pipeline) -> None:
    request = await claimed(pipeline)
    async with running(pipeline.database) as completer:
        await completer.complete(done(request))
        assert len(await pipeline.database.read(outcome, [request.reply_id])) == 1
        completer.mark_published(request.reply_id)
        await completer.flush()
    assert await pipeline.database.read(outcome, [request.reply_id]) == []


@pytest.mark.parametrize("error", [None, ReplyError("http_503", "the provider is unwell", temporary=True)])
async def test_outcome_record_is_the_one_that_the_store_makes_of_its_row(
    pipeline: Pipeline, error: ReplyError | None
) -> None:
    request = await claimed(pipeline)
    completion = done(request)
    if error is not None:
        completion = Completion(
            reply_id=request.reply_id, attempt=1, state="failed", completed_at=completion.completed_at, error=error
        )
    async with running(pipeline.database) as completer:
        await completer.complete(completion)
    assert await pipeline.database.read(outcome, [request.reply_id]) == [outcome_record(request, completion)]
