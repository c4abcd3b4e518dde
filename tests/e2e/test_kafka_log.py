"""`duologue up` with Kafka as its log: answers, and a crash that loses and doubles nothing."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from tests.support.model_server import ModelServer
from tests.support.witness import witness

from duologue.bench.system import EmbeddedSystem
from duologue.cluster.kafka import KafkaServer


@pytest.fixture
def system_settings(kafka: KafkaServer) -> dict[str, str]:
    return {
        "USER_RATE_LIMIT_MAX_REQUESTS": "10000",
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": f"{uuid.uuid4()}-",
        "KAFKA_PARTITIONS": "3",
    }


async def test_system_on_kafka_answers_and_after_a_kill_goes_on(
    embedded: EmbeddedSystem, model_server: ModelServer, tmp_path: Path
) -> None:
    async with witness(embedded.url, "ada", tmp_path) as ada, witness(embedded.url, "bob", tmp_path) as bob:
        users = (ada, bob)
        for user in users:
            user.connection.send("hello", client_id=f"{user.name}-0")
        await asyncio.gather(*(user.until_answered(1) for user in users))
        await model_server.configure(tokens=40, tps=40, stamp=True, echo=True)
        for user in users:
            user.connection.send("and now?", client_id=f"{user.name}-1")
        await model_server.until(lambda stats: stats["requests"] >= 4)
        await embedded.kill()
        await embedded.start()
        await asyncio.gather(*(user.until_answered(2) for user in users))
        for user in users:
            assert set(user.outcomes.values()) == {1}
            assert len(user.event_ids) == len(set(user.event_ids))


async def test_system_on_kafka_that_goes_away_takes_messages_when_it_is_back(
    embedded: EmbeddedSystem, kafka: KafkaServer, tmp_path: Path
) -> None:
    async with witness(embedded.url, "ada", tmp_path) as ada:
        ada.connection.send("hello", client_id="ada-0")
        await ada.until_answered(1)
        await asyncio.to_thread(kafka.stop)
        ada.connection.send("are you there?", client_id="ada-1")
        await asyncio.to_thread(kafka.start)
        await ada.until_answered(2)
        assert set(ada.outcomes.values()) == {1}
