"""Dead letters of a whole system, as its operator works on them: `duologue dlq` in either mode."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.support.model_server import ModelServer
from tests.support.socket_client import Client, connected
from tests.support.users import guest, unique

from duologue.bench.distributed import DistributedSystem
from duologue.bench.system import EmbeddedSystem, System
from duologue.domain.records import INCOMING_TOPIC
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import LogProducer
from duologue.log.valkey_streams import open_streams_log


def _environment(system: System) -> Mapping[str, str]:
    """Return the environment of an operator: that of the server itself, or an address and the key."""
    if isinstance(system, EmbeddedSystem):
        return {"DATA_DIR": str(system.data_dir), "PORT": str(system.port)}
    return {"DUOLOGUE_URL": system.url, "JWT_SECRET": system.jwt_secret}


async def _dlq(system: System, *arguments: str) -> Any:
    """Run `duologue dlq … --json`; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "duologue.cli", "dlq", *arguments, "--json"),
        stdout=asyncio.subprocess.PIPE,
        env=_environment(system),
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(printed)


@asynccontextmanager
async def _log_of(system: System) -> AsyncIterator[LogProducer]:
    """Open the log of a system as a foreign writer would."""
    if isinstance(system, EmbeddedSystem):
        async with open_streams_log(f"unix://{system.data_dir}/valkey/valkey.sock", takeover=False) as streams:
            yield streams.producer
        return
    assert isinstance(system, DistributedSystem)
    given = system._environment
    options = KafkaOptions(
        given["KAFKA_BOOTSTRAP_SERVERS"],
        partitions=int(given["KAFKA_PARTITIONS"]),
        topic_prefix=given["KAFKA_TOPIC_PREFIX"],
    )
    async with open_kafka_log(options) as kafka:
        yield kafka.producer


async def _outcome(client: Client, content: str) -> dict[str, Any]:
    await client.send(type="message", id=content, content=content)
    return await _next_outcome(client)


async def _next_outcome(client: Client) -> dict[str, Any]:
    while (frame := await client.receive())["type"] not in ("response", "error"):
        pass
    return frame


async def test_replay_of_a_reply_that_failed_gives_the_user_the_answer_as_generation_2(
    system: System, model_server: ModelServer
) -> None:
    name = unique("ada")
    async with connected(system.ws_url, await guest(system.url, name)) as client:
        await model_server.configure(rate_500=1.0)
        failure = await _outcome(client, "hello")
        assert (failure["code"], failure["attempt"]) == ("generation_failed", 1)
        await model_server.configure(rate_500=0.0)
        [letter] = (await _dlq(system, "list", "--user", name))["items"]
        assert (letter["message_id"], letter["state"], letter["tries"]) == (failure["message_id"], "open", 1)
        shown = await _dlq(system, "show", letter["id"])
        assert shown["json"]["content"] == "hello"
        [done] = (await _dlq(system, "replay", letter["id"]))["items"]
        assert done["state"] == "replayed"
        answer = await _next_outcome(client)
        assert answer["type"] == "response"
        assert (answer["message_id"], answer["generation"]) == (failure["message_id"], 2)
        assert answer["attempt"] > failure["attempt"]
        assert (await _outcome(client, "and now?"))["type"] == "response"
    assert (await _dlq(system, "list", "--user", name))["items"] == []


async def test_garbage_on_the_log_between_two_messages_is_set_aside(system: System, model_server: ModelServer) -> None:
    del model_server  # it answers
    async with connected(system.ws_url, await guest(system.url)) as client, _log_of(system) as foreign:
        assert (await _outcome(client, "before"))["type"] == "response"
        conversation_id = client.connection["conversation_id"]
        for value in (b"\xff\x00 no record", b'{"v":99}', b"x" * 1_500_000):
            await foreign.append(INCOMING_TOPIC, conversation_id, value, {"of": "a foreign writer"})
        assert (await _outcome(client, "after"))["type"] == "response"
    letters = await _unreadable(system, conversation_id, 3)
    assert sorted(letter["size"] for letter in letters) == [8, 12, 1_500_000]
    dropped = await _dlq(system, "drop", "--yes", *(letter["id"] for letter in letters))
    assert [each["state"] for each in dropped["items"]] == ["dropped"] * 3


async def _unreadable(system: System, key: str, count: int) -> list[dict[str, Any]]:
    """Return that many letters of records with that key, as soon as they are kept."""
    async with asyncio.timeout(20):
        while True:
            listed = (await _dlq(system, "list", "--cause", "unreadable"))["items"]
            if len(found := [letter for letter in listed if letter["key"] == key]) == count:
                return found
