"""`/docs`: the API describes itself."""

from __future__ import annotations

from typing import Any

from tests.support.api import Api


async def _schema(api: Api) -> dict[str, Any]:
    schema: dict[str, Any] = (await api.http.get("/openapi.json")).json()
    return schema


async def test_openapi_lists_each_path_once(api: Api) -> None:
    assert set((await _schema(api))["paths"]) == {
        "/token",
        "/characters",
        "/characters/id/{character_id}",
        "/characters/{slug}",
        "/api/characters",
        "/api/characters/id/{character_id}",
        "/api/characters/{slug}",
        "/conversations",
        "/conversations/{conversation_id}",
        "/conversations/{conversation_id}/messages",
        "/messages",
        "/admin/dlq",
        "/admin/dlq/{letter_id}",
        "/admin/dlq/{letter_id}/replay",
    }


async def test_openapi_describes_each_call_its_parameters_and_its_answer(api: Api) -> None:
    for path, calls in (await _schema(api))["paths"].items():
        for call in calls.values():
            assert call["summary"], path
            assert call["responses"]["200"]["content"]["application/json"]["schema"], path
            assert all(parameter["description"] for parameter in call.get("parameters", [])), path


async def test_openapi_asks_for_a_bearer_where_one_is_needed(api: Api) -> None:
    paths = (await _schema(api))["paths"]
    assert paths["/conversations"]["get"]["security"] == [{"HTTPBearer": []}]
    assert all(call["security"] for path in paths if path.startswith("/admin") for call in paths[path].values())
    assert "security" not in paths["/api/characters"]["get"]


async def test_docs_are_shown(api: Api) -> None:
    answer = await api.http.get("/docs")
    assert answer.status_code == 200
    assert "swagger" in answer.text
