"""A member of a consumer group in a process of its own, which tests stop and kill.

The process (`python -m tests.support.kafka_member …`) reads a topic and tells what happens, a JSON list a line:
`["assigned", …]`, `["revoked", …]`, `["lost", …]` with numbers of partitions, `["read", …]` with values,
`["committed"]` and `["refused", reason]`. It commits what it has read when it is sent a line. SIGTERM lets it leave.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from duologue.domain.errors import LogUnavailable, OwnershipLost
from duologue.log.kafka import open_kafka_log
from duologue.log.kafka_options import KafkaOptions
from duologue.log.port import LogConsumer, LogRecord, Partition

DEADLINE_SECONDS = 30.0


class Member:
    """The process, as a test sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told: list[list[Any]] = []

    async def until(self, event: str) -> list[Any]:
        """Return what comes with the next such event."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                line = await self._process.stdout.readline()
                assert line, f"the member ended before it told of {event}: {self.told}"
                if line.startswith(b"["):
                    self.told.append(json.loads(line))
                    if self.told[-1][0] == event:
                        return self.told[-1][1:]

    async def until_read(self, count: int) -> list[str]:
        """Return the next values that it reads, at least so many."""
        values: list[str] = []
        while len(values) < count:
            values += await self.until("read")
        return values

    def ask_to_commit(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def member(options: KafkaOptions, topic: str) -> AsyncIterator[Member]:
    """Run a member until the context ends, at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.kafka_member",
        topic,
        msgspec.json.encode(options).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Member(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class _Reader:
    """What runs in the process."""

    def __init__(self) -> None:
        self._last: dict[Partition, LogRecord] = {}

    async def on_assigned(self, partitions: Sequence[Partition]) -> None:
        _tell("assigned", *(partition.number for partition in partitions))

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        self._forget("revoked", partitions)

    async def on_lost(self, partitions: Sequence[Partition]) -> None:
        self._forget("lost", partitions)

    async def read(self, consumer: LogConsumer) -> None:
        while True:
            try:
                records = await consumer.poll(100, 0.2)
            except LogUnavailable:
                await asyncio.sleep(0.1)
                continue
            self._last.update((record.partition, record) for record in records)
            if records:
                _tell("read", *(record.value.decode() for record in records))

    async def commit(self, consumer: LogConsumer) -> None:
        try:
            await consumer.commit({partition: record.offset + 1 for partition, record in self._last.items()})
            _tell("committed")
        except (OwnershipLost, LogUnavailable) as refusal:
            _tell("refused", type(refusal).__name__)

    def _forget(self, event: str, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._last.pop(partition, None)
        _tell(event, *(partition.number for partition in partitions))


def _tell(*event: object) -> None:
    os.write(1, json.dumps(event).encode() + b"\n")


async def _read_until(ended: asyncio.Event, topic: str, options: KafkaOptions) -> None:
    reader, loop, tasks = _Reader(), asyncio.get_running_loop(), set()
    async with open_kafka_log(options) as log:
        while not ended.is_set():
            async with log.consumer(topic=topic, group="group", listener=reader) as consumer:

                def on_line(consumer: LogConsumer = consumer) -> None:
                    os.read(0, 1000)
                    tasks.add(asyncio.create_task(reader.commit(consumer)))

                loop.add_reader(0, on_line)
                reading, ending = asyncio.create_task(reader.read(consumer)), asyncio.create_task(ended.wait())
                await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
                loop.remove_reader(0)
                for task in (reading, ending):
                    task.cancel()
                [outcome, _] = await asyncio.gather(reading, ending, return_exceptions=True)
                assert isinstance(outcome, OwnershipLost | asyncio.CancelledError), outcome
    await asyncio.gather(*tasks)


async def _main(topic: str, options: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await _read_until(ended, topic, msgspec.json.decode(options, type=KafkaOptions))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
