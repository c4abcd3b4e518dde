"""Users (rule Users) and the characters that they may see."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
from sqlalchemy import Connection
from tests.integration.store.scenario import NOW, Scenario

from duologue.domain.ids import UserKey, new_id
from duologue.store.characters import CharacterRow, find_character, list_characters, seed_characters
from duologue.store.database import Database
from duologue.store.dead_letters import count_dead_letters
from duologue.store.deletion import delete_user
from duologue.store.schema import characters, conversations
from duologue.store.users import create_guest, deleted_users, ensure_user, find_user, is_deleted, user_by_id


async def test_user_ensured_at_once_is_one_row(database: Database) -> None:
    rows = await asyncio.gather(*(database.write(ensure_user, "default", "eve", "external", NOW) for _ in range(20)))
    assert len({row.uid for row in rows if row is not None}) == 1
    assert rows[0] is not None
    assert (rows[0].key, rows[0].kind) == (UserKey("default", "eve"), "external")


async def test_same_name_in_another_tenant_is_another_user(database: Database) -> None:
    here = await database.write(ensure_user, "default", "eve", "guest", NOW)
    there = await database.write(ensure_user, "elsewhere", "eve", "guest", NOW)
    assert here is not None
    assert there is not None
    assert here.uid != there.uid


async def test_guest_whose_name_is_taken_is_not_made(database: Database) -> None:
    made = await asyncio.gather(*(database.write(create_guest, "default", "eve", NOW) for _ in range(10)))
    assert len([row for row in made if row is not None]) == 1


async def test_deleted_user_is_not_ensured_again_but_the_name_can_be_a_new_guests(
    ada: Scenario, database: Database
) -> None:
    await database.write(delete_user, ada.user.uid, NOW)
    assert await database.write(ensure_user, "default", "ada", "external", NOW) is None
    assert await database.read(find_user, "default", "ada") is None
    guest = await database.write(create_guest, "default", "ada", NOW)
    assert guest is not None
    assert guest.uid != ada.user.uid
    assert await database.write(ensure_user, "default", "ada", "external", NOW) == guest


async def test_deleted_user_is_told_by_their_row_id(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    assert not await database.read(is_deleted, ada.user.uid)
    await database.write(delete_user, ada.user.uid, NOW)
    assert await database.read(is_deleted, ada.user.uid)
    assert not await database.read(is_deleted, "never seen")
    assert await database.read(deleted_users, [ada.user.uid, bob.user.uid, "never seen"]) == {ada.user.uid}
    row = await database.read(user_by_id, ada.user.uid)
    assert row is not None
    assert (row.deleted_at, row.name) == (NOW, "")


def _titles(conn: Connection) -> list[str | None]:
    return list(conn.scalars(sa.select(conversations.c.title)))


async def test_deleting_a_user_leaves_no_content(ada: Scenario, database: Database) -> None:
    await ada.answered("my secret", "is safe")
    await database.write(_make_character, ada.user.uid, "mine")
    await database.write(delete_user, ada.user.uid, NOW)
    assert await database.read(_titles) == [None]
    assert await database.read(find_character, "default", "mine", ada.user.uid) is None
    assert await database.read(count_dead_letters) == 0


def _make_character(conn: Connection, uid: str, slug: str, *, is_public: bool = False) -> None:
    row: dict[str, object] = {
        "id": new_id(),
        "tenant": "default",
        "slug": slug,
        "name": slug,
        "description": "",
        "system_prompt": "x",
    }
    row |= {"tags": [], "is_public": is_public, "is_active": True, "created_by": uid, "created_at": NOW + 99}
    conn.execute(sa.insert(characters), row | {"updated_at": NOW})


async def test_built_in_characters_are_there_in_their_order(database: Database) -> None:
    rows = await database.read(list_characters, "any tenant")
    assert [row.slug for row in rows][:4] == ["assistant", "creative", "analytical", "professional"]
    assert len(rows) == 7
    assert all(60 <= len(row.system_prompt.split()) <= 120 and row.greeting for row in rows)


async def test_seeding_again_keeps_an_operators_changes(database: Database) -> None:
    await database.write(lambda conn: conn.execute(sa.update(characters).values(is_active=False)))
    await database.write(seed_characters, NOW)
    assert await database.read(list_characters, "default") == []


async def test_own_character_is_seen_by_its_maker_only(ada: Scenario, database: Database) -> None:
    bob = await Scenario.open(database, "bob")
    await database.write(_make_character, ada.user.uid, "mine")
    mine = await database.read(find_character, "default", "mine", ada.user.uid)
    assert mine is not None
    assert await database.read(find_character, "default", mine.id, bob.user.uid) is None
    assert await database.read(find_character, "default", "mine") is None
    assert mine in await database.read(list_characters, "default", ada.user.uid)
    assert mine not in await database.read(list_characters, "default", bob.user.uid)


async def test_tenants_own_character_goes_before_a_built_in_one(ada: Scenario, database: Database) -> None:
    built_in = await database.read(find_character, "default", "assistant")
    await database.write(_make_character, ada.user.uid, "assistant", is_public=True)
    found = await database.read(find_character, "default", "assistant")
    assert isinstance(found, CharacterRow)
    assert isinstance(built_in, CharacterRow)
    assert found.created_by == ada.user.uid
    assert await database.read(find_character, "default", built_in.id) == built_in
