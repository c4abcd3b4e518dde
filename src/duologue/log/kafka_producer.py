"""Appending to Kafka: librdkafka's idempotent producer, and a thread that hears its delivery reports."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Self

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from duologue.domain.errors import LogUnavailable, Permanent
from duologue.log.kafka_thread import Mailbox, run_in_thread

_log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 1.0


class KafkaProducer:
    """Appends records: a `LogProducer`, and a context that owns its thread.

    `append` hands its record to librdkafka before it first suspends, which keeps the order of calls for each partition;
    the order survives retries since the producer is idempotent. What becomes of it is for the delivery report alone to
    tell: a timer beside it could call a record refused that is on the log (rule Refusals).
    """

    def __init__(self, config: Mapping[str, Any], *, topic_prefix: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = {**config, "error_cb": self._on_error}
        self._prefix = topic_prefix
        self._mailbox = Mailbox(self._loop)
        self._stopping = False
        self._broken = False
        self._last_error: str | None = None
        self._ended: asyncio.Future[None] | None = None
        self.client = Producer(self._config)

    async def __aenter__(self) -> Self:
        self._ended = run_in_thread(self._run, name="kafka-producer")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        if self._ended is not None:
            await self._ended

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        """Append a record and return once it is on every replica that has to have it. See the port.

        Raises:
            LogUnavailable: see the port; also, too many appends wait for a log that is away.
            Permanent: the record is larger than the log takes.
        """
        if self._stopping:
            raise LogUnavailable("the log is closed")  # nobody would hear the report
        delivered: asyncio.Future[None] = self._loop.create_future()
        try:
            self.client.produce(
                self._prefix + topic,
                value,
                key.encode(),
                headers=list(headers.items()),
                on_delivery=partial(self._on_delivery, delivered),
            )
        except BufferError as error:
            raise LogUnavailable("too many appends wait for Kafka's acknowledgement") from error
        except KafkaException as error:
            raise _refusal(error.args[0]) from error
        await delivered

    def explain(self, error: KafkaError) -> str:
        """Return what librdkafka said last of its brokers, since a call that fails tells only that nobody answered."""
        return self._last_error or error.str()

    def _on_delivery(self, delivered: asyncio.Future[None], error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._last_error = None
        self._mailbox.add(partial(_settle, delivered, error))

    def _on_error(self, error: KafkaError) -> None:
        """Hear of what concerns no single record; all but fatal errors heal by themselves."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # which follows upon the one that says why
            self._last_error = error.str()
        if error.fatal():
            _log.error("kafka_producer_failed", error=str(error))
            self._broken = True

    def _run(self) -> None:
        """Hear reports until the context ends, then for a moment those of what is still under way."""
        while not self._stopping:
            self.client.poll(_POLL_SECONDS)
            self._mailbox.flush()
            if self._broken:
                self._replace()
        self._settle_all(self.client)

    def _replace(self) -> None:
        """Go on with a new producer: one that has failed fatally (it lost track of its sequence) takes nothing more."""
        try:
            old, new = self.client, Producer(self._config)
        except KafkaException as error:  # a file of its settings is not there now: appends are refused until it is
            _log.error("kafka_producer_not_replaced", error=error.args[0].str())
            time.sleep(_LAST_SECONDS)
            return
        self._broken = False
        used = threading.Event()
        self._mailbox.add(partial(self._use, new, used))
        self._mailbox.flush()
        used.wait()  # an append that still found the old one would wait for ever for a report that nobody hears
        self._settle_all(old)

    def _use(self, client: Producer, used: threading.Event) -> None:
        self.client = client
        used.set()

    def _settle_all(self, client: Producer) -> None:
        """Wait shortly for what is under way, and call the rest failed; it may be on the log nevertheless."""
        if client.flush(_LAST_SECONDS):
            client.purge()
            client.flush(_LAST_SECONDS)
        self._mailbox.flush()


def _settle(delivered: asyncio.Future[None], error: KafkaError | None) -> None:
    if delivered.done():
        return  # its caller was cancelled
    if error is None:
        delivered.set_result(None)
    else:
        delivered.set_exception(_refusal(error))


_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


def _refusal(error: KafkaError) -> Exception:
    text = f"the record was not acknowledged: {error.str()}"
    return Permanent(text) if error.code() in _TOO_LARGE else LogUnavailable(text)
