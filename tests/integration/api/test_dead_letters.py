"""Dead letters over HTTP: seen by operators alone, replayed once, dropped for good."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from typing import Any

import httpx
import pytest
from tests.support.api import Api, bearer, external_token

from duologue.domain.errors import LogUnavailable, Permanent
from duologue.domain.records import INCOMING_TOPIC, RESPONSES_TOPIC, RegenerateRequested, decode_incoming
from duologue.store.dead_letters import DeadLetter, keep_dead_letter
from duologue.store.deletion import delete_user
from duologue.store.messages import StoredRequest
from duologue.store.outcomes import ReplyError
from duologue.store.users import UserRow

GARBAGE = b"\xff\x00 no record"


async def _keep(api: Api, offset: int = 1, **fields: Any) -> str:
    """Keep a letter, of an unreadable record unless told otherwise; return its id."""
    known: dict[str, Any] = {
        "topic": INCOMING_TOPIC,
        "partition": 0,
        "offset": offset,
        "key": "c-1",
        "value": GARBAGE,
        "headers": {"correlation_id": "c-9", "x": "y"},
        "error": "the record cannot be read",
        "cause": "unreadable",
        "tries": 1,
        "first_at": api.clock(),
        "last_at": api.clock() + offset,
    } | fields
    await api.database.write(keep_dead_letter, DeadLetter(**{"size": len(known["value"]), **known}))
    items = (await api.http.get("/admin/dlq", headers=api.operator())).json()["items"]
    return next(str(item["id"]) for item in items if item["offset"] == offset)


async def _failed(api: Api, offset: int = 1) -> tuple[StoredRequest, str, UserRow]:
    """A message whose reply has failed, and the id of its letter."""
    _, user = await api.guest(f"ada-{offset}")
    request = await api.say(user, await api.conversation(user), "hello")
    await api.answer(request, state="failed", error=ReplyError("http_503", "unwell", temporary=True))
    letter_id = await _keep(
        api,
        offset,
        value=b'{"type":"message_submitted"}',
        cause="http_503",
        tenant=user.tenant,
        uid=user.uid,
        message_id=request.message_id,
        conversation_id=request.conversation_id,
        attempt=1,
    )
    return request, letter_id, user


async def _replay(api: Api, letter_id: str, name: str = "eve") -> httpx.Response:
    return await api.http.post(f"/admin/dlq/{letter_id}/replay", headers=api.operator(name))


async def _state(api: Api, letter_id: str) -> str:
    return str((await api.http.get(f"/admin/dlq/{letter_id}", headers=api.operator())).json()["state"])


CALLS = [("GET", ""), ("GET", "/x"), ("POST", "/x/replay"), ("DELETE", "/x")]


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_dead_letters_are_an_operators_alone(api: Api, method: str, path: str) -> None:
    user, _ = await api.guest("ada")
    for prefix in ("", "/api/v1"):
        url = f"{prefix}/admin/dlq{path}"
        answer = await api.http.request(method, url)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
        assert answer.headers["www-authenticate"] == "Bearer"
        answer = await api.http.request(method, url, headers=user)
        assert (answer.status_code, answer.json()["code"]) == (403, "operator_only")
        answer = await api.http.request(method, url, headers=api.operator())
        assert answer.status_code == (200 if path == "" else 404)


async def test_operators_token_of_a_products_backend_is_taken_unless_its_user_was_deleted(api: Api) -> None:
    _, user = await api.guest("ada")
    listed = await api.http.get("/admin/dlq", headers=bearer(external_token("sue", api.clock, role="operator")))
    assert listed.status_code == 200
    with_row = bearer(external_token("ada", api.clock, role="operator", uid=user.uid))
    assert (await api.http.get("/admin/dlq", headers=with_row)).status_code == 200
    await api.database.write(delete_user, user.uid, api.clock())
    assert (await api.http.get("/admin/dlq", headers=with_row)).status_code == 401


async def test_operators_token_that_has_expired_is_refused(api: Api) -> None:
    headers = api.operator()
    api.clock.now += 61_000
    assert (await api.http.get("/admin/dlq", headers=headers)).status_code == 401


async def test_list_shows_what_is_known_in_pages_and_no_content(api: Api) -> None:
    _, letter_id, _ = await _failed(api, 1)
    for offset in (2, 3):
        await _keep(api, offset)
    first = (await api.http.get("/admin/dlq", params={"limit": 2}, headers=api.operator())).json()
    assert [item["offset"] for item in first["items"]] == [3, 2]
    assert not {"value", "json", "headers"} & first["items"][0].keys()
    page = {"limit": 2, "cursor": first["next_cursor"]}
    second = (await api.http.get("/admin/dlq", params=page, headers=api.operator())).json()
    assert second["next_cursor"] is None
    (item,) = second["items"]
    assert (item["id"], item["userid"], item["cause"], item["attempt"]) == (letter_id, "ada-1", "http_503", 1)
    assert item["first_at"].endswith("Z")


@pytest.mark.parametrize(
    ("query", "offsets"),
    [
        ({"state": "open"}, [3, 2]),
        ({"state": "dropped"}, [1]),
        ({"topic": "responses"}, [3]),
        ({"cause": "unreadable", "topic": "incoming_messages"}, [2, 1]),
        ({"user": "nobody"}, []),
    ],
)
async def test_list_with_filters(api: Api, query: dict[str, str], offsets: list[int]) -> None:
    dropped = await _keep(api, 1)
    await _keep(api, 2)
    await _keep(api, 3, topic=RESPONSES_TOPIC, cause="refused_by_redis")
    await api.http.delete(f"/admin/dlq/{dropped}", headers=api.operator())
    listed = (await api.http.get("/admin/dlq", params=query, headers=api.operator())).json()
    assert [item["offset"] for item in listed["items"]] == offsets


@pytest.mark.parametrize("query", [{"state": "new"}, {"cursor": "nonsense"}, {"limit": "0"}])
async def test_list_asked_for_what_cannot_be_is_refused(api: Api, query: dict[str, str]) -> None:
    answer = await api.http.get("/admin/dlq", params=query, headers=api.operator())
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (GARBAGE, None),
        (b'{"v":99,"type":"x"}', {"v": 99, "type": "x"}),
        (b'{"n":' + b"9" * 400 + b"}", {"n": int("9" * 400)}),
        (b"", None),
    ],
    ids=["garbage", "json", "large number", "empty"],
)
async def test_show_has_the_bytes_and_what_they_say(api: Api, value: bytes, said: object) -> None:
    letter_id = await _keep(api, value=value)
    shown = (await api.http.get(f"/admin/dlq/{letter_id}", headers=api.operator())).json()
    assert b64decode(shown["value"]) == value
    assert shown["json"] == said
    assert shown["headers"] == {"correlation_id": "c-9", "x": "y"}
    assert (shown["state"], shown["size"]) == ("open", len(value))


@pytest.mark.parametrize("value", [b'{"n":1e999}', b'"\\ud800"', b"[" * 900 + b"]" * 900, b"[" * 20_000])
async def test_show_of_odd_json_is_no_error(api: Api, value: bytes) -> None:
    letter_id = await _keep(api, value=value)
    answer = await api.http.get(f"/admin/dlq/{letter_id}", headers=api.operator())
    assert answer.status_code == 200
    assert f'"size":{len(value)}' in answer.text


async def test_replay_of_a_failed_reply_asks_for_it_again(api: Api) -> None:
    request, letter_id, user = await _failed(api)
    headers = api.operator() | {"X-Correlation-ID": "replay-1"}
    answer = await api.http.post(f"/admin/dlq/{letter_id}/replay", headers=headers)
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["handled_by"]) == ("replayed", "eve")
    assert answer.json()["handled_at"].endswith("Z")
    ((key, value, sent),) = await api.appended(INCOMING_TOPIC)
    assert (key, sent) == (request.conversation_id, {"correlation_id": "replay-1"})
    assert decode_incoming(value) == RegenerateRequested(
        tenant="default",
        user_id=user.user_id,
        uid=user.uid,
        message_id=request.message_id,
        conversation_id=request.conversation_id,
        attempt=1,
        requested_at=api.clock(),
        correlation_id="replay-1",
        operator=True,
    )


@pytest.mark.parametrize("topic", [INCOMING_TOPIC, RESPONSES_TOPIC])
async def test_replay_of_a_record_puts_its_bytes_back_as_they_were(api: Api, topic: str) -> None:
    letter_id = await _keep(api, topic=topic)
    assert (await _replay(api, letter_id)).status_code == 200
    assert await api.appended(topic) == [("c-1", GARBAGE, {"correlation_id": "c-9", "x": "y"})]


async def test_replay_by_two_operators_at_once_appends_once(api: Api) -> None:
    _, letter_id, _ = await _failed(api)
    answers = await asyncio.gather(*(_replay(api, letter_id, name) for name in ("eve", "bob", "sue")))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    assert len(await api.appended(INCOMING_TOPIC)) == 1
    again = await _replay(api, letter_id)
    assert (again.status_code, again.json()["code"]) == (409, "dead_letter_replayed")
    assert len(await api.appended(INCOMING_TOPIC)) == 1


@pytest.mark.parametrize("on_the_log", [False, True])
async def test_replay_without_an_acknowledgement_can_be_repeated(api: Api, on_the_log: bool) -> None:
    _, letter_id, _ = await _failed(api)
    api.producer.failure, api.producer.after = LogUnavailable("away"), on_the_log
    answer = await _replay(api, letter_id)
    assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
    assert await _state(api, letter_id) == "open"
    api.producer.failure = None
    assert (await _replay(api, letter_id)).status_code == 200
    values = [value for _, value, _ in await api.appended(INCOMING_TOPIC)]
    assert [_attempt(value) for value in values] == [1] * (1 + on_the_log)  # the second copy changes nothing


def _attempt(value: bytes) -> int:
    record = decode_incoming(value)
    assert isinstance(record, RegenerateRequested)
    return record.attempt


async def test_replay_of_a_record_that_the_log_does_not_take_says_so(api: Api) -> None:
    letter_id = await _keep(api)
    api.producer.failure = Permanent("too large")
    answer = await _replay(api, letter_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "dead_letter_refused")
    assert await _state(api, letter_id) == "open"


async def test_replay_of_what_was_answered_again_says_so_and_appends_nothing(api: Api) -> None:
    request, letter_id, _ = await _failed(api)
    other_id = await _keep(api, 7, attempt=2, message_id=request.message_id)
    answer = await _replay(api, other_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "dead_letter_superseded")
    assert await api.appended(INCOMING_TOPIC) == []
    assert await _state(api, letter_id) == "open"


async def test_letters_of_a_deleted_user_are_gone(api: Api) -> None:
    _, letter_id, user = await _failed(api)
    await api.database.write(delete_user, user.uid, api.clock())
    answer = await _replay(api, letter_id)
    assert (answer.status_code, answer.json()["code"]) == (404, "dead_letter_not_found")


async def test_drop_removes_the_record_and_ends_replays(api: Api) -> None:
    letter_id = await _keep(api)
    for _ in range(2):
        answer = await api.http.delete(f"/admin/dlq/{letter_id}", headers=api.operator())
        assert (answer.status_code, answer.json()["state"]) == (200, "dropped")
    shown = (await api.http.get(f"/admin/dlq/{letter_id}", headers=api.operator())).json()
    assert (shown["value"], shown["headers"], shown["size"]) == ("", {}, len(GARBAGE))
    assert (await _replay(api, letter_id)).json()["code"] == "dead_letter_dropped"
    assert await api.appended(INCOMING_TOPIC) == []
