"""What a stop or a regenerate finds: the message, and the latest version of its reply (rule Versions)."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario, add_version, ended

from duologue.store.deletion import delete_conversation, delete_message
from duologue.store.messages import StoredRequest
from duologue.store.replies import Claim, claim
from duologue.store.targets import Target, find_target


async def _target(scenario: Scenario, request: StoredRequest) -> Target:
    found = await scenario.database.read(find_target, scenario.user.uid, request.message_id)
    assert found is not None
    return found


async def test_target_of_a_waiting_reply_has_no_attempt(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    target = await _target(ada, request)
    assert target == Target(
        conversation_id=ada.conversation.id, state="queued", attempt=0, generation=1, replaced=0, is_last=True
    )
    assert not target.finished


@pytest.mark.parametrize("state", ["complete", "failed", "stopped"])
async def test_target_of_a_finished_reply_is_finished(ada: Scenario, state: str) -> None:
    request = await ada.answered("one", "first", state)  # type: ignore[arg-type]
    target = await _target(ada, request)
    assert (target.state, target.attempt, target.generation, target.replaced) == (state, 1, 1, 0)
    assert target.finished


async def test_target_is_the_latest_version_and_knows_what_it_replaced(ada: Scenario) -> None:
    request = await ada.answered("one", "first")
    second = await ada.database.write(add_version, request, 2, "queued")
    waiting = await _target(ada, request)
    assert (waiting.state, waiting.attempt, waiting.generation, waiting.replaced) == ("queued", 0, 2, 1)
    assert [waiting.has_replaced(attempt) for attempt in (1, 2)] == [True, False]

    (held,) = await ada.database.write(_claim, second)
    await ada.finish(ended(held, "second"))
    target = await _target(ada, request)
    assert (target.state, target.attempt, target.generation, target.replaced) == ("complete", 2, 2, 1)
    assert [target.has_replaced(attempt) for attempt in (1, 2, 3)] == [True, False, False]


async def test_message_with_one_behind_it_is_not_the_last_until_that_is_deleted(ada: Scenario) -> None:
    first, second = await ada.asked("one", "two")
    assert [(await _target(ada, each)).is_last for each in (first, second)] == [False, True]
    await ada.database.write(delete_message, ada.user.uid, second.message_id, NOW)
    assert (await _target(ada, first)).is_last


async def test_target_of_another_user_or_of_nothing_is_none(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    bob = await Scenario.open(ada.database, "bob")
    assert await ada.database.read(find_target, bob.user.uid, request.message_id) is None
    assert await ada.database.read(find_target, ada.user.uid, request.reply_id) is None
    assert await ada.database.read(find_target, ada.user.uid, "made-up") is None


async def test_target_in_a_deleted_conversation_is_none(ada: Scenario) -> None:
    (request,) = await ada.asked("one")
    await ada.database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)
    assert await ada.database.read(find_target, ada.user.uid, request.message_id) is None


def _claim(conn: Connection, reply_id: str) -> list[Claim]:
    return claim(conn, [reply_id], "one", NOW)
