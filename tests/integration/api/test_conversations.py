"""Conversations and their history over HTTP."""

from __future__ import annotations

import base64

import pytest
from tests.support.api import Api

from duologue.store.outcomes import ReplyError


async def test_conversations_that_hold_something_are_listed_newest_activity_first(api: Api) -> None:
    headers, ada = await api.guest("ada")
    first, second, _empty = [await api.conversation(ada, default=False) for _ in range(3)]
    await api.say(ada, first, "How do tides work?\nPlease.")
    await api.say(ada, second, "Second")
    listed = (await api.http.get("/conversations", headers=headers)).json()
    assert [each["id"] for each in listed["items"]] == [second.id, first.id]
    assert listed["next_cursor"] is None
    assert listed["items"][1]["title"].startswith("How do tides work?")
    assert listed["items"][1]["last_activity_at"].endswith("Z")


async def test_conversations_are_walked_through_by_cursor(api: Api) -> None:
    headers, ada = await api.guest("ada")
    made = [await api.conversation(ada, default=False) for _ in range(5)]
    for conversation in made:
        await api.say(ada, conversation, "Hello")
    walked: list[str] = []
    params: dict[str, str | int] = {"limit": 2}
    while True:
        page = (await api.http.get("/conversations", params=params, headers=headers)).json()
        walked += [each["id"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert walked == [conversation.id for conversation in reversed(made)]


async def test_conversations_are_filtered_by_status_and_character(api: Api) -> None:
    headers, ada = await api.guest("ada")
    await api.say(ada, await api.conversation(ada), "Hello")
    for query, count in (("status=active", 1), ("status=archived", 0), ("character_id=nobody", 0)):
        assert len((await api.http.get(f"/conversations?{query}", headers=headers)).json()["items"]) == count
    assert (await api.http.get("/conversations?status=odd", headers=headers)).status_code == 422


async def test_conversation_shows_messages_and_replies_oldest_first(api: Api) -> None:
    headers, ada = await api.guest("ada")
    conversation = await api.conversation(ada)
    said = await api.say(ada, conversation, "Hello", metadata={"page": 3})
    await api.answer(said, content="Hi!", finish_reason="stop", processing_time_ms=12)
    waiting = await api.say(ada, conversation, "Still there?")
    page = (await api.http.get(f"/conversations/{conversation.id}/messages", headers=headers)).json()
    assert page["next_cursor"] is None
    message, reply, _, unfinished = page["items"]
    assert (message["id"], message["role"], message["state"]) == (said.message_id, "user", "complete")
    assert message["metadata"] == {"page": 3}
    assert message["client_id"] == said.client_id
    assert (reply["role"], reply["content"], reply["reply_to"]) == ("assistant", "Hi!", said.message_id)
    assert (reply["state"], reply["attempt"], reply["generation"]) == ("complete", 1, 1)
    assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert (unfinished["id"], unfinished["state"], unfinished["content"]) == (waiting.reply_id, "queued", "")


async def test_failed_reply_shows_its_reason(api: Api) -> None:
    headers, ada = await api.guest("ada")
    conversation = await api.conversation(ada)
    said = await api.say(ada, conversation, "Hello")
    error = ReplyError("timeout", "The model did not answer.", temporary=True)
    await api.answer(said, state="failed", error=error)
    page = (await api.http.get(f"/conversations/{conversation.id}/messages", headers=headers)).json()
    assert page["items"][1]["state"] == "failed"
    assert page["items"][1]["error"] == {
        "code": "timeout",
        "message": "The model did not answer.",
        "temporary": True,
    }


@pytest.mark.parametrize("parameter", ["before", "cursor"])
async def test_conversation_is_walked_through_backwards(api: Api, parameter: str) -> None:
    headers, ada = await api.guest("ada")
    conversation = await api.conversation(ada)
    for number in range(4):
        await api.say(ada, conversation, f"Message {number}")
    walked: list[dict[str, object]] = []
    params: dict[str, str | int] = {"limit": 3}
    while True:
        page = (await api.http.get(f"/conversations/{conversation.id}/messages", params=params, headers=headers)).json()
        walked = page["items"] + walked
        if page["next_cursor"] is None:
            break
        params[parameter] = page["next_cursor"]
    assert [row["content"] for row in walked if row["role"] == "user"] == [f"Message {n}" for n in range(4)]
    assert len({row["id"] for row in walked}) == len(walked) == 8


async def test_changes_come_oldest_first_and_go_on_from_the_cursor(api: Api) -> None:
    headers, ada = await api.guest("ada")
    conversation = await api.conversation(ada)
    said = await api.say(ada, conversation, "Hello")
    newest = (await api.http.get("/messages", headers=headers)).json()
    assert {row["id"] for row in newest["items"]} == {said.message_id, said.reply_id}
    api.clock.now += 60_000
    await api.answer(said, content="Hi!")
    params = {"after": newest["next_cursor"]}
    changed = (await api.http.get("/messages", params=params, headers=headers)).json()
    assert changed["items"][-1]["id"] == said.reply_id
    assert changed["items"][-1]["content"] == "Hi!"
    api.clock.now += 60_000
    nothing = (await api.http.get("/messages", params={"after": changed["next_cursor"]}, headers=headers)).json()
    assert nothing["next_cursor"]


async def test_changes_are_walked_through_backwards(api: Api) -> None:
    headers, ada = await api.guest("ada")
    conversation = await api.conversation(ada)
    for number in range(3):
        await api.say(ada, conversation, f"Message {number}")
    walked: list[str] = []
    params: dict[str, str | int] = {"limit": 4}
    while True:
        page = (await api.http.get("/messages", params=params, headers=headers)).json()
        walked = [row["id"] for row in page["items"]] + walked
        if page["previous_cursor"] is None:
            break
        params["before"] = page["previous_cursor"]
    assert len(walked) == len(set(walked)) == 6


async def test_what_is_another_users_is_not_found(api: Api) -> None:
    _, ada = await api.guest("ada")
    headers, eve = await api.guest("eve")
    hers, own = await api.conversation(ada), await api.conversation(eve)
    said = await api.say(ada, hers, "A secret")
    await api.say(eve, own, "Mine")
    for path in (f"/conversations/{hers.id}", f"/conversations/{hers.id}/messages"):
        answer = await api.http.get(path, headers=headers)
        missing = await api.http.get(path.replace(hers.id, "0197a000-0000"), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "conversation_not_found")
        assert {**missing.json(), "correlation_id": ""} == {**answer.json(), "correlation_id": ""}
    for path in (
        "/conversations",
        "/messages",
        f"/conversations/{own.id}/messages",
        f"/conversations/{own.id}/messages?before={said.message_id}",
    ):
        assert "A secret" not in (await api.http.get(path, headers=headers)).text


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


_ODD_CURSORS = [
    "x",
    "not-a-cursor",
    _cursor("{}"),
    _cursor("[]"),
    _cursor('["a","b",0]'),
    _cursor('[99999999999999999999999999,"a",0]'),
    _cursor('[-99999999999999999999999999,"a",0]'),
    _cursor('[9223372036854775807,"a",9223372036854775807]'),
    _cursor('[1,"\\u0000",0]'),
    _cursor('[1,"\\ud800",0]'),
    _cursor("[" * 200),
    "a b",
    "%00",
    "é",
    "A" * 600,
]


@pytest.mark.parametrize("cursor", _ODD_CURSORS)
@pytest.mark.parametrize("path", ["/conversations?cursor=", "/messages?after=", "/messages?before="])
async def test_odd_cursor_is_refused_or_harmless(api: Api, path: str, cursor: str) -> None:
    headers, _ = await api.guest("ada")
    answer = await api.http.get(path + cursor, headers=headers)
    assert answer.status_code in (200, 400, 422), answer.text
    if answer.status_code != 200:
        assert answer.json()["code"] in ("invalid_cursor", "invalid_request")


@pytest.mark.parametrize("limit", ["0", "101", "-1", "many", "1e2", "9" * 30])
async def test_limit_out_of_bounds_is_refused(api: Api, limit: str) -> None:
    headers, _ = await api.guest("ada")
    for path in ("/conversations", "/messages", "/conversations/x/messages"):
        answer = await api.http.get(path, params={"limit": limit}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("name", ["a%00b", "a%20b", "%F0%9F%90%8D", "a" * 65, "'%20OR%201=1--"])
async def test_malformed_conversation_id_is_refused(api: Api, name: str) -> None:
    headers, _ = await api.guest("ada")
    for path in (f"/conversations/{name}", f"/conversations/{name}/messages", f"/conversations?character_id={name}"):
        assert (await api.http.get(path, headers=headers)).status_code == 422
