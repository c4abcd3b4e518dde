"""The log on Valkey Streams, for one machine: one partition a topic, one consumer a group (rule Streams as the log).

Keys: `log:<topic>` is the stream, `log:<topic>:cursors` its groups' commits, `log:<topic>:owner:<group>` a lock.
An entry's id is `0-<offset>`: with `0-*` Valkey counts offsets without gaps, also after trimming.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import structlog

from duologue.domain.clock import wall_clock
from duologue.domain.errors import LogUnavailable, OwnershipLost, RedisUnavailable, StartRefused
from duologue.domain.records import DEAD_LETTER_SUFFIX
from duologue.engines.redis import Redis, RedisCommandError, RedisDenied, Reply, Script
from duologue.log.port import LogRecord, Partition, PartitionListener
from duologue.log.valkey_lock import LOCK_SCRIPTS, Lock, LockTimes, held_lock
from duologue.observability import metrics

_log = structlog.get_logger(__name__)

DEAD_LETTERS_KEPT: Final = 10_000

_REQUIRED: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
_LOCK_TIMES: Final = LockTimes()
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_FIRST_CHUNK: Final = 64
_COMMIT: Final = Script.from_file(Path(__file__).parent / "commit.lua")

_encode_headers = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


@asynccontextmanager
async def open_streams_log(
    url: str, *, takeover: bool, timeout_seconds: float = 5.0, lock_times: LockTimes = _LOCK_TIMES
) -> AsyncIterator[StreamsLog]:
    """Open the log in a Redis or Valkey that keeps every acknowledged write.

    Args:
        url: of the server.
        takeover: this process holds the data folder, so whoever else owned a topic is dead: take it at once.
        timeout_seconds: the longest wait for an append.
        lock_times: of the consumers' locks; the same in every process.

    Raises:
        LogUnavailable: nothing answers.
        StartRefused: the server could lose what it has acknowledged.
    """
    # A connection is given up between one and 1.25 times its own time-out after a call that gets no answer, and its
    # calls fail with it: so no append needs a timer of its own.
    timeout_seconds /= 1.25
    async with AsyncExitStack() as stack:
        redis = Redis(url, name="log", scripts=(_COMMIT, *LOCK_SCRIPTS), timeout_seconds=timeout_seconds)
        with _log_errors():
            await stack.enter_async_context(redis)
            await _check_durability(redis)
        yield StreamsLog(url, redis, takeover=takeover, timeout_seconds=timeout_seconds, lock_times=lock_times)


@contextmanager
def _log_errors() -> Iterator[None]:
    try:
        yield
    except RedisUnavailable as error:
        raise LogUnavailable(str(error)) from error


async def _check_durability(redis: Redis) -> None:
    for name, required in _REQUIRED.items():
        try:
            reply = await redis.call("CONFIG", "GET", name)
        except (RedisCommandError, RedisDenied) as error:
            raise StartRefused(f"the log's server does not tell whether {name} is {required}: {error}") from error
        value = reply[1].decode() if reply else "unknown"
        if value != required:
            raise StartRefused(
                f"the log's server has {name} {value}, with which it can lose what it has acknowledged: "
                f"it must be {required} (or set KAFKA_BOOTSTRAP_SERVERS)"
            )


class StreamsLog:
    """The log, open: a `Log`."""

    def __init__(
        self, url: str, redis: Redis, *, takeover: bool, timeout_seconds: float, lock_times: LockTimes
    ) -> None:
        self._url = url
        self._redis = redis
        self._takeover = takeover
        self._timeout = timeout_seconds
        self._lock_times = lock_times
        self.producer = StreamsProducer(redis)

    @asynccontextmanager
    async def consumer(self, *, topic: str, group: str, listener: PartitionListener) -> AsyncIterator[StreamsConsumer]:
        """Open the group's only consumer. Entering may take 6 s if another one has just ended without saying so.

        Raises:
            ConsumerRefused: another one lives.
            LogUnavailable: the log cannot be reached.
        """
        refusal = f"another consumer reads {topic} for {group}: the Streams log allows one; more is what Kafka is for"
        async with AsyncExitStack() as stack:
            with _log_errors():
                # XREAD stalls a connection while it waits for records, so each consumer reads on its own.
                reader = await stack.enter_async_context(
                    Redis(self._url, name=f"log-{topic}", timeout_seconds=self._timeout)
                )
                key = f"log:{topic}:owner:{group}"
                lock = await stack.enter_async_context(
                    held_lock(self._redis, key, times=self._lock_times, takeover=self._takeover, refusal=refusal)
                )
                # From now on nothing is trimmed that this group has not done, also before its first commit.
                await self._redis.call("HSETNX", _cursors(topic), group, 1)
                cursor = await self._redis.call("HGET", _cursors(topic), group)
            consumer = StreamsConsumer(
                self._redis,
                reader,
                lock,
                listener,
                topic=topic,
                group=group,
                position=int(cursor),
                block_seconds=self._timeout / 2,
            )
            yield await stack.enter_async_context(consumer)

    def partition_of(self, topic: str, key: str) -> int:
        """Return 0, the only partition. See the port."""
        return 0

    async def check(self) -> None:
        """Return if the log answers. Raises LogUnavailable."""
        with _log_errors():
            await self._redis.call("PING")


class StreamsProducer:
    """Appends records: a `LogProducer`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        """Append a record and return once it is on disk. See the port for order and errors."""
        kept = ("MAXLEN", "~", DEAD_LETTERS_KEPT) if topic.endswith(DEAD_LETTER_SUFFIX) else ()
        fields = ("k", key, "v", value, "h", _encode_headers(dict(headers)), "t", wall_clock())
        try:
            await self._redis.call("XADD", _stream(topic), *kept, "0-*", *fields)
        except RedisUnavailable as error:
            raise LogUnavailable(f"the record was not acknowledged: {error}") from error


class StreamsConsumer:
    """Reads a topic from its group's cursor: a `LogConsumer`. A context: it owns what keeps the lock.

    At most one XREAD is under way. It outlives a `poll` that ends before it, by time or by cancellation: the next one
    takes its records.
    """

    def __init__(
        self,
        redis: Redis,
        reader: Redis,
        lock: Lock,
        listener: PartitionListener,
        *,
        topic: str,
        group: str,
        position: int,
        block_seconds: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._redis = redis
        self._reader = reader
        self._lock = lock
        self._listener = listener
        self._topic = topic
        self._group = group
        self._partition = Partition(topic, 0)
        self._position = position
        self._block_ms = int(block_seconds * 1000)
        self._chunk = _FIRST_CHUNK
        self._reading: asyncio.Future[Reply] | None = None
        self._unread: deque[LogRecord] = deque()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._resumed: asyncio.Future[None] | None = None
        self._guard: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._listener.on_assigned([self._partition])
        self._guard = asyncio.create_task(self._keep_lock(), name=f"log-lock-{self._topic}")
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._guard is not None:
                await self._end_guard(self._guard)
            if not self._lost.done():
                await self._listener.on_revoked([self._partition])
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def poll(self, max_records: int, timeout_seconds: float) -> Sequence[LogRecord]:
        """Return records as soon as there are some. See the port."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while not self._has_records() and not self._lost.done():
            await self._wait_for_records(max_records, max(0.0, deadline - loop.time()))
            if loop.time() >= deadline:
                break
        if self._lost.done():
            await self._until_listener_heard()
            raise OwnershipLost(f"another consumer reads {self._topic} for {self._group}, or may soon")
        return self._take(max_records)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Set where the next owner begins, and trim what every group has done. See the port."""
        for partition, offset in offsets.items():
            if self._lost.done() or partition != self._partition:
                raise OwnershipLost(f"{partition.topic} is not this consumer's: nothing was committed")
            await self._commit(offset)

    async def unread(self) -> Mapping[Partition, int]:
        """Return where the stream ends, if not all of it is handed out. See the port."""
        if self._lost.done():
            raise OwnershipLost(f"another consumer reads {self._topic} for {self._group}, or may soon")
        with _log_errors():
            last = await self._redis.call("XREVRANGE", _stream(self._topic), "+", "-", "COUNT", 1)
        end = int(last[0][0].split(b"-")[1]) + 1 if last else 0
        position = self._unread[0].offset if self._unread else self._position
        return {self._partition: end} if position < end else {}

    def pause(self, partition: Partition) -> None:
        """Hand out nothing until `resume`."""
        if partition == self._partition and self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume(self, partition: Partition) -> None:
        """Hand out records again."""
        if partition == self._partition and self._resumed is not None:
            self._resumed.set_result(None)
            self._resumed = None

    def _has_records(self) -> bool:
        return bool(self._unread) and self._resumed is None

    def _take(self, max_records: int) -> Sequence[LogRecord]:
        if self._resumed is not None:
            return []
        return [self._unread.popleft() for _ in range(min(max_records, len(self._unread)))]

    async def _wait_for_records(self, max_records: int, seconds: float) -> None:
        """Wait for what `poll` waits for; none of it is cancelled with it (`asyncio.wait` does not)."""
        if self._resumed is not None:
            await self._first_of(self._resumed, seconds)
            return
        if self._reading is None:
            self._reading = self._read(max_records)
        await self._first_of(self._reading, seconds)
        if self._reading.done():
            reading, self._reading = self._reading, None
            with _log_errors():
                self._receive(reading.result())

    async def _first_of(self, future: asyncio.Future[Any], seconds: float) -> None:
        await asyncio.wait({future, self._lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def _read(self, max_records: int) -> asyncio.Future[Reply]:
        count = min(max_records, self._chunk)
        after = f"0-{self._position - 1}"
        return self._reader.call(
            "XREAD", "COUNT", count, "BLOCK", self._block_ms, "STREAMS", _stream(self._topic), after
        )

    def _receive(self, reply: Reply) -> None:
        """Take in the answer to an XREAD, None if no record came in its time; choose how many the next one asks for."""
        if reply is None:
            return
        records = [self._record(entry) for entry in reply[0][1]]
        self._unread.extend(records)
        self._position = records[-1].offset + 1
        size = sum(len(record.value) for record in records)
        self._chunk = max(1, _CHUNK_BYTES * len(records) // (size + 1))

    def _record(self, entry: Reply) -> LogRecord:
        """Build a record of an entry; whatever is in there, it must come out, or it would block what follows it."""
        identity, fields = entry
        found = dict(zip(fields[::2], fields[1::2], strict=False))
        return LogRecord(
            partition=self._partition,
            offset=int(identity.split(b"-")[1]),
            key=found.get(b"k", b"").decode(errors="backslashreplace"),
            value=found.get(b"v", b""),
            headers=_headers(found.get(b"h", b"")),
            timestamp=_timestamp(found.get(b"t", b"")),
        )

    async def _commit(self, offset: int) -> None:
        keys = [_stream(self._topic), _cursors(self._topic), self._lock.key]
        with _log_errors():
            owned = await self._redis.run(_COMMIT, keys, [self._lock.token, self._group, offset])
        if not owned:
            self._lock.doubt()
            raise OwnershipLost(f"{self._topic} has another owner for {self._group}: nothing was committed")
        metrics.COMMITS.labels(topic=self._topic).inc()

    async def _keep_lock(self) -> None:
        await self._lock.until_lost()
        _log.warning("log_ownership_lost", topic=self._topic, group=self._group)
        self._lost.set_result(None)
        await self._listener.on_lost([self._partition])

    async def _until_listener_heard(self) -> None:
        if self._guard is not None:
            await asyncio.wait({self._guard})

    async def _end_guard(self, guard: asyncio.Task[None]) -> None:
        """End the guard; one that is telling the listener of a loss finishes that first."""
        if not self._lost.done():
            guard.cancel()
        await asyncio.wait({guard})
        if not guard.cancelled():
            guard.result()  # an error of the listener


def _stream(topic: str) -> str:
    return f"log:{topic}"


def _cursors(topic: str) -> str:
    return f"log:{topic}:cursors"


def _headers(value: bytes) -> Mapping[str, str]:
    try:
        return _decode_headers(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _timestamp(value: bytes) -> int:
    return int(value) if value.isdigit() else 0
