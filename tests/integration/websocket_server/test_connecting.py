"""Connecting: who it is, which conversation, and the codes of what is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.support.edge import Edge, running_edge
from tests.support.socket_client import Client
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from duologue.cluster.valkey import ValkeyServer
from duologue.domain.clock import wall_clock
from duologue.domain.ids import UserKey
from duologue.store.characters import DEFAULT_CHARACTER_ID
from duologue.store.deletion import delete_user
from duologue.store.users import find_user


async def _refused(client: Client) -> tuple[str, int]:
    error = await client.receive()
    assert error["type"] == "error"
    return error["code"], await client.closed()


async def test_connection_frame_tells_who_where_and_what_is_allowed(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann")) as client:
        frame = client.connection
    assert (frame["userid"], frame["username"], frame["character_id"]) == ("ann", "ann", DEFAULT_CHARACTER_ID)
    assert (frame["protocol"], frame["server_id"]) == (1, edge.settings.server_id)
    assert frame["limits"] == {
        "frame_bytes": 65536,
        "content_characters": 8000,
        "connections_per_user": 10,
        "send_queue_bytes": 1048576,
        "metadata_bytes": 1024,
        "messages": 60,
        "messages_window_seconds": 60,
    }
    assert set(frame) == {
        "type", "message", "session_id", "userid", "username", "character_id", "conversation_id", "server_id",
        "protocol", "features", "server_time", "limits", "recovered", "event_id",
    }  # fmt: skip


async def test_token_is_taken_from_query_header_or_subprotocol(edge: Edge) -> None:
    token = await edge.token("ann")
    ways: list[dict[str, Any]] = [
        {"uri": f"{edge.url}/ws?token={token}&userid=ann"},
        {"uri": f"{edge.url}/ws", "additional_headers": {"Authorization": f"Bearer {token}"}},
        {"uri": f"{edge.url}/ws", "subprotocols": [Subprotocol("bearer"), Subprotocol(token)]},
    ]
    for way in ways:
        async with connect(**way) as socket:
            assert (await Client(socket).receive())["userid"] == "ann"


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ([], None),
        (["duologue.v1"], "duologue.v1"),
        (["other"], None),
        (["duologue.v1", "bearer", "{token}"], "bearer"),
    ],
)
async def test_subprotocol_bearer_goes_before_the_protocol_name(
    edge: Edge, offered: list[str], selected: str | None
) -> None:
    token = await edge.token("ann")
    names = [Subprotocol(name.format(token=token)) for name in offered]
    async with connect(f"{edge.url}/ws?token={token}", subprotocols=names or None) as socket:
        assert (await Client(socket).receive())["type"] == "connection"
        assert socket.subprotocol == selected


@pytest.mark.parametrize("token", ["", "nonsense", "x" * 5000, "a.b.c"])
async def test_token_that_is_none_closes_with_4401_after_an_error(edge: Edge, token: str) -> None:
    async with connect(f"{edge.url}/ws?token={token}") as socket:
        assert await _refused(Client(socket)) == ("invalid_token", 4401)


async def test_expired_token_closes_with_4401_and_selects_bearer(edge: Edge) -> None:
    token = await edge.token("ann", lifetime_seconds=-1)
    async with edge.connect(token, greeted=False) as client:
        assert client.socket.subprotocol == "bearer"
        assert await _refused(client) == ("invalid_token", 4401)


async def test_token_of_another_user_closes_with_4403(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann"), greeted=False, userid="bob") as client:
        error = await client.receive()
        assert (error["code"], error["userid"], error["temporary"]) == ("userid_mismatch", "bob", False)
        assert await client.closed() == 4403


async def test_token_of_a_deleted_user_closes_with_4401(edge: Edge) -> None:
    token = await edge.token("ann")
    ann = await edge.database.read(find_user, "default", "ann")
    assert ann is not None
    await edge.database.write(delete_user, ann.uid, wall_clock())
    for bearer in (token, edge.external_token("ann")):
        async with edge.connect(bearer, greeted=False) as client:
            assert await _refused(client) == ("invalid_token", 4401)


async def test_token_without_uid_makes_its_user_once(edge: Edge) -> None:
    conversations = set()
    for _ in range(2):
        async with edge.connect(edge.external_token("carol")) as client:
            conversations.add(client.connection["conversation_id"])
    assert len(conversations) == 1
    carol = await edge.database.read(find_user, "default", "carol")
    assert carol is not None
    assert carol.kind == "external"


async def test_character_is_found_by_slug_and_id(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token, "/ws/creative") as client:
        by_slug = client.connection
    async with edge.connect(token, f"/ws/{by_slug['character_id']}") as client:
        by_id = client.connection
    async with edge.connect(token) as client:
        plain = client.connection
    assert by_id["conversation_id"] == by_slug["conversation_id"] != plain["conversation_id"]
    assert plain["character_id"] == DEFAULT_CHARACTER_ID != by_slug["character_id"]


async def test_character_that_is_not_there_is_refused(edge: Edge) -> None:
    async with edge.connect(await edge.token("ann"), "/ws/nobody", greeted=False) as client:
        assert await _refused(client) == ("character_not_found", 1008)


async def test_conversation_new_is_another_each_time_and_can_be_named_again(edge: Edge) -> None:
    token = await edge.token("ann")
    found = []
    for _ in range(2):
        async with edge.connect(token, "/ws/creative", conversation_id="new") as client:
            found.append(client.connection)
    assert found[0]["conversation_id"] != found[1]["conversation_id"]
    async with edge.connect(token, conversation_id=found[0]["conversation_id"]) as client:
        assert client.connection["conversation_id"] == found[0]["conversation_id"]
        assert client.connection["character_id"] == found[0]["character_id"]


async def test_conversation_of_another_user_is_not_told_from_one_that_is_not_there(edge: Edge) -> None:
    async with edge.connect(await edge.token("bob")) as client:
        theirs = client.connection["conversation_id"]
    token = await edge.token("ann")
    for conversation_id in (theirs, "made-up"):
        async with edge.connect(token, greeted=False, conversation_id=conversation_id) as client:
            assert await _refused(client) == ("conversation_not_found", 1008)


async def test_redis_away_is_service_unavailable_and_1013(valkey_server: ValkeyServer, tmp_path: Path) -> None:
    async with running_edge(valkey_server.url, tmp_path) as edge:
        token = await edge.token("ann")
        valkey_server.stop()
        async with edge.connect(token, greeted=False) as client:
            error = await client.receive()
            assert (error["code"], error["temporary"]) == ("service_unavailable", True)
            assert error["retry_after"] > 0
            assert await client.closed() == 1013
        valkey_server.start()


async def test_store_away_is_service_unavailable_and_1013(valkey: str, tmp_path: Path) -> None:
    async with running_edge(valkey, tmp_path) as edge:
        token = await edge.token("ann")
        backup = sqlite3.connect(tmp_path / "edge.db", isolation_level=None)
        try:
            backup.execute("BEGIN IMMEDIATE")  # for longer than a transaction waits
            async with edge.connect(token, greeted=False) as client:
                assert await _refused(client) == ("service_unavailable", 1013)
        finally:
            backup.close()


async def test_token_whose_row_is_another_users_closes_with_4401(edge: Edge) -> None:
    for name in ("ann", "bob"):
        await edge.token(name)
    bob = await edge.database.read(find_user, "default", "bob")
    assert bob is not None
    for key, uid in ((UserKey("default", "ann"), bob.uid), (bob.key, "made-up"), (UserKey("other", "bob"), bob.uid)):
        crossed = edge.issuer.issue(key, uid=uid, kind="guest", lifetime_seconds=60)
        async with edge.connect(crossed, greeted=False) as client:
            assert await _refused(client) == ("invalid_token", 4401)


async def test_token_of_an_earlier_user_of_the_name_closes_with_4401(edge: Edge) -> None:
    earlier = await edge.token("ann")
    ann = await edge.database.read(find_user, "default", "ann")
    assert ann is not None
    await edge.database.write(delete_user, ann.uid, wall_clock())
    later = await edge.token("ann")
    async with edge.connect(earlier, greeted=False) as client:
        assert await _refused(client) == ("invalid_token", 4401)
    async with edge.connect(later) as client:
        await client.send(type="auth", token=earlier)
        assert (await client.receive())["code"] == "invalid_token"
        await client.ping()


async def test_users_of_one_name_in_two_tenants_hear_and_own_nothing_of_each_other(edge: Edge) -> None:
    tokens = [edge.external_token("ann"), edge.external_token("ann", tenant="other")]
    async with edge.connect(tokens[0]) as here, edge.connect(tokens[1]) as there:
        mine, theirs = here.connection["conversation_id"], there.connection["conversation_id"]
        assert mine != theirs
        await edge.streams.publish(UserKey("other", "ann"), b'{"type":"other"}')
        assert (await there.receive())["type"] == "other"
        await there.send(type="message", id="one", content="Hello", conversation_id=mine)
        assert (await there.receive())["code"] == "conversation_not_found"
        ids = set()
        for client in (here, there):
            await client.send(type="message", id="one", content="Hello")
            ids.add((await client.receive())["message_id"])
        assert len(ids) == 2
        records = await edge.records(2)
    assert [record.tenant for record in records] == ["default", "other"]
