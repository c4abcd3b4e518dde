"""What a client says of its typing reaches the user's other devices, and nobody else."""

from __future__ import annotations

from pathlib import Path

from tests.support.edge import Edge, eventually, running_edge, user

from duologue.cluster.valkey import ValkeyServer
from duologue.websocket_server.typing_notices import TYPING_BURST

_LAST = b'{"type":"other"}'


async def test_typing_reaches_the_other_sockets_on_every_server_and_not_its_own(valkey: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with (
        running_edge(valkey, tmp_path) as here,
        running_edge(valkey, tmp_path / "other") as there,
        here.connect(await here.token("ann")) as sender,
        here.connect(here.external_token("ann")) as neighbour,
        there.connect(await there.token("ann")) as far,
        here.connect(await here.token("bob")) as bob,
    ):
        conversation = sender.connection["conversation_id"]
        for active in (True, False):
            await sender.send(type="typing", conversation_id=conversation, active=active)
        for client in (neighbour, far):
            for active in (True, False):
                assert await client.receive() == {
                    "type": "typing",
                    "role": "user",
                    "conversation_id": conversation,
                    "active": active,
                }
        for name in ("ann", "bob"):
            await here.streams.publish(user(name), _LAST)
        for client in (sender, bob):  # nothing before it, nor a greeting for a gap
            assert (await client.receive())["type"] == "other"


async def test_typing_in_a_conversation_that_is_not_the_users_is_refused(edge: Edge) -> None:
    async with edge.connect(await edge.token("bob")) as other, edge.connect(await edge.token("ann")) as client:
        for conversation in (other.connection["conversation_id"], "made-up"):
            await client.send(type="typing", conversation_id=conversation, active=True)
            error = await client.receive()
            assert (error["code"], error["temporary"]) == ("conversation_not_found", False)
            assert "id" not in error


async def test_typing_too_often_is_dropped_without_a_word(edge: Edge) -> None:
    token = await edge.token("ann")
    async with edge.connect(token) as sender, edge.connect(token) as other:
        for _ in range(TYPING_BURST * 20):
            await sender.send(type="typing", conversation_id=sender.connection["conversation_id"], active=True)
        await sender.ping()
        await edge.streams.publish(user("ann"), _LAST)
        told = 0
        while (await other.receive())["type"] == "typing":
            told += 1
        assert TYPING_BURST <= told < TYPING_BURST * 3  # some more a second
        assert (await sender.receive())["type"] == "other"


async def test_typing_while_redis_is_away_is_lost_and_the_socket_lives(
    valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with running_edge(valkey_server.url, tmp_path) as edge, edge.connect(await edge.token("ann")) as client:
        conversation = client.connection["conversation_id"]
        valkey_server.stop()
        await eventually(lambda: not edge.streams.connected)
        await client.send(type="typing", conversation_id=conversation, active=True)
        await client.send(type="ping", id="p")
        assert (await client.receive())["type"] == "pong"
        valkey_server.start()
        await eventually(lambda: edge.streams.connected)
