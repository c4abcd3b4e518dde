"""What a model is asked: settings, character, and what was said at smaller positions (rule Order)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, add_version, ended

from duologue.store.characters import find_character
from duologue.store.conversations import new_conversation
from duologue.store.deletion import delete_message
from duologue.store.messages import StoredRequest
from duologue.store.prompts import HISTORY_LIMIT, PromptSource, read_prompts
from duologue.store.schema import characters, conversations


async def _prompt(scenario: Scenario, request: StoredRequest) -> PromptSource:
    return (await scenario.database.read(read_prompts, [request.reply_id]))[request.reply_id]


def _said(prompt: PromptSource) -> list[str]:
    return [f"{turn.role}: {turn.content}" for turn in prompt.history]


def _set(conn: Connection, conversation_id: str, settings: dict[str, Any]) -> None:
    conn.execute(sa.update(conversations).where(conversations.c.id == conversation_id).values(settings=settings))


async def test_history_holds_what_was_said_before_oldest_first(ada: Scenario) -> None:
    await ada.answered("one", "first answer")
    await ada.answered("two", "second answer")
    three, _ = await ada.asked("three", "four")
    prompt = await _prompt(ada, three)
    assert prompt.content == "three"
    assert _said(prompt) == ["user: one", "assistant: first answer", "user: two", "assistant: second answer"]


async def test_history_leaves_out_failed_answers_and_keeps_stopped_ones(ada: Scenario) -> None:
    await ada.answered("one", "partial", "stopped")
    await ada.answered("two", "", "failed")
    await ada.answered("three", "", "stopped")
    (four,) = await ada.asked("four")
    assert _said(await _prompt(ada, four)) == ["user: one", "assistant: partial", "user: two", "user: three"]


async def test_history_takes_the_newest_version_that_has_an_answer(ada: Scenario) -> None:
    one = await ada.answered("one", "first version")
    await ada.database.write(add_version, one, 2, "complete", "second version")
    await ada.database.write(add_version, one, 3, "failed", "")
    (two,) = await ada.asked("two")
    assert _said(await _prompt(ada, two)) == ["user: one", "assistant: second version"]


async def test_history_leaves_out_deleted_messages(ada: Scenario) -> None:
    await ada.answered("one", "first answer")
    await ada.answered("two", "second answer")
    await ada.database.write(delete_message, ada.user.uid, ada.id_of("one"), NOW)
    (three,) = await ada.asked("three")
    assert _said(await _prompt(ada, three)) == ["user: two", "assistant: second answer"]


async def test_history_of_long_conversation_holds_the_newest_turns(ada: Scenario) -> None:
    for number in range(70):
        await ada.answered(f"question {number}", f"answer {number}")
    (request,) = await ada.asked("the last")
    said = _said(await _prompt(ada, request))
    assert len(said) == HISTORY_LIMIT
    assert (said[0], said[-1]) == ("user: question 20", "assistant: answer 69")


async def test_prompts_of_several_conversations_do_not_mix(ada: Scenario) -> None:
    other = await ada.another_conversation()
    await ada.answered("one", "first answer")
    (two,) = await ada.asked("two")
    (elsewhere,) = await ada.store(ada.says("elsewhere", other))
    assert isinstance(elsewhere, StoredRequest)
    prompts = await ada.database.read(read_prompts, [two.reply_id, elsewhere.reply_id])
    assert _said(prompts[two.reply_id]) == ["user: one", "assistant: first answer"]
    assert _said(prompts[elsewhere.reply_id]) == []


async def test_conversation_without_character_takes_the_assistants_prompt(ada: Scenario) -> None:
    assistant = await ada.database.read(find_character, "default", "assistant")
    assert assistant is not None
    (request,) = await ada.asked("one")
    prompt = await _prompt(ada, request)
    assert (prompt.system_prompt, prompt.temperature) == (assistant.system_prompt, assistant.temperature)
    assert (prompt.model, prompt.max_tokens) == (None, None)


async def test_conversation_with_character_takes_its_prompt_and_model(ada: Scenario) -> None:
    marlow = await ada.database.read(find_character, "default", "marlow")
    assert marlow is not None
    conversation = await ada.database.write(new_conversation, ada.user, marlow, NOW)
    await ada.database.write(
        lambda conn: conn.execute(sa.update(characters).where(characters.c.id == marlow.id).values(model="deep"))
    )
    (request,) = await ada.store(ada.says("ahoy", conversation))
    assert isinstance(request, StoredRequest)
    prompt = await _prompt(ada, request)
    assert (prompt.system_prompt, prompt.model) == (marlow.system_prompt, "deep")


async def test_settings_of_the_conversation_go_before_the_characters(ada: Scenario) -> None:
    settings = {"system_prompt": "Be brief.", "model": "tiny", "temperature": 0, "max_tokens": 9}
    await ada.database.write(_set, ada.conversation.id, settings)
    (request,) = await ada.asked("one")
    prompt = await _prompt(ada, request)
    assert (prompt.system_prompt, prompt.model, prompt.temperature, prompt.max_tokens) == ("Be brief.", "tiny", 0, 9)


async def test_unfinished_answers_before_are_left_out(ada: Scenario) -> None:
    one, two = await ada.asked("one", "two")
    await ada.claim(one)
    assert _said(await _prompt(ada, two)) == ["user: one"]
    (held,) = await ada.claim(one)
    await ada.finish(ended(held, "there it is"))
    assert _said(await _prompt(ada, two)) == ["user: one", "assistant: there it is"]
