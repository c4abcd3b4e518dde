"""What a topic has to be like so that the log keeps its promises: refused if it breaks one, doubted if it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from duologue.domain.errors import StartRefused
from duologue.log.kafka_options import MAX_RECORD_BYTES, KafkaOptions

LEAST_RECORD_BYTES: Final = 1_040_000
"""The largest record of ours, and what goes with it. Kafka's own default is a little more."""
RETENTION_MS: Final = 7 * 24 * 3600 * 1000


class TopicState(NamedTuple):
    """A topic as Kafka describes it. `topic_id` changes when it is deleted and made again; `replicas` is the least."""

    name: str
    topic_id: str
    partitions: int
    replicas: int


def settings_of_new(options: KafkaOptions) -> Mapping[str, str]:
    """Return the settings of a topic that is made here."""
    return {
        "retention.ms": str(RETENTION_MS),
        "min.insync.replicas": str(options.min_insync_replicas),
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "cleanup.policy": "delete",
        "unclean.leader.election.enable": "false",
    }


def require_shape(topic: TopicState, options: KafkaOptions) -> None:
    """Refuse a topic that others have made otherwise: with the number of partitions every key changes its own.

    Raises:
        StartRefused: see above; the message says what to do.
    """
    if topic.partitions != options.partitions:
        raise StartRefused(
            f"topic {topic.name} has {topic.partitions} partitions, and KAFKA_PARTITIONS is {options.partitions}: set "
            "it to what the topic has, which must never change, or delete the topic"
        )
    if topic.replicas < options.replication_factor:
        raise StartRefused(
            f"topic {topic.name} has {topic.replicas} replicas, KAFKA_REPLICATION_FACTOR is "
            f"{options.replication_factor}: reassign its partitions, or lower the setting"
        )


def require_settings(topic: TopicState, settings: Mapping[str, str], options: KafkaOptions) -> None:
    """Refuse settings by which an acknowledged record can be lost, or some or none can be written.

    Raises:
        StartRefused: see above; the message says what to do.
    """
    in_sync = int(settings["min.insync.replicas"])
    if in_sync < options.min_insync_replicas:
        raise StartRefused(
            f"topic {topic.name} acknowledges what {in_sync} of its replicas have, and {options.min_insync_replicas} "
            f"are wanted: set its min.insync.replicas to that, or KAFKA_MIN_INSYNC_REPLICAS to {in_sync}"
        )
    if in_sync > topic.replicas:
        raise StartRefused(
            f"topic {topic.name} has {topic.replicas} replicas and min.insync.replicas {in_sync}: nothing can be "
            "written; lower the one or add to the other"
        )
    if int(settings["max.message.bytes"]) < LEAST_RECORD_BYTES:
        raise StartRefused(
            f"topic {topic.name} takes records of {settings['max.message.bytes']} bytes at most, and a long reply is "
            f"larger: set its max.message.bytes to {MAX_RECORD_BYTES}, {LEAST_RECORD_BYTES} at least"
        )
    if "compact" in settings["cleanup.policy"]:
        raise StartRefused(
            f"topic {topic.name} is compacted, which removes a conversation's earlier records unread: set its "
            "cleanup.policy to delete"
        )


def doubts(settings: Mapping[str, str]) -> Sequence[str]:
    """Return what an operator may have meant, and should know of."""
    found = []
    retention, size = int(settings["retention.ms"]), int(settings["retention.bytes"])
    if 0 <= retention < RETENTION_MS:
        found.append(f"retention.ms {retention} is less than 7 days: records unread for that long are lost")
    if size >= 0:
        found.append(f"retention.bytes {size}: records beyond that are lost, read or not")
    if int(settings["max.message.bytes"]) < MAX_RECORD_BYTES:
        found.append(f"max.message.bytes is less than {MAX_RECORD_BYTES}: large replies are refused")
    if settings["unclean.leader.election.enable"] == "true":
        found.append("unclean.leader.election.enable: acknowledged records are lost with such an election")
    return found
