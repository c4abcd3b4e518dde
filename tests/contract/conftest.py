"""The logs that the contract is held against, each on an engine of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from tests.support.logs import LogUnderTest

from duologue.cluster.kafka import KafkaServer
from duologue.cluster.valkey import ValkeyServer
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.valkey_lock import LockTimes
from duologue.log.valkey_streams import open_streams_log

_TIMEOUT_SECONDS = 1.0
_KAFKA_TIMEOUT_SECONDS = 6.0  # also for a megabyte on a topic that was just made, on a busy machine
_LOCK_TIMES = LockTimes(valid_seconds=2.0, renew_seconds=0.2, wait_seconds=0.5)


def _streams(request: pytest.FixtureRequest) -> LogUnderTest:
    server: ValkeyServer = request.getfixturevalue("valkey_server")
    return LogUnderTest(
        open=lambda: open_streams_log(
            server.url, takeover=False, timeout_seconds=_TIMEOUT_SECONDS, lock_times=_LOCK_TIMES
        ),
        open_successor=lambda: open_streams_log(
            server.url, takeover=True, timeout_seconds=_TIMEOUT_SECONDS, lock_times=_LOCK_TIMES
        ),
        engine=server,
        append_timeout_seconds=_TIMEOUT_SECONDS,
        one_consumer_only=True,
    )


def _kafka(request: pytest.FixtureRequest) -> LogUnderTest:
    """Its consumers are static members with one id, so that a successor takes over from one that is not dead."""
    server: KafkaServer = request.getfixturevalue("kafka")
    options = KafkaOptions(
        bootstrap_servers=server.bootstrap_servers,
        partitions=3,
        topic_prefix=f"{uuid.uuid4()}-",
        timeout_seconds=_KAFKA_TIMEOUT_SECONDS,
        session_timeout_seconds=30.0,  # an absence, with the broker's start, takes longer than the default
        instance_id="contract",
    )
    return LogUnderTest(
        open=lambda: open_kafka_log(options),
        open_successor=lambda: open_kafka_log(options),
        engine=server,
        append_timeout_seconds=_KAFKA_TIMEOUT_SECONDS,
        one_consumer_only=False,
    )


_ADAPTERS: dict[str, Callable[[pytest.FixtureRequest], LogUnderTest]] = {"streams": _streams, "kafka": _kafka}


@pytest.fixture(params=list(_ADAPTERS))
def logs(request: pytest.FixtureRequest) -> LogUnderTest:
    """The adapter under test, on a running engine that holds nothing yet."""
    return _ADAPTERS[request.param](request)
