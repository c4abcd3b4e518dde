"""How the clients of Kafka are configured, and what becomes of their own log lines."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from duologue.config import Settings

_log = structlog.get_logger(__name__)

MAX_RECORD_BYTES: Final = 2 * 1024 * 1024
"""More than twice the largest record of ours: one that is set aside grows by the headers that say why."""

_TIMEOUT_SCAN_SECONDS: Final = 1.0
_REPEAT_SECONDS: Final = 10.0


@dataclass(frozen=True)
class KafkaOptions:
    """Where Kafka is and how it is used; the settings `KAFKA_…` explain most of them.

    `timeout_seconds` is the longest wait for an append; `linger_ms` what a record waits for others to go with it, which
    spares the broker work and costs the time. `instance_id` makes consumers static members of their group: a later one
    with the same id takes over at once, and one that ends keeps its place for `session_timeout_seconds`.
    """

    bootstrap_servers: str
    partitions: int = 12
    replication_factor: int = 1
    min_insync_replicas: int = 1
    topic_prefix: str = ""
    client_id: str = "duologue"
    timeout_seconds: float = 5.0
    session_timeout_seconds: float = 6.0
    max_poll_seconds: float = 10.0
    linger_ms: float = 0.0
    instance_id: str = ""
    security: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> KafkaOptions:
        """Return what the settings say."""
        return cls(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            partitions=settings.kafka_partitions,
            replication_factor=settings.kafka_replication_factor,
            min_insync_replicas=settings.kafka_min_insync_replicas or max(1, settings.kafka_replication_factor - 1),
            topic_prefix=settings.kafka_topic_prefix,
            client_id=settings.server_id,
            timeout_seconds=settings.log_timeout_seconds,
            security=_security(settings),
        )

    def client(self) -> dict[str, Any]:
        """Return the configuration of every client."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": self.client_id,
            "logger": ClientLog(),
            # A topic that a client made by asking for it would have whatever number of partitions.
            "allow.auto.create.topics": False,
            # Back within a second when a broker is; what is in the way of that is given up before an append is.
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "socket.connection.setup.timeout.ms": 3000,
            # For requests without a time of their own, as commits, to a broker that hangs. They are sent three times.
            "socket.timeout.ms": 10_000,
            "socket.keepalive.enable": True,
            "socket.nagle.disable": True,
            "log.connection.close": False,
            **self.security,
        }

    def producer(self) -> dict[str, Any]:
        """Return the configuration of the producer: whatever it reports as delivered is on the log once, in order."""
        return {
            **self.client(),
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "lz4",
            "linger.ms": self.linger_ms,
            # A request under way is looked at for its time-out once a second, so the report may come that much later.
            "message.timeout.ms": int(
                1000 * max(self.timeout_seconds - _TIMEOUT_SCAN_SECONDS, self.timeout_seconds / 2)
            ),
            "message.max.bytes": MAX_RECORD_BYTES,
            "queue.buffering.max.messages": 20_000,
            "queue.buffering.max.kbytes": 64 * 1024,
            # Murmur2 is Java's choice too. Unlike the default it gives an empty key one partition.
            "partitioner": "murmur2",
        }

    def consumer(self, group: str) -> dict[str, Any]:
        """Return the configuration of a consumer (rule Owner)."""
        session_ms = int(self.session_timeout_seconds * 1000)
        return {
            **self.client(),
            "group.id": self.topic_prefix + group,
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session_ms,
            # The owners hear of a rebalance with their next heartbeat: this is what a new consumer waits for them.
            "heartbeat.interval.ms": min(1000, session_ms // 3),
            # The thread polls without end, so this ends a consumer only whose process hangs. It is also how long others
            # wait for one that is to join again and, with 3 s more, a consumer for the answer to its joining: a broker
            # that was killed twice within a minute was seen to give none.
            "max.poll.interval.ms": max(int(self.max_poll_seconds * 1000), session_ms),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 500,
            "fetch.error.backoff.ms": 100,
            # What librdkafka reads ahead, for each partition, and how soon it goes on when that has been taken.
            "queued.min.messages": 2000,
            "queued.max.messages.kbytes": 2048,
            "fetch.queue.backoff.ms": 5,
            **({"group.instance.id": f"{self.instance_id}-{group}"} if self.instance_id else {}),
        }


def _security(settings: Settings) -> dict[str, str]:
    """Return how to encrypt and to sign in; what is not set is left to librdkafka."""
    given = {
        "ssl.ca.location": settings.kafka_ssl_ca_location,
        "ssl.certificate.location": settings.kafka_ssl_certificate_location,
        "ssl.key.location": settings.kafka_ssl_key_location,
        "ssl.key.password": settings.kafka_ssl_key_password.get_secret_value(),
        "sasl.username": settings.kafka_sasl_username,
        "sasl.password": settings.kafka_sasl_password.get_secret_value(),
    }
    protocol = settings.kafka_security_protocol
    if protocol.startswith("SASL"):
        given["sasl.mechanism"] = settings.kafka_sasl_mechanism
    return {"security.protocol": protocol, **{name: value for name, value in given.items() if value}}


class ClientLog:
    """librdkafka's own log lines, from any thread, as events of ours: the like of one at most every 10 s.

    A broker that is away makes some lines a second. None of them is an error: the calls that fail tell that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quiet_until: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def log(self, level: int, template: str, *args: object) -> None:
        """Take a line, as `logging.Logger.log` does; `args` are the facility, the client's name and the text."""
        facility = str(args[0]) if args else ""
        with self._lock:
            now = time.monotonic()
            if now < self._quiet_until.get(facility, 0.0):
                self._left_out[facility] = self._left_out.get(facility, 0) + 1
                return
            self._quiet_until[facility] = now + _REPEAT_SECONDS
            left_out = self._left_out.pop(facility, 0)
        _log.log(min(level, 30), "kafka_client", message=template % args, left_out=left_out)
