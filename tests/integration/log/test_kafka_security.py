"""Signing in to Kafka over TLS by the settings; what is said when that fails."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from tests.support.kafka_tls import USER, Authority, SecureKafka
from tests.support.logs import read, reading

from duologue.config import Settings
from duologue.domain.errors import LogUnavailable
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions

TOPIC = "incoming_messages"


@pytest.fixture(scope="module")
def secure() -> Iterator[SecureKafka]:
    with tempfile.TemporaryDirectory(prefix="duologue-", ignore_cleanup_errors=True) as folder:
        kafka = SecureKafka(Path(folder))
        kafka.start()
        yield kafka
        kafka.server.kill()


def _options(secure: SecureKafka, **changes: str) -> KafkaOptions:
    settings = {
        "kafka_bootstrap_servers": secure.sasl_servers,
        "kafka_topic_prefix": f"{uuid.uuid4()}-",
        "kafka_partitions": "2",
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": USER[0],
        "kafka_sasl_password": USER[1],
        "kafka_ssl_ca_location": str(secure.authority.certificate),
        "log_timeout_seconds": "2",
    }
    return KafkaOptions.of(Settings.model_validate(settings | changes))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_log_signs_in_by_password_over_tls(secure: SecureKafka, mechanism: str) -> None:
    await _append_and_read(_options(secure, kafka_sasl_mechanism=mechanism))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, which writes the client's key as PEM")
async def test_log_signs_in_by_certificate(secure: SecureKafka, tmp_path: Path) -> None:
    secure.client.export_key(tmp_path / "key.pem")
    options = _options(
        secure,
        kafka_bootstrap_servers=secure.tls_servers,
        kafka_security_protocol="SSL",
        kafka_ssl_certificate_location=str(secure.client.certificate),
        kafka_ssl_key_location=str(tmp_path / "key.pem"),
    )
    await _append_and_read(options)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_check_wrong_password_says_so(secure: SecureKafka, mechanism: str) -> None:
    options = _options(secure, kafka_sasl_mechanism=mechanism, kafka_sasl_password="wrong")
    await _assert_refused_quietly(options, "uthentication failed")


async def test_check_certificate_of_an_unknown_authority_says_so(secure: SecureKafka, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    options = _options(secure, kafka_ssl_ca_location=str(other.certificate))
    await _assert_refused_quietly(options, "certificate verify failed")


async def test_check_without_tls_where_kafka_wants_it_says_that_nobody_answers(secure: SecureKafka) -> None:
    await _assert_refused_quietly(_options(secure, kafka_security_protocol="PLAINTEXT"), "Kafka does not answer")


async def _append_and_read(options: KafkaOptions) -> None:
    async with open_kafka_log(options) as log:
        await log.check()
        async with reading(log, TOPIC) as consumer:
            await log.producer.append(TOPIC, "key", b"v", {})
            assert [record.value for record in await read(consumer, 1)] == [b"v"]


async def _assert_refused_quietly(options: KafkaOptions, words: str) -> None:
    """It says why, in the check and in the log, keeps no core busy, and neither password nor loop of lines."""
    with structlog.testing.capture_logs() as logs:
        async with open_kafka_log(options) as log:
            busy = time.process_time()
            await asyncio.sleep(1.0)  # what is tested is what it does meanwhile
            busy = time.process_time() - busy
            with pytest.raises(LogUnavailable, match=words):
                await log.check()
            with pytest.raises(LogUnavailable, match=words):
                async with reading(log, TOPIC):
                    pass
    assert busy < 0.3
    assert any(words in entry["error"] for entry in logs if entry["event"] == "kafka_away")
    assert len(logs) < 12
    assert "a secret" not in str(logs)
