"""The ai-consumer and the message-relay on real engines, with a scripted model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from duologue.ai_consumer.worker import AiConsumer
from duologue.config import Settings
from duologue.delivery.load import LoadBoard
from duologue.delivery.publication import parse
from duologue.delivery.stream import UserStreams
from duologue.domain.clock import wall_clock
from duologue.domain.errors import LogUnavailable, StoreUnavailable
from duologue.domain.ids import UserKey, message_id, new_id
from duologue.domain.records import (
    INCOMING_TOPIC,
    IncomingRecord,
    MessageSubmitted,
    RegenerateRequested,
    StopRequested,
    encode,
)
from duologue.engines.redis import Redis, Subscription
from duologue.llm.choice import ModelChain
from duologue.llm.port import LanguageModel
from duologue.llm.scripted import Pause, ScriptedModel
from duologue.log.port import Log, LogConsumer, LogProducer, LogRecord, Partition, PartitionListener
from duologue.log.valkey_streams import open_streams_log
from duologue.message_relay.worker import MessageRelay
from duologue.store.conversations import ConversationRow, new_conversation
from duologue.store.database import Database, open_database
from duologue.store.schema import messages
from duologue.store.users import UserRow, ensure_user

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE_SECONDS: Final = 10.0
ALICE: Final = UserKey("default", "alice")
BOB: Final = UserKey("default", "bob")


def settings(**changes: Any) -> Settings:
    """Return the settings of a test's roles: eight replies at once, quick deltas, quick retries."""
    defaults: dict[str, Any] = {
        "server_id": "worker",
        "max_workers": 8,
        "delta_interval_ms": 10,
        "drain_seconds": 2.0,
        "openai_base_url": "http://unused",
    }
    return Settings(**(defaults | changes))


async def until(condition: Callable[[], object]) -> Any:
    """Return the first true result of a condition, which may be awaitable; fail after the deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            result = condition()
            if isinstance(result, Awaitable):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.005)


class Plug:
    """What connects a role to its engines. Pulled, every call fails, as it would for a process that has ended.

    A transaction whose name is in `pauses` waits there before it begins.
    """

    def __init__(self) -> None:
        self.pulled = False
        self.pauses: dict[str, Pause] = {}

    def check(self, error: type[Exception]) -> None:
        if self.pulled:
            raise error("the plug is pulled")


class PluggedDatabase:
    """A database through a plug. `refuse` may raise for a call that it is asked about."""

    def __init__(self, database: Database, plug: Plug) -> None:
        self._database = database
        self._plug = plug

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._plug.check(StoreUnavailable)
        return await self._database.read(query, *args, **kwargs)

    async def write(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._pass(query)
        return await self._database.write(query, *args, **kwargs)

    async def autocommit(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._pass(query)
        return await self._database.autocommit(query, *args, **kwargs)

    async def _pass(self, query: Callable[..., object]) -> None:
        self._plug.check(StoreUnavailable)
        if pause := self._plug.pauses.get(getattr(query, "__name__", "")):
            await pause.wait()

    async def check(self) -> None:
        self._plug.check(StoreUnavailable)
        await self._database.check()

    async def aclose(self) -> None:
        """The test owns the database."""


class PluggedLog:
    """A log through two plugs: one for reading and commits, one for appends."""

    def __init__(self, log: Log, commits: Plug, appends: Plug) -> None:
        self._log = log
        self._commits = commits
        self.producer = _PluggedProducer(log.producer, appends)

    @asynccontextmanager
    async def consumer(self, *, topic: str, group: str, listener: PartitionListener) -> AsyncIterator[LogConsumer]:
        async with self._log.consumer(topic=topic, group=group, listener=listener) as consumer:
            yield _PluggedConsumer(consumer, self._commits)

    def partition_of(self, topic: str, key: str) -> int:
        return self._log.partition_of(topic, key)

    async def check(self) -> None:
        await self._log.check()


class _PluggedProducer:
    def __init__(self, producer: LogProducer, plug: Plug) -> None:
        self._producer = producer
        self._plug = plug

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        self._plug.check(LogUnavailable)
        await self._producer.append(topic, key, value, headers)


class _PluggedConsumer:
    def __init__(self, consumer: LogConsumer, plug: Plug) -> None:
        self._consumer = consumer
        self._plug = plug

    async def poll(self, max_records: int, timeout_seconds: float) -> Sequence[LogRecord]:
        return await self._consumer.poll(max_records, timeout_seconds)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._plug.check(LogUnavailable)
        await self._consumer.commit(offsets)

    async def unread(self) -> Mapping[Partition, int]:
        return await self._consumer.unread()

    def pause(self, partition: Partition) -> None:
        self._consumer.pause(partition)

    def resume(self, partition: Partition) -> None:
        self._consumer.resume(partition)


class RunningConsumer:
    """An ai-consumer at work, and the plugs of its engines."""

    def __init__(self, pipeline: Pipeline, model: LanguageModel | ModelChain, chosen: Settings) -> None:
        self.store, self.appends, self.commits = Plug(), Plug(), Plug()
        self.role = AiConsumer(
            log=PluggedLog(pipeline.log, self.commits, self.appends),
            database=PluggedDatabase(pipeline.database, self.store),
            streams=pipeline.streams,
            board=pipeline.board,
            models=model if isinstance(model, ModelChain) else ModelChain.of(model),
            settings=chosen,
        )
        self.task = asyncio.create_task(self.role.run())

    async def crash(self) -> None:
        """End it as a kill would: from now on nothing that it does has an effect, but in Redis."""
        self.store.pulled = self.appends.pulled = self.commits.pulled = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def drain(self, seconds: float = 5.0) -> None:
        await self.role.drain(seconds)
        await self.task


class RunningRelay:
    """A message-relay at work."""

    def __init__(self, pipeline: Pipeline, chosen: Settings) -> None:
        self.appends, self.commits = Plug(), Plug()
        self.role = MessageRelay(
            log=PluggedLog(pipeline.log, self.commits, self.appends),
            database=pipeline.database,
            streams=pipeline.streams,
            settings=chosen,
        )
        self.task = asyncio.create_task(self.role.run())

    async def crash(self) -> None:
        self.appends.pulled = self.commits.pulled = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def drain(self, seconds: float = 5.0) -> None:
        await self.role.drain(seconds)
        await self.task


class Pipeline:
    """The engines of a test, and the roles that it starts on them."""

    def __init__(self, url: str, log: Log, redis: Redis, delivery: Redis, database: Database) -> None:
        self.url = url
        self.log = log
        self.redis = redis
        self.database = database
        self.streams = UserStreams(delivery, durable=True)
        self.board = LoadBoard(delivery)
        self.model = ScriptedModel()
        self._users: dict[UserKey, UserRow] = {}
        self._running: list[RunningConsumer | RunningRelay] = []

    async def consumer(
        self,
        model: LanguageModel | ModelChain | None = None,
        *,
        pauses: Mapping[str, Pause] = MappingProxyType({}),
        **changes: Any,
    ) -> RunningConsumer:
        """Start an ai-consumer; returns when it owns the log. See `Plug` for `pauses`."""
        running = RunningConsumer(self, model or self.model, settings(**changes))
        running.store.pauses.update(pauses)
        await self._started(running)
        return running

    async def relay(self, **changes: Any) -> RunningRelay:
        """Start a message-relay; returns when it owns the log."""
        running = RunningRelay(self, settings(**changes))
        await self._started(running)
        return running

    async def _started(self, running: RunningConsumer | RunningRelay) -> None:
        self._running.append(running)
        await until(lambda: running.role.assigned or running.task.done())
        if running.task.done():
            running.task.result()

    async def aclose(self) -> None:
        for running in self._running:
            running.task.cancel()
        results = await asyncio.gather(*(running.task for running in self._running), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def conversation(self, user: UserKey = ALICE) -> ConversationRow:
        """Make a conversation, and its user if need be."""
        row = await self.database.write(ensure_user, user.tenant, user.user_id, "guest", wall_clock())
        assert row is not None
        self._users[user] = row
        return await self.database.write(new_conversation, row, None, wall_clock())

    def message(self, conversation: ConversationRow, content: str, user: UserKey = ALICE) -> MessageSubmitted:
        """Return a message as the edge would append it."""
        uid, client_id = self._users[user].uid, new_id()
        return MessageSubmitted(
            tenant=user.tenant,
            user_id=user.user_id,
            uid=uid,
            message_id=message_id(
                tenant=user.tenant, uid=uid, client_id=client_id, content=content, conversation_id=None
            ),
            conversation_id=conversation.id,
            client_id=client_id,
            content=content,
            submitted_at=wall_clock(),
            correlation_id=f"c-{client_id}",
        )

    def stop(self, message: MessageSubmitted) -> StopRequested:
        """Return a request to stop the reply to a message."""
        return StopRequested(
            tenant=message.tenant,
            user_id=message.user_id,
            uid=message.uid,
            message_id=message.message_id,
            conversation_id=message.conversation_id,
            requested_at=wall_clock(),
            correlation_id=f"stop-{message.client_id}",
        )

    def regenerate(self, message: MessageSubmitted, attempt: int) -> RegenerateRequested:
        """Return a request to answer a message again, instead of what it was answered under `attempt`."""
        return RegenerateRequested(
            tenant=message.tenant,
            user_id=message.user_id,
            uid=message.uid,
            message_id=message.message_id,
            conversation_id=message.conversation_id,
            attempt=attempt,
            requested_at=wall_clock(),
            correlation_id=f"regenerate-{message.client_id}",
        )

    async def append(self, *records: IncomingRecord) -> None:
        """Put records on the log."""
        for record in records:
            await self.append_bytes(encode(record), record.conversation_id)

    async def append_bytes(self, value: bytes, key: str = "key") -> None:
        await self.log.producer.append(INCOMING_TOPIC, key, value, {"correlation_id": "c", "traceparent": "00-1-2-01"})

    async def say(self, conversation: ConversationRow, content: str, user: UserKey = ALICE) -> MessageSubmitted:
        """Put one message on the log and return it."""
        record = self.message(conversation, content, user)
        await self.append(record)
        return record

    async def durable(self, user: UserKey = ALICE) -> list[dict[str, Any]]:
        """Return all durable frames that a user's devices would have."""
        attached = await self.streams.attach(user, "none:0")
        return [json.loads(frame) for _, frame in attached.frames]

    async def answers(self, count: int, user: UserKey = ALICE) -> list[dict[str, Any]]:
        """Wait for a user's outcomes to be that many, and return them."""

        async def outcomes() -> list[dict[str, Any]]:
            found = [frame for frame in await self.durable(user) if frame["type"] in ("response", "error")]
            return found if len(found) >= count else []

        found: list[dict[str, Any]] = await until(outcomes)
        return found

    async def position(self, topic: str = INCOMING_TOPIC, group: str = "ai-consumer") -> int:
        """Return the offset at which the group's next owner begins."""
        return int(await self.redis.call("HGET", f"log:{topic}:cursors", group) or 1)

    async def records(self, topic: str) -> list[bytes]:
        """Return the values that a topic still has."""
        entries = await self.redis.call("XRANGE", f"log:{topic}", "-", "+")
        return [dict(zip(fields[::2], fields[1::2], strict=True))[b"v"] for _, fields in entries]

    async def replies(self) -> dict[str, tuple[int, str]]:
        """Return attempt and state of every reply, in the order of their turns."""
        return await self.database.read(_replies)

    async def stored(self, count: int) -> bool:
        """Tell whether the store has that many messages."""
        return len(await self.replies()) == count

    @asynccontextmanager
    async def listening(self, user: UserKey = ALICE) -> AsyncIterator[list[dict[str, Any]]]:
        """Collect everything that is published to a user while the context is open."""
        frames: list[dict[str, Any]] = []
        subscription: AbstractAsyncContextManager[Subscription] = Subscription(
            self.url, name="listener", on_message=lambda _, payload: frames.append(json.loads(parse(payload).frame))
        )
        async with subscription as heard:
            await heard.subscribe(f"user:{user.user_id}")
            yield frames


def _replies(conn: Connection) -> dict[str, tuple[int, str]]:
    rows = conn.execute(
        sa.select(messages.c.id, messages.c.attempt, messages.c.state)
        .where(messages.c.role == "assistant")
        .order_by(messages.c.conversation_id, messages.c.turn)
    )
    return {row[0]: (row[1], row[2]) for row in rows}


async def reply_states(pipeline: Pipeline, states: Sequence[str]) -> bool:
    """Tell whether the replies have these states."""
    return [state for _, state in (await pipeline.replies()).values()] == list(states)


@asynccontextmanager
async def open_pipeline(url: str, database_url: str, *, delivery_url: str | None = None) -> AsyncIterator[Pipeline]:
    """Open a pipeline on a Valkey, or one for the log and one for delivery, and a migrated database."""
    async with (
        open_streams_log(url, takeover=True, timeout_seconds=2.0) as log,
        Redis(delivery_url or url, name="test", scripts=UserStreams.scripts, timeout_seconds=2.0) as delivery,
        Redis(url, name="test-log") as redis,
        open_database(database_url) as database,
    ):
        pipeline = Pipeline(delivery_url or url, log, redis, delivery, database)
        try:
            yield pipeline
        finally:
            await pipeline.aclose()
