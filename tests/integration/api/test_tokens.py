"""Guest tokens: whose name it is, and how often one may ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.api import SECRET, Api, bearer, external_token, open_api

from duologue.auth.tokens import TokenIssuer, TokenVerifier
from duologue.cluster.valkey import ValkeyServer
from duologue.domain.ids import DEFAULT_TENANT, UserKey
from duologue.store.deletion import delete_user
from duologue.store.users import create_guest, ensure_user, find_user

_WEEK_SECONDS = 7 * 24 * 3600


async def test_token_for_a_free_userid_is_issued(api: Api) -> None:
    answer = await api.http.post("/token?userid=ada")
    body = answer.json()
    assert answer.status_code == 200
    assert body == {
        "token": body["access_token"],
        "access_token": body["access_token"],
        "userid": "ada",
        "expires_in": _WEEK_SECONDS,
        "token_type": "bearer",
    }
    identity = TokenVerifier(SECRET, clock=api.clock).verify(body["token"])
    user = await api.database.read(find_user, DEFAULT_TENANT, "ada")
    assert user is not None
    assert (identity.user, identity.uid, identity.kind) == (user.key, user.uid, "guest")


async def test_token_for_a_taken_userid_is_refused(api: Api) -> None:
    await api.http.post("/token?userid=ada")
    answer = await api.http.post("/token?userid=ada")
    assert (answer.status_code, answer.json()["code"]) == (409, "userid_taken")


async def test_token_asked_for_again_with_the_same_key_is_that_of_the_same_guest(api: Api) -> None:
    """As after an api that has died between making the guest and answering."""
    key = {"Idempotency-Key": "a secret of the client"}
    first = (await api.http.post("/token?userid=ada", headers=key)).json()["token"]
    again = await api.http.post("/token?userid=ada", headers=key)
    verifier = TokenVerifier(SECRET, clock=api.clock)
    assert verifier.verify(again.json()["token"]).uid == verifier.verify(first).uid
    other = await api.http.post("/token?userid=ada", headers={"Idempotency-Key": "a secret of another"})
    assert (other.status_code, other.json()["code"]) == (409, "userid_taken")
    assert (await api.http.post("/token?userid=bob", headers=key)).status_code == 200


async def test_token_asked_for_with_the_key_of_a_deleted_guest_is_that_of_a_new_one(api: Api) -> None:
    key = {"Idempotency-Key": "a secret of the client"}
    verifier = TokenVerifier(SECRET, clock=api.clock)
    first = verifier.verify((await api.http.post("/token?userid=ada", headers=key)).json()["token"])
    assert first.uid is not None
    await api.database.write(delete_user, first.uid, api.clock())
    second = verifier.verify((await api.http.post("/token?userid=ada", headers=key)).json()["token"])
    assert second.uid != first.uid


async def test_token_asked_for_with_a_key_that_can_be_guessed_is_refused(api: Api) -> None:
    assert (await api.http.post("/token?userid=ada", headers={"Idempotency-Key": "1"})).status_code == 422


@pytest.mark.parametrize("later_seconds", [1, 2 * _WEEK_SECONDS], ids=["valid", "expired"])
async def test_token_for_a_taken_userid_is_issued_to_its_holder(api: Api, later_seconds: int) -> None:
    headers, _ = await api.guest("ada")
    api.clock.now += later_seconds * 1000
    answer = await api.http.post("/token?userid=ada", headers=headers)
    assert answer.status_code == 200
    again = await api.http.get("/conversations", headers=bearer(answer.json()["token"]))
    assert again.status_code == 200


async def test_token_for_a_taken_userid_is_refused_to_another_guest(api: Api) -> None:
    await api.guest("ada")
    headers, _ = await api.guest("eve")
    assert (await api.http.post("/token?userid=ada", headers=headers)).status_code == 409


async def test_token_for_a_taken_userid_is_refused_to_a_forger(api: Api) -> None:
    _, user = await api.guest("ada")
    forged = TokenIssuer("another secret, which signs as well as any").issue(
        user.key, uid=user.uid, kind="guest", lifetime_seconds=60
    )
    assert (await api.http.post("/token?userid=ada", headers=bearer(forged))).status_code == 409


async def test_token_for_a_taken_userid_is_refused_to_the_holder_of_an_earlier_users_token(api: Api) -> None:
    _, user = await api.guest("ada")
    earlier = api.issuer.issue(user.key, uid="0197a000-dead", kind="guest", lifetime_seconds=60)
    assert (await api.http.post("/token?userid=ada", headers=bearer(earlier))).status_code == 409


async def test_token_for_a_free_userid_is_issued_despite_an_unreadable_bearer(api: Api) -> None:
    assert (await api.http.post("/token?userid=ada", headers=bearer("of.another.server"))).status_code == 200


async def test_token_of_an_external_users_name_is_refused(api: Api) -> None:
    user = await api.database.write(ensure_user, DEFAULT_TENANT, "ada", "external", 1)
    assert user is not None
    token = api.issuer.issue(user.key, uid=user.uid, kind="external", lifetime_seconds=60)
    assert (await api.http.post("/token?userid=ada", headers=bearer(token))).status_code == 409


@pytest.mark.parametrize("userid", ["", "a" * 65, "two words", "ada/eve", "ada\x00", "ädä", "a:b", "{a}"])
async def test_token_for_an_odd_userid_is_refused(api: Api, userid: str) -> None:
    answer = await api.http.post("/token", params={"userid": userid})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_userid")


async def test_token_without_userid_is_refused_with_the_reason(api: Api) -> None:
    answer = await api.http.post("/token", data={"username": "ada", "password": "correct horse"})
    assert (answer.status_code, answer.json()["code"]) == (422, "userid_missing")


async def test_tokens_beyond_the_address_limit_are_refused_with_the_wait(folder: Path, valkey: str) -> None:
    async with open_api(folder, valkey, token_rate_limit_max_requests=3) as api:
        answers = [await api.http.post(f"/token?userid=guest-{number}") for number in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


async def test_open_guest_tokens_are_issued_to_anybody(folder: Path, valkey: str) -> None:
    async with open_api(folder, valkey, guest_tokens="open") as api:
        first, second = [await api.http.post("/token?userid=ada") for _ in range(2)]
        assert (first.status_code, second.status_code) == (200, 200)
        account = await api.database.write(ensure_user, DEFAULT_TENANT, "eve", "account", 1)
        assert account is not None
        assert (await api.http.post("/token?userid=eve")).status_code == 409


async def test_guest_tokens_that_are_off_are_refused(folder: Path, valkey: str) -> None:
    async with open_api(folder, valkey, guest_tokens="off") as api:
        answer = await api.http.post("/token?userid=ada")
    assert (answer.status_code, answer.json()["code"]) == (403, "guest_tokens_off")


async def test_token_while_redis_is_away_is_refused_for_now(folder: Path, valkey_server: ValkeyServer) -> None:
    async with open_api(folder, valkey_server.url) as api:
        valkey_server.kill()
        answer = await api.http.post("/token?userid=ada")
        assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"]
        assert await api.database.read(find_user, DEFAULT_TENANT, "ada") is None


async def test_two_askers_of_one_free_userid_get_one_token(api: Api) -> None:
    made = [await api.database.write(create_guest, DEFAULT_TENANT, "ada", number) for number in range(2)]
    assert [user is not None for user in made] == [True, False]


@pytest.mark.parametrize("path", ["/conversations", "/messages", "/characters"])
async def test_request_without_token_is_refused(api: Api, path: str) -> None:
    answer = await api.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Bearer", "Bearer x", "Basic YTpi", "Bearer " + "x" * 10_000])
async def test_request_with_an_odd_authorization_is_refused(api: Api, value: str) -> None:
    answer = await api.http.get("/conversations", headers={"Authorization": value})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")


async def test_request_with_an_expired_token_is_refused(api: Api) -> None:
    headers, _ = await api.guest("ada")
    api.clock.now += _WEEK_SECONDS * 1000
    assert (await api.http.get("/conversations", headers=headers)).status_code == 401


async def test_request_with_a_token_whose_row_is_another_users_is_refused(api: Api) -> None:
    _, user = await api.guest("ada")
    crossed = api.issuer.issue(UserKey(DEFAULT_TENANT, "eve"), uid=user.uid, kind="guest", lifetime_seconds=60)
    assert (await api.http.get("/conversations", headers=bearer(crossed))).status_code == 401


async def test_token_of_a_deleted_user_is_refused_and_the_userid_is_free_again(api: Api) -> None:
    headers, earlier = await api.guest("ada")
    assert await api.database.write(delete_user, earlier.uid, api.clock())
    assert (await api.http.get("/conversations", headers=headers)).status_code == 401
    answer = await api.http.post("/token?userid=ada", headers=headers)
    assert answer.status_code == 200
    later = await api.database.read(find_user, DEFAULT_TENANT, "ada")
    assert later is not None
    assert later.uid != earlier.uid
    assert (await api.http.get("/conversations", headers=headers)).status_code == 401
    assert (await api.http.post("/token?userid=ada", headers=headers)).status_code == 409


async def test_external_token_of_a_deleted_user_is_refused(api: Api) -> None:
    token = external_token("shop-7", api.clock)
    assert (await api.http.get("/conversations", headers=bearer(token))).status_code == 200
    user = await api.database.read(find_user, DEFAULT_TENANT, "shop-7")
    assert user is not None
    assert await api.database.write(delete_user, user.uid, api.clock())
    assert (await api.http.get("/conversations", headers=bearer(token))).status_code == 401


async def test_user_of_a_foreign_signer_is_made_at_the_first_request(api: Api) -> None:
    token = external_token("shop-7", api.clock)
    for _ in range(2):
        answer = await api.http.get("/conversations", headers=bearer(token))
        assert answer.json() == {"items": [], "next_cursor": None}
    user = await api.database.read(find_user, DEFAULT_TENANT, "shop-7")
    assert user is not None
    assert (user.key, user.kind) == (UserKey(DEFAULT_TENANT, "shop-7"), "external")


async def test_users_of_one_name_in_two_tenants_are_two(api: Api) -> None:
    headers, ada = await api.guest("ada")
    await api.say(ada, await api.conversation(ada), "A secret")
    other = bearer(external_token("ada", api.clock, tenant="other"))
    assert len((await api.http.get("/conversations", headers=headers)).json()["items"]) == 1
    assert (await api.http.get("/conversations", headers=other)).json()["items"] == []
    assert (await api.http.get("/messages", headers=other)).json()["items"] == []
