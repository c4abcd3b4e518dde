"""Dead letters: kept once, shown newest first."""

from __future__ import annotations

import msgspec
from tests.integration.store.scenario import NOW

from duologue.store.database import Database
from duologue.store.dead_letters import DeadLetter, count_dead_letters, insert_dead_letters, list_dead_letters


def _letter(offset: int) -> DeadLetter:
    return DeadLetter(
        topic="incoming_messages",
        partition=0,
        offset=offset,
        key="conversation",
        value=b"\xff\x00 bytes as they were",
        headers={"correlation_id": "c"},
        error="cannot be read",
        cause="unreadable",
        tries=1,
        first_at=NOW,
        last_at=NOW + offset,
    )


async def test_letter_comes_back_as_it_went_in(database: Database) -> None:
    await database.write(insert_dead_letters, [_letter(1)])
    (row,) = (await database.read(list_dead_letters, None, 10)).items
    assert {name: getattr(row, name) for name in DeadLetter.__struct_fields__} == msgspec.structs.asdict(_letter(1))
    assert row.state == "open"


async def test_letter_kept_again_is_one(database: Database) -> None:
    await database.write(insert_dead_letters, [_letter(1), _letter(2)])
    await database.write(insert_dead_letters, [_letter(2), _letter(3)])
    await database.write(insert_dead_letters, [])
    assert await database.read(count_dead_letters) == 3


async def test_list_in_pages_is_newest_first(database: Database) -> None:
    await database.write(insert_dead_letters, [_letter(offset) for offset in range(5)])
    first = await database.read(list_dead_letters, None, 3)
    second = await database.read(list_dead_letters, first.next_cursor, 3)
    assert [row.offset for row in [*first.items, *second.items]] == [4, 3, 2, 1, 0]
    assert second.next_cursor is None
