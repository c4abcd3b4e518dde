"""The scripted model plays what it is told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from duologue.llm.port import Chunk, Finished, ModelEvent, ModelRequest, ModelTemporaryError, PromptMessage
from duologue.llm.scripted import Pause, Script, ScriptedModel

REQUEST = ModelRequest(messages=[PromptMessage("system", "be kind"), PromptMessage("user", "good morning")])


async def _all(model: ScriptedModel) -> list[ModelEvent]:
    return [event async for event in model.stream(REQUEST)]


async def test_model_without_a_script_echoes_word_by_word() -> None:
    model = ScriptedModel()
    events = await _all(model)
    assert [event.text for event in events if isinstance(event, Chunk)] == ["You ", "said: ", "good ", "morning"]
    assert isinstance(events[-1], Finished)
    assert model.prompts == [REQUEST]
    assert (model.running, model.abandoned) == (0, 0)


async def test_model_plays_scripts_in_order() -> None:
    model = ScriptedModel([["one"], ["two", Finished("length", "m")]])
    assert (await _all(model))[0] == Chunk("one")
    assert await _all(model) == [Chunk("two"), Finished("length", "m")]


async def test_model_raises_what_the_script_says() -> None:
    model = ScriptedModel([["half", ModelTemporaryError("cut", cause="stream_cut")]])
    with pytest.raises(ModelTemporaryError):
        await _all(model)
    assert (model.running, model.abandoned) == (0, 0)


async def test_model_chooses_scripts_by_request() -> None:
    def choose(request: ModelRequest) -> Script | None:
        return ["chosen"] if request is REQUEST else None

    assert (await _all(ScriptedModel(choose=choose)))[0] == Chunk("chosen")


async def test_model_at_a_pause_waits_until_it_is_opened() -> None:
    pause = Pause()
    model = ScriptedModel([["a", pause, "b"]])
    answer = asyncio.create_task(_all(model))
    await model.asked(1)
    await pause.reached.wait()
    assert not answer.done()
    pause.open()
    assert (await answer)[1] == Chunk("b")


async def test_model_whose_answer_is_closed_counts_it_as_abandoned() -> None:
    model = ScriptedModel([["a", "b"]])
    async with aclosing(model.stream(REQUEST)) as events:
        await anext(events)
    assert (model.running, model.abandoned) == (0, 1)


async def test_model_with_a_failure_tells_it_when_checked() -> None:
    model = ScriptedModel()
    await model.check()
    model.failure = ModelTemporaryError("loading", cause="model_loading")
    with pytest.raises(ModelTemporaryError):
        await model.check()
