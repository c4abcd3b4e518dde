"""From a message on the log to the user's stream: the plain way."""

from __future__ import annotations

import json

from tests.support.pipeline import Pipeline, until


async def test_message_on_the_log_is_answered(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    await pipeline.relay()
    conversation = await pipeline.conversation()
    async with pipeline.listening() as frames:
        message = await pipeline.say(conversation, "hello there")
        (answer,) = await pipeline.answers(1)
        await until(lambda: any(frame["type"] == "response" for frame in frames))
    assert answer["message_id"] == message.message_id
    assert answer["content"] == "You said: hello there"
    assert [frame["type"] for frame in await pipeline.durable()] == ["echo", "response"]
    assert {"echo", "typing", "delta", "response"} <= {frame["type"] for frame in frames}


async def test_outcome_on_the_log_carries_key_and_headers_of_its_message(pipeline: Pipeline) -> None:
    await pipeline.consumer()
    message = await pipeline.say(await pipeline.conversation(), "hello")
    await until(lambda: pipeline.records("responses"))
    ((_, fields),) = await pipeline.redis.call("XRANGE", "log:responses", "-", "+")
    entry = dict(zip(fields[::2], fields[1::2], strict=True))
    assert entry[b"k"] == b"alice"
    assert json.loads(entry[b"h"]) == {"correlation_id": message.correlation_id, "traceparent": "00-1-2-01"}
