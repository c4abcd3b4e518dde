"""The thread of a consumer on Kafka: it alone calls librdkafka's consumer, and never waits long for anything else.

librdkafka allows one thread at a time on a consumer and hands out rebalances, answers to commits and errors only in
its calls, so the thread polls without end: with partitions paused while nobody takes their records.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.kafka_positions import Positions
from duologue.log.kafka_thread import Mailbox
from duologue.log.port import LogRecord, Partition

_log = structlog.get_logger(__name__)

_TICK_SECONDS: Final = 0.02
_BATCH: Final = 256
_FULL_RECORDS: Final = 2048
_FULL_BYTES: Final = 16 * 1024 * 1024
_REVOKE_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 1.0

_FENCED: Final = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._FATAL,
        KafkaError._FENCED,
    }
)


class Sink(Protocol):
    """The consumer's side in the event loop; the thread leaves calls of these in the mailbox."""

    def take_in(self, records: list[LogRecord], size: int) -> None: ...
    def assigned(self, partitions: Sequence[Partition], begins: Mapping[Partition, int]) -> None: ...
    def revoked(self, revocation: Revocation) -> None: ...
    def lost(self, partitions: Sequence[Partition]) -> None: ...
    def away(self, reason: str | None) -> None: ...
    def sent(self, commit: Commit) -> None: ...
    def committed(self, commit: Commit, error: Exception | None) -> None: ...


class Revocation(NamedTuple):
    """Partitions that are given up. The loop hands it back when the listener has heard of it."""

    partitions: Sequence[Partition]


class Commit(NamedTuple):
    """Offsets to commit, and what waits for the answer in the loop."""

    offsets: Mapping[Partition, int]
    waiter: asyncio.Future[None]


class Room:
    """How much was read and not yet taken: each pair of numbers grows in one thread only."""

    def __init__(self) -> None:
        self.read_records = self.read_bytes = 0
        self.taken_records = self.taken_bytes = 0
        self._full = False

    def full(self) -> bool:
        """Whether reading is to rest: from the bound on, until a quarter of it is left."""
        bound = 1 if not self._full else 4
        records = self.read_records - self.taken_records
        size = self.read_bytes - self.taken_bytes
        self._full = records * bound >= _FULL_RECORDS or size * bound >= _FULL_BYTES
        return self._full


class Reader:
    """One consumer of librdkafka, in its thread. The loop calls `ask`, and sets `paused`, `forsaken` and `stopping`.

    `forsaken` is why its positions are of a log that is no more: it ends.
    """

    def __init__(self, config: Mapping[str, Any], *, topic: str, prefix: str, mailbox: Mailbox, sink: Sink) -> None:
        self._config = config
        self._topic = topic
        self._prefix = prefix
        self._mailbox = mailbox
        self._sink = sink
        self._requests: SimpleQueue[Commit | Revocation] = SimpleQueue()
        self._waiting: list[Commit] = []
        self._sent: deque[Commit] = deque()
        self._leaving: Revocation | None = None
        self._heard: Revocation | None = None
        self._owned: dict[Partition, int] = {}
        self._assignments = 0
        self._positions = Positions(topic, prefix + topic)
        self._resting: frozenset[Partition] = frozenset()
        self._away_since: float | None = None
        self._fatal: KafkaError | None = None
        self._ended = False
        self.paused: frozenset[Partition] = frozenset()
        self.stopping = False
        self.forsaken: str | None = None
        self.room = Room()

    def ask(self, request: Commit | Revocation) -> None:
        """Ask, in the loop, for a commit, or hand a revocation back."""
        self._requests.put(request)

    def run(self) -> None:
        """Read until `stopping` or until every partition is lost; then leave the group."""
        self._client = Consumer({**self._config, "error_cb": self._on_error, "on_commit": self._on_commit})
        try:
            self._client.subscribe(
                [self._prefix + self._topic],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            while not self.stopping and not self._ended:
                self._turn()
            self._leave()
        finally:
            self._client.close()
            self._refuse_waiting()
            self._mailbox.flush()

    def _turn(self) -> None:
        self._start_commit()
        self._steer()
        self._read()
        if self._fatal is not None:
            self._lose(f"fenced: {self._fatal.str()}")
        elif self.forsaken is not None:
            self._lose(self.forsaken)
        elif self._away_since is not None:
            self._probe()
        self._mailbox.flush()

    # Records

    def _read(self) -> None:
        message = self._client.poll(_TICK_SECONDS)
        if message is None:
            return
        assignment = self._assignment_of(message)
        messages = self._client.consume(_BATCH - 1, 0)
        if self._assignment_of(message) == assignment:  # else a rebalance came between the two calls
            messages.insert(0, message)
        records = [record for each in messages if (record := self._record(each)) is not None]
        if records and not self._ended and self._fatal is None:
            size = sum(len(record.value) for record in records)
            self.room.read_records += len(records)
            self.room.read_bytes += size
            self._mailbox.add(partial(self._sink.take_in, records, size))

    def _assignment_of(self, message: Message) -> int | None:
        return self._owned.get(Partition(self._topic, message.partition() or 0))

    def _record(self, message: Message) -> LogRecord | None:
        """Build a record; whatever is in there, it must come out, or it would block what follows it."""
        if (error := message.error()) is not None:
            self._on_error(error)
            return None
        partition = Partition(self._topic, message.partition() or 0)
        offset = message.offset() or 0
        if partition not in self._owned or self.forsaken is not None:
            return None
        if not self._positions.take(partition, offset):
            self.forsaken = "its log went back"
            return None
        self._set_away(None)
        return LogRecord(
            partition=partition,
            offset=offset,
            key=(message.key() or b"").decode(errors="backslashreplace"),
            value=message.value() or b"",
            headers=_headers(message),
            timestamp=max(0, message.timestamp()[1]),
        )

    def _steer(self) -> None:
        """Pause in librdkafka what is not to be read now, and resume what is."""
        owned = frozenset(self._owned)
        wanted = owned if self._leaving or self.room.full() else self.paused & owned
        if wanted != self._resting:
            if resumed := self._resting & owned - wanted:
                self._client.resume(self._named(resumed))
            if paused := wanted - self._resting:
                self._client.pause(self._named(paused))
            self._resting = wanted

    def _named(self, partitions: Mapping[Partition, int] | frozenset[Partition]) -> list[TopicPartition]:
        return [TopicPartition(self._prefix + self._topic, partition.number) for partition in partitions]

    # Commits

    def _start_commit(self) -> None:
        """Send the next commit, one at a time."""
        self._collect()
        while self._waiting and not self._sent:
            self._send(self._waiting.pop(0))

    def _commit_ahead(self, revocation: Revocation) -> None:
        """Send the commits of partitions that are given up ahead of that; the coordinator takes the two in their order.

        Their answers can be heard only afterwards, so whoever asked is told at once: if one fails, the next owner reads
        more again. librdkafka's call that waits has no time-out, and a broker that hangs would hold this thread. What
        is of other partitions too can wait.
        """
        going = set(revocation.partitions)
        ahead = [commit for commit in self._waiting if commit.offsets.keys() <= going]
        self._waiting = [commit for commit in self._waiting if commit not in ahead]
        for commit in ahead:
            if self._send(commit):
                self._mailbox.add(partial(self._sink.sent, commit))

    def _send(self, commit: Commit) -> bool:
        if not self._may_commit(commit):
            return False
        try:
            self._client.commit(offsets=self._offsets(commit), asynchronous=True)
        except KafkaException as error:
            self._answer(commit, error.args[0])
            return False
        self._sent.append(commit)
        return True

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Hear an answer. What it answers shows in its offsets, or else it is the first that was sent."""
        offsets = {Partition(self._topic, each.partition): each.offset for each in partitions or []}
        commit = next((each for each in self._sent if each.offsets == offsets), next(iter(self._sent), None))
        if commit is not None:
            self._sent.remove(commit)
            self._answer(commit, _first_error(error, partitions))

    def _may_commit(self, commit: Commit) -> bool:
        """Whether all of a commit is owned: after a revocation has taken its time, nothing of it is committed."""
        if commit.offsets.keys() <= self._owned.keys():
            return True
        self._reply(commit, OwnershipLost(f"{self._topic}: a partition is not this consumer's: nothing was committed"))
        return False

    def _offsets(self, commit: Commit) -> list[TopicPartition]:
        name = self._prefix + self._topic
        return [TopicPartition(name, partition.number, offset) for partition, offset in commit.offsets.items()]

    def _answer(self, commit: Commit, error: KafkaError | None) -> None:
        if error is None:
            self._set_away(None)
            self._reply(commit, None)
        elif error.code() in _FENCED:
            self._fatal = self._fatal or error
            self._reply(commit, OwnershipLost(f"{self._topic} has another owner: {error.str()}"))
        else:  # also while the group changes: whoever owns the partition after that can commit it
            self._reply(commit, LogUnavailable(f"the position was not committed: {error.str()}"))

    def _reply(self, commit: Commit, error: Exception | None) -> None:
        self._mailbox.add(partial(self._sink.committed, commit, error))

    def _collect(self) -> None:
        while True:
            try:
                request = self._requests.get_nowait()
            except Empty:
                return
            self._sort(request)

    def _sort(self, request: Commit | Revocation) -> None:
        if isinstance(request, Commit):
            self._waiting.append(request)
        else:
            self._heard = request

    def _refuse_waiting(self) -> None:
        """Answer what was not sent, or sent and not answered."""
        self._collect()
        for commit in [*self._sent, *self._waiting]:
            self._reply(commit, OwnershipLost(f"{self._topic}: the consumer has ended"))

    # Ownership

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if self._leaving is not None:
            return
        gained = self._partitions(partitions)
        begins: Mapping[Partition, int] = {}
        try:
            begins = self._positions.gain(self._client, gained)
        except KafkaException as error:  # then nobody can tell whether records were removed before the first that comes
            _log.warning("log_commits_unseen", topic=self._topic, error=error.args[0].str())
        self._assignments += 1
        self._owned.update(dict.fromkeys(gained, self._assignments))
        self._set_away(None)
        self._mailbox.add(partial(self._sink.assigned, gained, begins))

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        going = [partition for partition in self._partitions(partitions) if partition in self._owned]
        if not going:
            return  # the listener has heard that it was lost, or given up
        self._let_go(self._leaving or Revocation(going))
        if resting := self._resting & frozenset(going):
            self._client.resume(self._named(resting))  # librdkafka would remember the pause for the next time
            self._resting -= resting
        for partition in going:
            self._owned.pop(partition, None)
        self._positions.drop(going)

    def _on_lost(self, _: Consumer, __: list[TopicPartition]) -> None:
        self._lose("the group went on without this consumer")

    def _lose(self, reason: str) -> None:
        """End: this consumer may have been succeeded already. To own something again it has to be opened again."""
        if self._ended:
            return
        self._ended = True
        _log.warning("log_ownership_lost", topic=self._topic, reason=reason)
        self._mailbox.add(partial(self._sink.lost, list(self._owned)))
        self._owned.clear()

    def _let_go(self, revocation: Revocation) -> None:
        """Wait until the listener has heard of a revocation, sending the commits that it asks for, but not for long."""
        if revocation is not self._leaving:
            self._mailbox.add(partial(self._sink.revoked, revocation))
        deadline = time.monotonic() + _REVOKE_SECONDS
        while not self._heard_of(revocation, deadline):
            self._commit_ahead(revocation)
            self._mailbox.flush()
            try:
                self._sort(self._requests.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                continue

    def _leave(self) -> None:
        """Give everything up, of this side's own will: commits are answered as ever while the listener hears of it."""
        if self._ended or not self._owned:
            return
        self._leaving = Revocation(list(self._owned))
        self._mailbox.add(partial(self._sink.revoked, self._leaving))
        deadline = time.monotonic() + _REVOKE_SECONDS
        while not self._heard_of(self._leaving, deadline):
            self._turn()
        self._owned.clear()

    def _heard_of(self, revocation: Revocation, deadline: float) -> bool:
        """Whether the listener has heard of a revocation, or need not be waited for any longer."""
        if self._heard is revocation or self._ended:
            return True
        if time.monotonic() < deadline:
            return False
        _log.warning("log_listener_late", topic=self._topic, seconds=_REVOKE_SECONDS)
        return True

    def _partitions(self, partitions: list[TopicPartition]) -> list[Partition]:
        return [Partition(self._topic, each.partition) for each in partitions]

    # Absence

    def _on_error(self, error: KafkaError) -> None:
        """Hear of what concerns no single call."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = self._fatal or error
        elif error.code() not in _PASSING:
            self._set_away(error.str())

    def _set_away(self, reason: str | None) -> None:
        if (reason is None) == (self._away_since is None):
            return
        self._away_since = None if reason is None else time.monotonic()
        self._mailbox.add(partial(self._sink.away, reason))

    def _probe(self) -> None:
        """See now and then whether Kafka is back: librdkafka does not say."""
        if self._away_since is None or time.monotonic() < self._away_since + _PROBE_SECONDS:
            return
        self._away_since = time.monotonic()
        try:
            self._client.list_topics(self._prefix + self._topic, timeout=_PROBE_SECONDS / 4)
        except KafkaException:
            return
        self._set_away(None)


_PASSING: Final = frozenset(
    {
        KafkaError._TRANSPORT,  # one broker's: when it is every broker's, that is said
        KafkaError._PARTITION_EOF,
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
    }
)


def _first_error(error: KafkaError | None, partitions: list[TopicPartition] | None) -> KafkaError | None:
    """Return what kept a commit from all of its partitions or any; that there was nothing to commit is none."""
    errors = [error, *(each.error for each in partitions or [])]
    return next((each for each in errors if each and each.code() != KafkaError._NO_OFFSET), None)


def _headers(message: Message) -> Mapping[str, str]:
    try:
        headers = message.headers() or []
    except UnicodeDecodeError:  # a name of a foreign writer
        return {}
    pairs = headers.items() if isinstance(headers, dict) else headers
    return {name: _text(value) for name, value in pairs}


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value or ""
