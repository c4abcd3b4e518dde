"""A log on Kafka of the test's own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from duologue.cluster.kafka import KafkaServer
from duologue.log.kafka import KafkaLog, open_kafka_log
from duologue.log.kafka_options import KafkaOptions


@pytest.fixture
def options(kafka: KafkaServer) -> KafkaOptions:
    return KafkaOptions(
        kafka.bootstrap_servers, partitions=4, topic_prefix=f"{uuid.uuid4()}-", timeout_seconds=3.0, client_id="test"
    )


@pytest.fixture
async def log(options: KafkaOptions) -> AsyncIterator[KafkaLog]:
    async with open_kafka_log(options) as log:
        yield log
