"""The topics on Kafka: made if they are missing, refused if they are not as this program needs them, and watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import ListOffsetsResultInfo, OffsetSpec
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.admin._topic import TopicDescription
from confluent_kafka.cimpl import NewTopic

from duologue.domain.errors import LogUnavailable, StartRefused
from duologue.domain.records import DEAD_LETTER_SUFFIX, INCOMING_TOPIC, RESPONSES_TOPIC
from duologue.log.kafka_options import KafkaOptions
from duologue.log.kafka_topic_rules import TopicState, doubts, require_settings, require_shape, settings_of_new
from duologue.log.port import Partition
from duologue.observability.metrics import LOOP_FAILURES

_log = structlog.get_logger(__name__)

TOPICS: Final = tuple(
    topic + suffix for topic in (INCOMING_TOPIC, RESPONSES_TOPIC) for suffix in ("", DEAD_LETTER_SUFFIX)
)
_CHECK_SECONDS: Final = 1.5
"""Less than `/ready` gives a check, so that it says what is wrong and not only that it took too long."""
_CREATE_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.5
_REPEAT_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.02
_EARLIEST: Final[Any] = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Final[Any] = OffsetSpec.latest()  # type: ignore[no-untyped-call]

_REFUSED: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.POLICY_VIOLATION,
        KafkaError.TOPIC_EXCEPTION,
    }
)
_UNSEEN: Final = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})


class _Client(Protocol):
    def list_topics(self, topic: str, timeout: float) -> ClusterMetadata: ...


class KafkaTopics:
    """Prepares and watches the topics. Its calls to librdkafka block, so they are made in threads.

    `explain` gives the words for an error of librdkafka's: the calls that fail say only that nobody answered in time.
    """

    def __init__(self, options: KafkaOptions, *, explain: Callable[[KafkaError], str]) -> None:
        self._options = options
        self._explain = explain
        self._admin = AdminClient(options.client())
        self._lock = asyncio.Lock()
        self._states: Mapping[str, TopicState] = {}
        self._new: set[str] = set()
        self._trouble = "Kafka's topics have not been looked at"
        self._complaint = ""
        self._quiet_until = 0.0

    async def prepare(self, seconds: float = _CHECK_SECONDS) -> None:
        """Make the topics that are missing and check all, once; it tries for `seconds`, and a little longer.

        Raises:
            LogUnavailable: Kafka does not answer, or cannot make a topic now.
            StartRefused: a topic is not as this program needs it, or may not be made by it.
        """
        async with self._lock:
            if self._states:
                return
            try:
                self._states = await asyncio.to_thread(self._prepare, time.monotonic() + seconds)
            except (LogUnavailable, StartRefused) as error:
                self._trouble = str(error)
                raise

    async def check(self, client: _Client) -> None:
        """Return if the topics are right, Kafka answers a client and the first has leaders. Raises LogUnavailable."""
        if not self._states:
            raise LogUnavailable(self._trouble)
        await asyncio.to_thread(self._check, client)

    async def ends(self, partitions: Sequence[Partition]) -> Mapping[Partition, tuple[int, int]]:
        """Return for each partition the offset of its first record, and the one after its last. Raises LogUnavailable.

        A consumer is not asked: to a broker from which it waits for records it sends nothing else meanwhile.
        """
        return await asyncio.to_thread(self._ends, partitions)

    async def watch(self, on_remade: Callable[[str], None]) -> None:
        """Prepare the topics however late Kafka comes, and see that they stay; ends by being cancelled.

        Args:
            on_remade: is called with a topic that was deleted and made again, by others or, if they leave it, by this.
        """
        ids: Mapping[str, str] = {}
        while True:
            pause = _WATCH_SECONDS
            try:
                await self._look()
            except (LogUnavailable, StartRefused) as error:
                self._complain(error)
                pause = _RETRY_SECONDS if isinstance(error, LogUnavailable) else _WATCH_SECONDS
            except Exception:  # noqa: BLE001  # the edge of this loop: reported and repeated
                LOOP_FAILURES.labels("kafka-topics").inc()
                _log.exception("kafka_topics_failed")
            else:
                before, ids = ids, {topic: state.topic_id for topic, state in self._states.items()}
                for topic in [topic for topic in before if before[topic] != ids[topic]]:
                    _log.error("kafka_topic_remade", topic=topic, lost="every record on it that was not done")
                    on_remade(topic)
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        """Prepare the topics, or see whether they are still the same."""
        if self._states:
            if await asyncio.to_thread(self._describe) == self._states:
                return
            self._states, self._trouble = {}, "Kafka's topics have changed"
        await self.prepare()

    def _complain(self, error: Exception) -> None:
        """Log what is wrong: at once if it is news, else now and then."""
        now = time.monotonic()
        if str(error) == self._complaint and now < self._quiet_until:
            return
        self._complaint, self._quiet_until = str(error), now + _REPEAT_SECONDS
        if isinstance(error, StartRefused):
            _log.error("kafka_topics_refused", error=str(error))
        else:
            _log.warning("kafka_away", error=str(error))

    # In a thread

    def _check(self, client: _Client) -> None:
        name = self._name(TOPICS[0])
        try:
            topic = client.list_topics(name, timeout=_CHECK_SECONDS).topics[name]
        except KafkaException as error:
            raise self._no_answer(error) from error
        if topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise LogUnavailable(f"Kafka has no topic {name}")
        if topic.error is not None:
            raise LogUnavailable(f"Kafka does not tell about {name}: {topic.error.str()}")
        without = sorted(number for number, partition in topic.partitions.items() if partition.leader < 0)
        if without:
            raise LogUnavailable(f"partitions of {name} have no leader: {without}")

    def _prepare(self, deadline: float) -> Mapping[str, TopicState]:
        """Try until the deadline. A request has little time each: one that finds no broker does not look for others."""
        while True:
            try:
                return self._prepare_once()
            except LogUnavailable:
                if time.monotonic() + _PAUSE_SECONDS >= deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _prepare_once(self) -> Mapping[str, TopicState]:
        found = self._describe()
        if missing := [topic for topic, state in found.items() if state is None]:
            self._new.update(missing)
            self._create(missing)
        for topic in sorted(self._new):
            found[topic] = self._describe_new(topic)
            self._new.discard(topic)
        states = {topic: state for topic, state in found.items() if state is not None}
        for state in states.values():
            require_shape(state, self._options)
        self._check_settings(list(states.values()))
        return states

    def _describe(self) -> dict[str, TopicState | None]:
        """Describe the topics, None for one that is missing."""
        try:
            # Only this asks whichever broker answers; what follows would wait for a controller that nobody looks for.
            cluster = self._admin.list_topics(self._name(TOPICS[0]), timeout=_CHECK_SECONDS)
        except KafkaException as error:
            raise self._no_answer(error) from error
        if not cluster.brokers:
            raise LogUnavailable("Kafka has no broker at work")
        names = TopicCollection([self._name(topic) for topic in TOPICS])
        asked = self._admin.describe_topics(names, request_timeout=_CHECK_SECONDS)
        return {topic: self._state(topic, asked[self._name(topic)]) for topic in TOPICS}

    def _state(self, topic: str, asked: Future[TopicDescription]) -> TopicState | None:
        try:
            found = asked.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            if error.args[0].code() in _UNSEEN:
                raise LogUnavailable(f"Kafka does not tell about {self._name(topic)}: {error.args[0].str()}") from error
            raise self._no_answer(error) from error
        replicas = min((len(partition.replicas) for partition in found.partitions), default=0)
        return TopicState(found.name, str(found.topic_id), len(found.partitions), replicas)

    def _describe_new(self, topic: str) -> TopicState:
        """Describe a topic that was just made, perhaps by another process, once each partition can be read.

        Brokers hear of a topic, and begin to lead its partitions, a moment after it was made. A consumer that asks too
        early is told to look for another leader, and asks again only after half a second, and reads after another.
        """
        deadline = time.monotonic() + self._options.timeout_seconds
        while time.monotonic() < deadline:
            state = self._describe()[topic]
            if state is not None and self._can_be_read(state):
                return state
            time.sleep(_PAUSE_SECONDS)
        raise LogUnavailable(f"Kafka does not lead {self._name(topic)} yet, which was just made")

    def _can_be_read(self, topic: TopicState) -> bool:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        return all(each.exception() is None for each in self._ask_offsets(partitions, _LATEST).values())

    def _ends(self, partitions: Sequence[Partition]) -> Mapping[Partition, tuple[int, int]]:
        named = {partition: TopicPartition(self._name(partition.topic), partition.number) for partition in partitions}
        if not named:
            return {}
        first, last = (self._ask_offsets(list(named.values()), which) for which in (_EARLIEST, _LATEST))
        try:
            return {each: (first[name].result().offset, last[name].result().offset) for each, name in named.items()}
        except KafkaException as error:
            raise self._no_answer(error) from error

    def _ask_offsets(
        self, partitions: Sequence[TopicPartition], which: Any
    ) -> Mapping[TopicPartition, Future[ListOffsetsResultInfo]]:
        return self._admin.list_offsets(dict.fromkeys(partitions, which), request_timeout=_CHECK_SECONDS)

    def _create(self, topics: Sequence[str]) -> None:
        """Make topics, side by side with other processes that do the same."""
        new = [self._with_settings(topic) for topic in topics]
        for name, made in self._admin.create_topics(new, request_timeout=_CREATE_SECONDS).items():
            try:
                made.result()
                _log.info("kafka_topic_made", topic=name, partitions=self._options.partitions)
            except KafkaException as error:
                _raise_unless_there(name, error.args[0])

    def _with_settings(self, topic: str) -> NewTopic:
        return NewTopic(
            self._name(topic),
            num_partitions=self._options.partitions,
            replication_factor=self._options.replication_factor,
            config=dict(settings_of_new(self._options)),
        )

    def _check_settings(self, topics: Sequence[TopicState]) -> None:
        resources = {topic: ConfigResource(ConfigResource.Type.TOPIC, topic.name) for topic in topics}
        asked: Mapping[ConfigResource, Future[Mapping[str, Any]]] = self._admin.describe_configs(
            list(resources.values()), request_timeout=_CHECK_SECONDS
        )
        for topic, resource in resources.items():
            try:
                settings = {name: entry.value for name, entry in asked[resource].result().items()}
            except KafkaException as error:
                if error.args[0].code() not in _UNSEEN:
                    raise self._no_answer(error) from error
                _log.warning("kafka_topic_settings_unseen", topic=topic.name, error=error.args[0].str())
                continue
            require_settings(topic, settings, self._options)
            for doubt in doubts(settings):
                _log.warning("kafka_topic_doubtful", topic=topic.name, setting=doubt)

    def _no_answer(self, error: KafkaException) -> LogUnavailable:
        return LogUnavailable(f"Kafka does not answer: {self._explain(error.args[0])}")

    def _name(self, topic: str) -> str:
        return self._options.topic_prefix + topic


def _raise_unless_there(name: str, error: KafkaError) -> None:
    if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
        return
    text = f"topic {name} could not be made: {error.str()}"
    if error.code() in _REFUSED:
        raise StartRefused(text)
    raise LogUnavailable(text)
