"""What devices see of a reply while it is written."""

from __future__ import annotations

from tests.support.pipeline import ALICE, Pipeline, until

from duologue.domain.clock import wall_clock
from duologue.llm.scripted import Pause
from duologue.store.replies import claim


async def test_first_piece_leaves_at_once_and_later_ones_are_merged(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play("one ", *["more "] * 20, pause, "end")
    await pipeline.consumer(delta_interval_ms=30)
    async with pipeline.listening() as frames:
        await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: "".join(f["content"] for f in frames if f["type"] == "delta") == "one " + "more " * 20)
    deltas = [frame for frame in frames if frame["type"] == "delta"]
    assert deltas[0]["content"].startswith("one ")
    assert len(deltas) < 10
    assert [frame["seq"] for frame in deltas] == list(range(1, len(deltas) + 1))


async def test_long_text_leaves_before_its_time(pipeline: Pipeline) -> None:
    pause, end = Pause(), Pause()
    pipeline.model.play("one ", pause, "x" * 300, end)
    await pipeline.consumer(delta_interval_ms=600_000)
    async with pipeline.listening() as frames:
        await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
        pause.open()
        await until(lambda: any(frame.get("content") == "x" * 300 for frame in frames))
    assert end.reached.is_set()


async def test_text_that_a_later_attempt_took_over_ends_the_reply_at_its_next_piece(pipeline: Pipeline) -> None:
    first, second = Pause(), Pause()
    pipeline.model.play("mine ", first, "still mine? ", second)
    pipeline.model.play(second)
    await pipeline.consumer()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await first.reached.wait()
    (reply_id,) = (await pipeline.replies()).keys()
    await pipeline.database.write(claim, [reply_id], "another", wall_clock())
    await pipeline.streams.open_live(ALICE, message.message_id, message.conversation_id, 2, "takeover")
    first.open()
    # The model is silent now: only the refused piece can tell.
    await until(lambda: pipeline.model.abandoned == 1)


async def test_text_that_redis_has_forgotten_is_opened_anew_with_a_snapshot(pipeline: Pipeline) -> None:
    pause, later = Pause(), Pause()
    pipeline.model.play("before ", pause, "after ", later)
    await pipeline.consumer()
    async with pipeline.listening() as frames:
        await pipeline.say(await pipeline.conversation(), "hello")
        await until(lambda: any(frame["type"] == "delta" for frame in frames))
        await pipeline.streams.forget(ALICE)
        pause.open()
        await until(lambda: any(frame["type"] == "snapshot" for frame in frames))
    (snapshot,) = [frame for frame in frames if frame["type"] == "snapshot"]
    assert (snapshot["content"], snapshot["attempt"], snapshot["seq"]) == ("before after ", 1, 2)
    later.open()
    attached = await pipeline.streams.attach(ALICE, None)
    assert attached.lives


async def test_message_that_waits_is_told_its_place(pipeline: Pipeline) -> None:
    pause = Pause()
    pipeline.model.play(pause)
    await pipeline.consumer(max_workers=1)
    conversation = await pipeline.conversation()
    async with pipeline.listening() as frames:
        await pipeline.say(conversation, "first")
        waiting = [await pipeline.say(conversation, content) for content in ("second", "third")]
        await until(lambda: [frame["type"] for frame in frames].count("queued") == 2)
    queued = [frame for frame in frames if frame["type"] == "queued"]
    assert [(frame["message_id"], frame["position"]) for frame in queued] == [
        (message.message_id, place) for place, message in enumerate(waiting, 1)
    ]
    assert all(frame["eta_ms"] > 0 for frame in queued)
