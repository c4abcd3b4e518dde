"""How settings become the configuration of Kafka's clients, and what becomes of their log lines."""

from __future__ import annotations

import pytest
import structlog

from duologue.config import Settings
from duologue.log.kafka_options import ClientLog, KafkaOptions


def _options(**settings: object) -> KafkaOptions:
    return KafkaOptions.of(Settings.model_validate({"kafka_bootstrap_servers": "broker:9092", **settings}))


@pytest.mark.parametrize(("replicas", "given", "expected"), [(1, 0, 1), (3, 0, 2), (3, 1, 1), (2, 2, 2)])
def test_options_min_insync_replicas_are_all_but_one_unless_set(replicas: int, given: int, expected: int) -> None:
    options = _options(kafka_replication_factor=replicas, kafka_min_insync_replicas=given)
    assert options.min_insync_replicas == expected


def test_client_without_security_settings_names_the_protocol_alone() -> None:
    client = _options().client()
    assert client["security.protocol"] == "PLAINTEXT"
    assert not [name for name in client if name.startswith(("sasl.", "ssl."))]


def test_client_with_sasl_over_tls_passes_everything_on() -> None:
    client = _options(
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-256",
        kafka_sasl_username="user",
        kafka_sasl_password="very secret",
        kafka_ssl_ca_location="/etc/ca.pem",
    ).client()
    expected = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "user",
        "sasl.password": "very secret",
        "ssl.ca.location": "/etc/ca.pem",
    }
    assert expected.items() <= client.items()


def test_options_shown_keep_their_secrets() -> None:
    assert "very secret" not in repr(_options(kafka_security_protocol="SASL_SSL", kafka_sasl_password="very secret"))


@pytest.mark.parametrize(("timeout", "message_ms"), [(5.0, 4000), (1.0, 500)])
def test_producer_gives_a_message_up_before_its_callers_time_is_over(timeout: float, message_ms: int) -> None:
    assert _options(log_timeout_seconds=timeout).producer()["message.timeout.ms"] == message_ms


def test_consumer_is_of_the_classic_protocol_and_commits_by_hand() -> None:
    consumer = _options(kafka_topic_prefix="mine-").consumer("group")
    expected = {
        "group.id": "mine-group",
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 6000,
        "enable.auto.commit": False,
    }
    assert expected.items() <= consumer.items()
    assert "group.instance.id" not in consumer


def test_client_log_same_facility_again_is_left_out_for_a_while() -> None:
    with structlog.testing.capture_logs() as logs:
        log = ClientLog()
        for _ in range(50):
            log.log(40, "%s [%s] %s", "FAIL", "client", "Connection refused")
        log.log(20, "%s [%s] %s", "OTHER", "client", "something else")
    assert [entry["message"] for entry in logs] == ["FAIL [client] Connection refused", "OTHER [client] something else"]
    assert logs[0]["log_level"] == "warning"
