"""Pages of what was said, and of what has changed."""

from __future__ import annotations

import msgspec
import pytest
from tests.integration.store.scenario import NOW, Scenario, add_version, ended

from duologue.domain.errors import Rejected
from duologue.domain.records import Usage
from duologue.store.database import Database
from duologue.store.history import OVERLAP_MS, ChangedPage, MessageRow, changed_messages, conversation_messages
from duologue.store.outcomes import ReplyError


def _texts(items: list[MessageRow]) -> list[str]:
    return [item.content for item in items]


async def _changed(
    scenario: Scenario, *, after: str | None = None, before: str | None = None, limit: int = 50, now: int = NOW
) -> ChangedPage:
    return await scenario.database.read(
        changed_messages, scenario.user.uid, after=after, before=before, limit=limit, now=now
    )


async def test_messages_come_oldest_first_with_their_replies(ada: Scenario) -> None:
    request = await ada.answered("one", "answer")
    await ada.asked("two")
    page = await ada.database.read(conversation_messages, ada.user.uid, ada.conversation.id)
    assert _texts(page.items) == ["one", "answer", "two", ""]
    assert [item.state for item in page.items] == ["complete", "complete", "complete", "queued"]
    assert [item.role for item in page.items] == ["user", "assistant"] * 2
    message, reply = page.items[0], page.items[1]
    assert (message.id, message.metadata, message.created_at) == (request.message_id, {"said": "one"}, NOW - 5)
    assert (reply.id, reply.reply_to, reply.attempt) == (request.reply_id, request.message_id, 1)
    assert (reply.generation, reply.completed_at) == (1, NOW + 10)
    assert page.next_cursor is None


async def test_reply_tells_usage_and_error(ada: Scenario) -> None:
    one, two = await ada.asked("one", "two")
    (held,) = await ada.claim(one)
    await ada.finish(msgspec.structs.replace(ended(held, "answer"), usage=Usage(1, 2, 3), model="small"))
    (held,) = await ada.claim(two)
    error = ReplyError("http_401", "The model refused.", temporary=False)
    await ada.finish(msgspec.structs.replace(ended(held, "", "failed"), error=error))
    page = await ada.database.read(conversation_messages, ada.user.uid, ada.conversation.id)
    assert (page.items[1].usage, page.items[1].model) == (Usage(1, 2, 3), "small")
    assert (page.items[3].error, page.items[3].state) == (error, "failed")


async def test_pages_go_backwards_without_gap_or_repeat(ada: Scenario) -> None:
    for number in range(5):
        await ada.answered(f"question {number}", f"answer {number}")
    seen: list[str] = []
    before: str | None = None
    while True:
        page = await ada.database.read(conversation_messages, ada.user.uid, ada.conversation.id, before, 3)
        seen = _texts(page.items) + seen
        before = page.next_cursor
        if before is None:
            break
    assert seen == [f"{kind} {number}" for number in range(5) for kind in ("question", "answer")]


async def test_page_lists_every_version_of_a_reply(ada: Scenario) -> None:
    one = await ada.answered("one", "first")
    await ada.database.write(add_version, one, 2, "complete", "second")
    page = await ada.database.read(conversation_messages, ada.user.uid, ada.conversation.id)
    assert [(item.generation, item.content) for item in page.items] == [(0, "one"), (1, "first"), (2, "second")]


async def test_page_of_another_users_conversation_is_empty(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    await ada.asked("one")
    page = await database.read(conversation_messages, bob.user.uid, ada.conversation.id)
    assert page.items == []


async def test_page_before_a_message_of_another_conversation_is_empty(ada: Scenario) -> None:
    other = await ada.another_conversation()
    await ada.store(ada.says("one"), ada.says("two", other))
    page = await ada.database.read(conversation_messages, ada.user.uid, ada.conversation.id, ada.id_of("two"))
    assert page.items == []


async def test_changes_without_cursor_are_the_newest_page_and_go_backwards(ada: Scenario) -> None:
    for number in range(4):
        await ada.answered(f"question {number}", f"answer {number}", now=NOW + number)
    newest = await _changed(ada, limit=4)
    assert sorted(_texts(newest.items)) == ["answer 2", "answer 3", "question 2", "question 3"]
    assert newest.previous_cursor is not None
    earlier = await _changed(ada, before=newest.previous_cursor, limit=50)
    assert len(earlier.items) == 4
    assert earlier.previous_cursor is None
    assert not {item.id for item in newest.items} & {item.id for item in earlier.items}


async def test_changes_after_cursor_are_what_came_since(ada: Scenario) -> None:
    await ada.answered("old", "old answer", now=NOW - 10 * OVERLAP_MS)
    cursor = (await _changed(ada)).next_cursor
    await ada.answered("new", "new answer", now=NOW + 1)
    page = await _changed(ada, after=cursor, now=NOW + 2)
    assert sorted(_texts(page.items)) == ["new", "new answer"]


async def test_changes_of_the_last_half_minute_come_again(ada: Scenario) -> None:
    await ada.asked("recent", now=NOW - OVERLAP_MS + 1)
    await ada.asked("settled", now=NOW - OVERLAP_MS - 1)
    cursor = (await _changed(ada)).next_cursor
    page = await _changed(ada, after=cursor)
    assert {item.content for item in page.items} == {"recent", ""}


async def test_reply_that_changes_state_comes_again(ada: Scenario) -> None:
    (request,) = await ada.asked("one", now=NOW)
    cursor = (await _changed(ada, now=NOW + 2 * OVERLAP_MS)).next_cursor
    (held,) = await ada.claim(request, now=NOW + 3 * OVERLAP_MS)
    page = await _changed(ada, after=cursor, now=NOW + 4 * OVERLAP_MS)
    assert [(item.id, item.state) for item in page.items] == [(request.reply_id, "generating")]
    await ada.finish(ended(held, "answer"), now=NOW + 5 * OVERLAP_MS)
    page = await _changed(ada, after=page.next_cursor, now=NOW + 6 * OVERLAP_MS)
    assert [(item.content, item.state) for item in page.items] == [("answer", "complete")]


async def test_walk_through_many_changes_of_one_moment_ends(ada: Scenario) -> None:
    await ada.asked(*(f"question {number}" for number in range(10)))
    cursor = (await _changed(ada, limit=1, now=NOW - 2 * OVERLAP_MS)).next_cursor
    seen: list[str] = []
    for _ in range(7):
        page = await _changed(ada, after=cursor, limit=3)
        seen += [item.id for item in page.items]
        cursor = page.next_cursor
    assert len(seen) == len(set(seen)) == 20


async def test_change_committed_late_is_seen_after_a_long_walk(ada: Scenario) -> None:
    """A row with an earlier time that became visible while a walk was under way is not lost."""
    for number in range(3):
        await ada.asked(f"question {number}", now=NOW + number)
    start = (await _changed(ada, limit=1, now=NOW - 2 * OVERLAP_MS)).next_cursor
    page = await _changed(ada, after=start, limit=4, now=NOW + 100)
    await ada.asked("late", now=NOW + 1)
    seen: set[str] = set()
    for _ in range(3):
        page = await _changed(ada, after=page.next_cursor, limit=50, now=NOW + 100 * OVERLAP_MS)
        seen |= set(_texts(page.items))
    assert "late" in seen


async def test_changes_of_another_user_are_not_seen(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    await ada.asked("one")
    assert (await _changed(bob)).items == []


@pytest.mark.parametrize("cursor", ["nonsense", "", "é", "W10", "eyJhIjoxfQ", "W1siYSJdXQ"])
async def test_cursor_that_is_none_of_ours_is_rejected(ada: Scenario, cursor: str) -> None:
    with pytest.raises(Rejected) as caught:
        await _changed(ada, after=cursor)
    assert caught.value.code == "invalid_cursor"
