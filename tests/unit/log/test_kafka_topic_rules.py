"""Which topics are refused, and of which an operator is warned."""

from __future__ import annotations

import pytest

from duologue.domain.errors import StartRefused
from duologue.log.kafka_options import KafkaOptions
from duologue.log.kafka_topic_rules import TopicState, doubts, require_settings, require_shape, settings_of_new

OPTIONS = KafkaOptions("broker:9092", partitions=12, replication_factor=3, min_insync_replicas=2)
TOPIC = TopicState("responses", "id", partitions=12, replicas=3)
SETTINGS = {**settings_of_new(OPTIONS), "retention.bytes": "-1"}


def test_topic_made_here_is_neither_refused_nor_doubted() -> None:
    require_shape(TOPIC, OPTIONS)
    require_settings(TOPIC, SETTINGS, OPTIONS)
    assert list(doubts(SETTINGS)) == []


@pytest.mark.parametrize(
    ("partitions", "replicas", "words"),
    [(11, 3, "has 11 partitions"), (12, 2, "has 2 replicas, KAFKA_REPLICATION_FACTOR is 3")],
)
def test_topic_of_another_shape_is_refused(partitions: int, replicas: int, words: str) -> None:
    with pytest.raises(StartRefused, match=words):
        require_shape(TOPIC._replace(partitions=partitions, replicas=replicas), OPTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min.insync.replicas": "1"}, "KAFKA_MIN_INSYNC_REPLICAS to 1"),
        ({"min.insync.replicas": "4"}, "nothing can be written"),
        ({"cleanup.policy": "compact,delete"}, "is compacted"),
        ({"max.message.bytes": "1000000"}, "set its max.message.bytes"),
    ],
)
def test_topic_that_can_lose_or_refuse_what_was_accepted_is_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(StartRefused, match=words):
        require_settings(TOPIC, {**SETTINGS, **change}, OPTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retention.ms": "3600000"}, "less than 7 days"),
        ({"retention.bytes": "1000000"}, "retention.bytes"),
        ({"max.message.bytes": "1048588"}, "large replies"),
        ({"unclean.leader.election.enable": "true"}, "unclean"),
    ],
)
def test_topic_with_doubtful_setting_is_taken_with_a_warning(change: dict[str, str], words: str) -> None:
    settings = {**SETTINGS, **change}
    require_settings(TOPIC, settings, OPTIONS)
    [doubt] = doubts(settings)
    assert words in doubt


def test_topic_kept_for_ever_is_not_doubted() -> None:
    assert list(doubts({**SETTINGS, "retention.ms": "-1"})) == []
