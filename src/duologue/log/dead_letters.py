"""Setting aside records that cannot be processed: kept for operators, appended for other tools, and then done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypedDict

import structlog

from duologue.domain.errors import Permanent
from duologue.domain.records import DEAD_LETTER_SUFFIX, origin_of
from duologue.log.committer import Delivery
from duologue.log.port import LogProducer, LogRecord
from duologue.log.until_done import until_done
from duologue.observability.metrics import DEAD_LETTERS

_log = structlog.get_logger(__name__)

ERROR_HEADER: Final = "error"
CAUSE_HEADER: Final = "cause"
TOPIC_HEADER: Final = "topic"
PARTITION_HEADER: Final = "partition"
OFFSET_HEADER: Final = "offset"
SIZE_HEADER: Final = "size"

MAX_COPY_BYTES: Final = 2_000_000
"""What a dead-letter topic takes beside its headers; of a larger record it gets the beginning."""
MAX_KEPT_BYTES: Final = 16 * 1024 * 1024
"""What the store keeps of one record. Only where an operator has raised the log's own limits is there a larger one."""
_CUT_BYTES: Final = 64 * 1024
_MAX_TEXT: Final = 2000

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
        _log.error("dead_letter", **_place(record), cause=cause, error=error[:_MAX_TEXT])
        try:
            await until_done(lambda: self._keep(record, error, cause), what="keep_dead_letter")
        except Permanent as refusal:  # the store will not even have it so: the dead-letter topic takes anything
            _log.error("dead_letter_refused", **_place(record), error=str(refusal))
        await self.append(record, error, cause)
        delivery.done()

    async def append(self, record: LogRecord, error: str, cause: str) -> None:
        """Append a copy of a record to its dead-letter topic, for other tools. Repeats until the log has it.

        What is larger than that topic takes is cut there, and says so: whatever stands on the log can be passed.
        """
        DEAD_LETTERS.labels(record.partition.topic, cause).inc()
        why = _why(record, error, cause)
        if len(record.value) <= MAX_COPY_BYTES:
            try:
                await self._append(record, record.key, record.value, {**record.headers, **why})
            except Permanent as refusal:
                _log.warning("dead_letter_cut", **_place(record), error=str(refusal))
            else:
                return
        beginning = record.value[:_CUT_BYTES]
        try:
            await self._append(record, record.key[:256], beginning, {**why, SIZE_HEADER: str(len(record.value))})
        except Permanent as refusal:
            _log.error("dead_letter_not_copied", **_place(record), error=str(refusal))

    async def _append(self, record: LogRecord, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        topic = record.partition.topic + DEAD_LETTER_SUFFIX
        await until_done(lambda: self._producer.append(topic, key, value, headers), what="append_dead_letter")


def _place(record: LogRecord) -> dict[str, str | int]:
    return {"topic": record.partition.topic, "partition": record.partition.number, "offset": record.offset}


def _why(record: LogRecord, error: str, cause: str) -> dict[str, str]:
    """Return the headers that tell where a record stood and why it was given up."""
    return {
        TOPIC_HEADER: record.partition.topic,
        PARTITION_HEADER: str(record.partition.number),
        OFFSET_HEADER: str(record.offset),
        ERROR_HEADER: storable(error)[:_MAX_TEXT],
        CAUSE_HEADER: cause,
    }


class StorableRecord(TypedDict):
    """A record that was given up, in the form in which the store takes it."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    size: int
    headers: dict[str, str]
    error: str


class StorableOrigin(TypedDict):
    """What it is about, as far as its bytes tell."""

    tenant: str | None
    uid: str | None
    message_id: str | None
    conversation_id: str | None
    attempt: int | None


def storable_record(record: LogRecord, error: str) -> StorableRecord:
    """Return what the store keeps of a record that was given up, and why."""
    return StorableRecord(
        topic=record.partition.topic,
        partition=record.partition.number,
        offset=record.offset,
        key=storable(record.key),
        value=record.value[:MAX_KEPT_BYTES],
        size=len(record.value),
        headers={storable(name): storable(value) for name, value in record.headers.items()},
        error=storable(error)[:_MAX_TEXT],
    )


class Unprocessed(StorableRecord, StorableOrigin):
    """All that the store keeps of a record that could not be processed, once tried."""

    cause: str
    tries: int
    first_at: int
    last_at: int


def unprocessed(record: LogRecord, *, error: str, cause: str, at: int) -> Unprocessed:
    """Return what the store keeps of a record that could not be processed; `at` is when, milliseconds since the Unix
    epoch."""
    return Unprocessed(
        **storable_record(record, error),
        **storable_origin(record),
        cause=cause,
        tries=1,
        first_at=at,
        last_at=at,
    )


def storable_origin(record: LogRecord) -> StorableOrigin:
    """Return what a record is about, as far as its bytes tell."""
    origin = origin_of(record.value)
    return StorableOrigin(
        tenant=origin.tenant,
        uid=origin.uid,
        message_id=origin.message_id,
        conversation_id=origin.conversation_id,
        attempt=origin.attempt,
    )


def storable(text: str) -> str:
    """Return text without what databases refuse: NUL and lone surrogates, which bytes from a log may decode to."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
