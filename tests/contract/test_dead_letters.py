"""What cannot be processed passes on every log: set aside whole or in part, and the partition goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
from tests.support.logs import LogUnderTest, read, reading
from tests.support.pipeline import until

from duologue.domain.errors import RecordUnreadable
from duologue.domain.records import MAX_RECORD_BYTES, MessageSubmitted, decode_incoming, encode
from duologue.log.committer import Delivery, Holding
from duologue.log.dead_letters import MAX_COPY_BYTES, DeadLetterBox
from duologue.log.intake import Intake
from duologue.log.port import Log, LogRecord, Partition
from duologue.log.role_tasks import RoleTasks, role_tasks

TOPIC = "incoming_messages"
LARGEST = 2_090_000
"""About what Kafka's topics and its client take."""


def _message(content: str) -> MessageSubmitted:
    return MessageSubmitted(
        tenant="default",
        user_id="ada",
        uid="u-1",
        message_id="m-1",
        conversation_id="c-1",
        client_id="1",
        content=content,
        submitted_at=1,
        correlation_id="c",
    )


class _Role:
    """Decodes what it is given, and sets aside what it cannot read."""

    def __init__(self, log: Log, tasks: RoleTasks) -> None:
        self.said: list[str] = []
        self.kept: list[LogRecord] = []
        self.committed_to = 0
        self._tasks = tasks
        self._box = DeadLetterBox(log.producer, self._keep)

    async def accept(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            try:
                record = decode_incoming(delivery.record.value)
            except RecordUnreadable as error:
                self._tasks.spawn(self._box.bury(delivery, str(error), "unreadable"))
            else:
                assert isinstance(record, MessageSubmitted)
                self.said.append(record.content)
                delivery.done()

    async def leaving(self, holdings: Sequence[Holding]) -> None: ...

    def lost(self, holdings: Sequence[Holding]) -> None: ...

    def committed(self, partition: Partition, offset: int) -> None:
        self.committed_to = max(self.committed_to, offset)

    async def _keep(self, record: LogRecord, error: str, cause: str) -> None:
        assert (error, cause) != ("", "")
        self.kept.append(record)


@asynccontextmanager
async def _working(log: Log) -> AsyncIterator[_Role]:
    async with role_tasks() as tasks:
        role = _Role(log, tasks)
        intake = Intake(log, topic=TOPIC, group="group", handler=role, max_undone=100)
        running = asyncio.create_task(intake.run())
        yield role
        intake.finish()
        await running


_ODD: Mapping[str, tuple[bytes, dict[str, str]]] = {
    "garbage": (b"\xff\x00 no record", {"correlation_id": "c", "topic": "of its own"}),
    "empty": (b"", {}),
    "newer": (encode(msgspec.structs.replace(_message("from tomorrow"), v=99)), {"correlation_id": "c"}),
    "too large": (encode(_message("x" * (MAX_RECORD_BYTES + 1))), {"correlation_id": "c"}),
    "as large as a copy": (os.urandom(MAX_COPY_BYTES), {"h": "x" * 90_000}),
    "as large as the log takes": (os.urandom(LARGEST), {"correlation_id": "c"}),
}


async def test_records_that_cannot_be_read_are_set_aside_and_the_others_are_processed(logs: LogUnderTest) -> None:
    async with logs.open() as log:
        async with _working(log) as role:
            for number, (value, headers) in enumerate(_ODD.values()):
                await log.producer.append(TOPIC, "c-1", encode(_message(f"before {number}")), {})
                await log.producer.append(TOPIC, "c-1", value, headers)
            await log.producer.append(TOPIC, "c-1", encode(_message("after")), {})
            await until(lambda: role.said == [*(f"before {number}" for number in range(len(_ODD))), "after"])
            await until(lambda: len(role.kept) == len(_ODD))
            last = max(record.offset for record in role.kept) + 1
            await until(lambda: role.committed_to == last + 1)  # nothing of it is read again
        async with reading(log, TOPIC + ".dlq", group="others") as consumer:
            copies = {int(record.headers["offset"]): record for record in await read(consumer, len(_ODD))}
    kept = sorted(role.kept, key=lambda record: record.offset)
    for record, (name, (value, headers)) in zip(kept, _ODD.items(), strict=True):
        assert (record.key, record.headers) == ("c-1", headers), name
        assert record.value == value, name
        _check_copy(copies[record.offset], record)


def _check_copy(copy: LogRecord, record: LogRecord) -> None:
    """A copy tells where its record stood and why it is here, and has all of it, or its beginning and its size."""
    topic, partition = record.partition
    place = {"topic": topic, "partition": str(partition), "offset": str(record.offset), "cause": "unreadable"}
    assert place.items() <= copy.headers.items()
    assert "the record" in copy.headers["error"]
    assert copy.key == record.key
    if len(record.value) <= MAX_RECORD_BYTES * 1.5:
        assert copy.value == record.value
        assert record.headers.keys() <= copy.headers.keys()
    elif copy.value != record.value:
        assert record.value.startswith(copy.value)
        assert copy.headers["size"] == str(len(record.value))
