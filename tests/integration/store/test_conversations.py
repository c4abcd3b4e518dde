"""Conversations: one default for each user and character, whatever comes at once (rule Conversations)."""

from __future__ import annotations

import asyncio

from tests.integration.store.scenario import NOW, Scenario

from duologue.store.characters import find_character
from duologue.store.conversations import (
    MAX_EMPTY,
    default_conversation,
    list_conversations,
    new_conversation,
    owned_conversation,
)
from duologue.store.database import Database
from duologue.store.deletion import delete_conversation


async def test_default_conversation_asked_for_at_once_is_one_row(ada: Scenario, database: Database) -> None:
    marlow = await database.read(find_character, "default", "marlow")
    plain = await asyncio.gather(*(database.write(default_conversation, ada.user, None, NOW) for _ in range(20)))
    with_marlow = await asyncio.gather(
        *(database.write(default_conversation, ada.user, marlow, NOW) for _ in range(20))
    )
    assert {row.id for row in plain} == {ada.conversation.id}
    assert len({row.id for row in with_marlow}) == 1
    assert with_marlow[0].id != ada.conversation.id


async def test_default_conversation_after_deletion_is_a_new_row(ada: Scenario, database: Database) -> None:
    assert await database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)
    fresh = await database.write(default_conversation, ada.user, None, NOW)
    assert fresh.id != ada.conversation.id
    assert await database.read(owned_conversation, ada.user.uid, ada.conversation.id) is None
    assert not await database.write(delete_conversation, ada.user.uid, ada.conversation.id, NOW)


async def test_new_conversation_is_a_row_of_its_own(ada: Scenario, database: Database) -> None:
    made = await database.write(new_conversation, ada.user, None, NOW, settings={"model": "tiny"})
    assert made.id != ada.conversation.id
    assert await database.read(owned_conversation, ada.user.uid, made.id) == made


async def test_new_conversations_asked_for_without_end_are_rows_within_a_bound(
    ada: Scenario, database: Database
) -> None:
    made = [(await database.write(new_conversation, ada.user, None, NOW + number)).id for number in range(MAX_EMPTY)]
    assert len(set(made)) == MAX_EMPTY
    again = await database.write(new_conversation, ada.user, None, NOW + MAX_EMPTY)
    assert again.id == made[0]
    bob = await Scenario.open(database, "bob")
    assert (await database.write(new_conversation, bob.user, None, NOW)).id not in made


async def test_conversation_of_another_user_is_not_found(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    assert await database.read(owned_conversation, bob.user.uid, ada.conversation.id) is None
    assert not await database.write(delete_conversation, bob.user.uid, ada.conversation.id, NOW)


async def test_list_shows_newest_activity_first_and_leaves_out_empty_ones(ada: Scenario) -> None:
    one, two = await ada.another_conversation(), await ada.another_conversation()
    await ada.another_conversation()
    await ada.store(ada.says("first", one), now=NOW + 1)
    await ada.store(ada.says("second", two), now=NOW + 2)
    await ada.store(ada.says("third", one), now=NOW + 3)
    page = await ada.database.read(list_conversations, ada.user.uid)
    assert [row.id for row in page.items] == [one.id, two.id]
    assert page.next_cursor is None


async def test_list_in_pages_has_no_gap_and_no_repeat(ada: Scenario) -> None:
    made = [await ada.another_conversation() for _ in range(5)]
    for conversation in made:
        await ada.store(ada.says(f"hello {conversation.id}", conversation))  # all in the same millisecond
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await ada.database.read(list_conversations, ada.user.uid, cursor=cursor, limit=2)
        seen += [row.id for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(row.id for row in made)


async def test_list_by_status_and_character_shows_only_these(ada: Scenario) -> None:
    marlow = await ada.database.read(find_character, "default", "marlow")
    assert marlow is not None
    made = await ada.database.write(new_conversation, ada.user, marlow, NOW)
    await ada.store(ada.says("hello"), ada.says("ahoy", made))
    by_character = await ada.database.read(list_conversations, ada.user.uid, character_id=marlow.id)
    archived = await ada.database.read(list_conversations, ada.user.uid, status="archived")
    assert [row.id for row in by_character.items] == [made.id]
    assert archived.items == []
