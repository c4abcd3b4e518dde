"""Setting aside records that cannot be processed: kept for operators, appended for other tools, and then done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypedDict

import structlog

from duologue.domain.errors import Permanent
from duologue.domain.records import DEAD_LETTER_SUFFIX
from duologue.log.committer import Delivery
from duologue.log.port import LogProducer, LogRecord
from duologue.log.until_done import until_done
from duologue.observability.metrics import DEAD_LETTERS

_log = structlog.get_logger(__name__)

ERROR_HEADER: Final = "error"
CAUSE_HEADER: Final = "cause"

Keep = Callable[[LogRecord, str, str], Awaitable[None]]
"""Keeps a record in the store with the error in words and its cause, a short code."""


class DeadLetterBox:
    """Where a role puts the records of its topic that it gives up."""

    def __init__(self, producer: LogProducer, keep: Keep) -> None:
        self._producer = producer
        self._keep = keep

    async def bury(self, delivery: Delivery, error: str, cause: str) -> None:
        """Keep a record, append it to its dead-letter topic, and count it as done. Repeats until both have happened."""
        record = delivery.record
        _log.error(
            "dead_letter",
            topic=record.partition.topic,
            partition=record.partition.number,
            offset=record.offset,
            cause=cause,
            error=error,
        )
        try:
            await until_done(lambda: self._keep(record, error, cause), what="keep_dead_letter")
        except Permanent as refusal:  # the store will not even have it so: the dead-letter topic takes anything
            _log.error("dead_letter_refused", offset=record.offset, error=str(refusal))
        await self.append(record, error, cause)
        delivery.done()

    async def append(self, record: LogRecord, error: str, cause: str) -> None:
        """Append a record, as it was, to its dead-letter topic. Repeats until the log has it."""
        DEAD_LETTERS.labels(cause).inc()
        topic = record.partition.topic + DEAD_LETTER_SUFFIX
        headers = {**record.headers, ERROR_HEADER: error, CAUSE_HEADER: cause}
        await until_done(
            lambda: self._producer.append(topic, record.key, record.value, headers), what="append_dead_letter"
        )


class StorableRecord(TypedDict):
    """A record that was given up, in the form in which the store takes it."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: dict[str, str]
    error: str


def storable_record(record: LogRecord, error: str) -> StorableRecord:
    """Return what the store keeps of a record that was given up, and why."""
    return StorableRecord(
        topic=record.partition.topic,
        partition=record.partition.number,
        offset=record.offset,
        key=storable(record.key),
        value=record.value,
        headers={storable(name): storable(value) for name, value in record.headers.items()},
        error=storable(error),
    )


def storable(text: str) -> str:
    """Return text without what databases refuse: NUL and lone surrogates, which bytes from a log may decode to."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
