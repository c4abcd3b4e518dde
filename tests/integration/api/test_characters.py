"""Characters over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from tests.support.api import Api

from duologue.domain.ids import new_id
from duologue.store.schema import characters
from duologue.store.users import UserRow


def _insert(conn: Connection, owner: UserRow, slug: str, values: dict[str, Any]) -> str:
    row = {
        "id": new_id(),
        "tenant": owner.tenant,
        "slug": slug,
        "name": slug.title(),
        "description": "Of a user's own making.",
        "system_prompt": f"You are {slug}.",
        "tags": [],
        "is_public": False,
        "is_active": True,
        "created_by": owner.uid,
        "created_at": 1,
        "updated_at": 1,
    }
    conn.execute(sa.insert(characters), row | values)
    return str(row["id"])


async def test_characters_without_token_are_the_public_ones(api: Api) -> None:
    _, ada = await api.guest("ada")
    await api.database.write(_insert, ada, "secret", {})
    listed = (await api.http.get("/api/characters")).json()
    assert [each["slug"] for each in listed][:4] == ["assistant", "creative", "analytical", "professional"]
    assert len(listed) == 7
    assert all(each["is_public"] and each["system_prompt"] is None for each in listed)


async def test_characters_of_a_user_are_listed_to_that_user_only(api: Api) -> None:
    ada_headers, ada = await api.guest("ada")
    eve_headers, _ = await api.guest("eve")
    await api.database.write(_insert, ada, "secret", {})
    for_ada = {each["slug"]: each for each in (await api.http.get("/characters", headers=ada_headers)).json()}
    for_eve = {each["slug"]: each for each in (await api.http.get("/characters", headers=eve_headers)).json()}
    assert for_ada["secret"]["system_prompt"] == "You are secret."
    assert "secret" not in for_eve


@pytest.mark.parametrize("prefix", ["", "/api", "/api/v1"])
async def test_character_is_found_by_slug_and_id(api: Api, prefix: str) -> None:
    headers, _ = await api.guest("ada")
    by_slug = (await api.http.get(f"{prefix}/characters/vesper", headers=headers)).json()
    by_id = (await api.http.get(f"{prefix}/characters/id/{by_slug['id']}", headers=headers)).json()
    assert by_slug == by_id
    assert by_slug["created_at"].endswith("Z")


async def test_character_of_another_user_is_not_found(api: Api) -> None:
    headers, _ = await api.guest("eve")
    _, ada = await api.guest("ada")
    character_id = await api.database.write(_insert, ada, "secret", {})
    for path in ("/characters/secret", f"/characters/id/{character_id}", "/characters/nobody", "/characters/id/vesper"):
        answer = await api.http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "character_not_found")


@pytest.mark.parametrize("path", ["/characters/Not%20A%20Slug", "/characters/%00", "/characters/id/a%00b"])
async def test_character_with_a_malformed_name_is_refused(api: Api, path: str) -> None:
    headers, _ = await api.guest("ada")
    answer = await api.http.get(path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
