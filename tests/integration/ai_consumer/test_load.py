"""What an ai-consumer says of its load."""

from __future__ import annotations

import pytest
from tests.support.pipeline import ALICE, BOB, Pipeline, until

from duologue.ai_consumer import publisher
from duologue.ai_consumer.service_times import FIRST_GUESS_SECONDS
from duologue.delivery.load import LoadReport
from duologue.delivery.names import names_of
from duologue.delivery.stream import RateLimit
from duologue.llm.scripted import Pause
from duologue.store.deletion import delete_conversation

PLENTY = RateLimit(10_000, 60)


async def figures(pipeline: Pipeline) -> LoadReport:
    """Return what is reported next."""
    before = [standing.written_at for standing in await pipeline.board.read()]

    async def after() -> LoadReport | None:
        standings = await pipeline.board.read()
        return standings[0].report if standings and standings[0].written_at not in before else None

    report: LoadReport = await until(after)
    return report


async def test_idle_consumer_reports_no_wait_and_what_it_can_do(pipeline: Pipeline) -> None:
    await pipeline.consumer(max_workers=4)
    report = await figures(pipeline)
    assert (report.consumer, report.partitions) == ("worker", [0])
    assert (report.waiting, report.unread, report.running, report.slots) == (0, 0, 0, 4)
    assert (report.wait_seconds, report.replies_per_second) == (0.0, 4 / FIRST_GUESS_SECONDS)


async def test_busy_consumer_reports_the_wait_of_a_newcomer_and_not_that_of_a_user_with_many(
    pipeline: Pipeline,
) -> None:
    pipeline.model.play(Pause())
    await pipeline.consumer(max_workers=1)
    alice, bob = await pipeline.conversation(), await pipeline.conversation(BOB)
    for number in range(6):
        await pipeline.say(alice, str(number))
    await until(lambda: pipeline.model.prompts)
    await pipeline.say(bob, "one", BOB)
    await until(lambda: pipeline.stored(7))
    report = await figures(pipeline)
    # One runs. Before a newcomer comes Bob's; Alice's others wait for their own conversation.
    assert (report.running, report.waiting) == (1, 6)
    mean = 1 / report.replies_per_second
    assert mean >= FIRST_GUESS_SECONDS
    assert report.wait_seconds == pytest.approx(2 * mean, abs=0.1)
    assert report.backlog_seconds == pytest.approx(7 * mean, abs=0.1)


async def test_consumer_that_has_paused_counts_what_is_on_the_log(pipeline: Pipeline) -> None:
    pipeline.model.play(Pause())
    await pipeline.consumer(max_workers=1, max_pending_messages=4)
    conversation = await pipeline.conversation()
    for number in range(4):
        await pipeline.say(conversation, str(number))
    await until(lambda: pipeline.stored(4))
    for number in range(8):
        await pipeline.say(conversation, f"behind {number}")

    async def paused() -> LoadReport | None:
        report = await figures(pipeline)
        return report if report.unread else None

    report: LoadReport = await until(paused)
    assert (report.running + report.waiting, report.unread) == (4, 8)
    assert report.wait_seconds >= 9 * FIRST_GUESS_SECONDS


async def test_message_that_is_done_without_an_outcome_counts_no_longer(pipeline: Pipeline) -> None:
    conversation = await pipeline.conversation()
    record = pipeline.message(conversation, "to nobody")
    await pipeline.streams.admit(ALICE, record.message_id, limit=PLENTY)
    assert await pipeline.database.write(delete_conversation, conversation.uid, conversation.id, record.submitted_at)
    await pipeline.consumer()
    await pipeline.append(record)

    async def counts_nothing() -> bool:
        return not await pipeline.redis.call("ZCARD", names_of(ALICE).pending)

    await until(counts_nothing)


async def test_outcomes_that_the_log_does_not_take_keep_their_slots_once_enough_wait(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MAX_UNPUBLISHED", 2)
    consumer = await pipeline.consumer(max_workers=2, user_max_workers=2)
    await pipeline.relay()
    consumer.appends.pulled = True
    for number in range(8):
        await pipeline.say(await pipeline.conversation(), str(number))
    await until(lambda: len(pipeline.model.prompts) == 4 and not pipeline.model.running)
    await pipeline.say(await pipeline.conversation(), "one more")
    await until(lambda: pipeline.stored(9))
    assert len(pipeline.model.prompts) == 4
    consumer.appends.pulled = False
    assert len(await pipeline.answers(9)) == 9
