"""A Redis that is shared, and limited: every key of a user in one slot, and no more rights than the guide names."""

from __future__ import annotations

import ast
import asyncio
import binascii
import re
import shlex
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.delivery.support import RecordingSocket
from tests.support.pipeline import Pipeline, open_pipeline, settings
from tests.support.tls import CA_FILE, tls_front

from duologue.cluster.valkey import ValkeyServer
from duologue.config import Settings
from duologue.delivery.hub import Hub
from duologue.delivery.load import LoadBoard, LoadReport
from duologue.delivery.names import names_of
from duologue.delivery.roster import Announcement, Roster
from duologue.delivery.stream import CommandNote, RateLimit
from duologue.domain.ids import UserKey
from duologue.engines.redis import Redis, RedisCommandError
from duologue.engines.redis_address import shared_redis_url
from duologue.llm.port import ModelTemporaryError
from duologue.llm.scripted import Pause
from duologue.store.migrate import migrate

USERS = [UserKey("default", "alice"), UserKey("default", "bob.b@x_-"), UserKey("acme", "alice")]
_LIMIT = RateLimit(100, 60)
_OF_ALL = {"rate:address:192.0.2.1", "roster:{duologue}", "load:{duologue-load}"}
_KINDS = {"state", "events", "applied", "live", "ended", "note", "command", "pending", "rate", "repeats"}


def _key_slot(key: str) -> int:
    """Return a key's slot, as the specification of Redis Cluster has it."""
    tag = re.search(r"\{([^}]+)\}", key)
    return binascii.crc_hqx((tag[1] if tag else key).encode(), 0) % 16_384


def test_slot_of_a_key_is_the_specifications() -> None:
    assert [_key_slot(key) for key in ("foo", "{foo}bar", "state:{foo}:x", "123456789")] == [12182, 12182, 12182, 12739]


async def _talk(pipeline: Pipeline, hub: Hub, user: UserKey) -> None:
    """Let a user do everything that leaves something in Redis."""
    conversation = await pipeline.conversation(user)
    socket = RecordingSocket()
    await hub.attach(user, socket, None, socket.greet)
    pause = Pause()
    pipeline.model.play("half an ", pause, ModelTemporaryError("broken", cause="broken_stream", retry_after_seconds=0))
    pipeline.model.play("a whole answer")
    first = await pipeline.say(conversation, "one", user)
    await socket.until(lambda: "delta" in socket.types())
    late = RecordingSocket()
    await hub.attach(user, late, None, late.greet)
    assert "snapshot" in late.types()
    pause.open()
    await pipeline.answers(1, user)
    await socket.until(lambda: "response" in socket.types())
    await hub.resume(socket, socket.events[0].event_id)
    await hub.check()
    streams = pipeline.streams
    await streams.note(user, first.message_id, conversation.id)
    assert await streams.conversation_of(user, first.message_id) == conversation.id
    assert (await streams.admit(user, first.message_id, limit=_LIMIT)).duplicate
    assert not (await streams.admit(user, "another", limit=_LIMIT)).duplicate
    stop = CommandNote(conversation.id)
    assert (await streams.admit_command(user, "stop", limit=_LIMIT, like_message=False)).note is None
    assert await streams.reserve_command(user, "stop", stop) == stop
    await streams.note_command(user, "stop", stop)
    await streams.publish(user, b'{"type":"queued"}')
    await streams.publish_from(user, socket.session_id, b'{"type":"typing"}')
    assert await streams.reopen_live(user, "m-2", conversation.id, 1, 1, "text")
    for each in (socket, late):
        await hub.detach(each, clean=True)
    await hub._cursors.flush()


async def _busy(pipeline: Pipeline, hub: Hub, redis: Redis) -> None:
    async def nothing() -> Sequence[str]:
        return []

    announcement = Announcement(redis, server_id="test", roles={"api": dict}, failing=nothing)
    announcing = asyncio.create_task(announcement.run())
    await pipeline.relay()
    await pipeline.consumer(**settings().model_dump(include={"max_workers"}))
    for user in USERS:
        await _talk(pipeline, hub, user)
    await pipeline.streams.limit_address("192.0.2.1", _LIMIT)
    assert [each.state for each in await Roster(redis).present()] == ["ready"]
    figures = LoadReport(
        consumer="a",
        partitions=[0],
        waiting=0,
        unread=0,
        slots=1,
        running=0,
        wait_seconds=0.0,
        backlog_seconds=0.0,
        replies_per_second=1.0,
    )
    await LoadBoard(redis).report(figures)
    assert figures in [standing.report for standing in await LoadBoard(redis).read()]  # beside the pipeline's own
    await announcement.drain(5.0)
    await announcing


@asynccontextmanager
async def _pipeline(log_url: str, delivery_url: str, folder: Path) -> AsyncIterator[tuple[Pipeline, Hub]]:
    """Open a pipeline whose log is elsewhere, as it is with Kafka, and sockets on its users' streams."""
    database_url = f"sqlite:///{folder / 'duologue.db'}"
    migrate(database_url)
    async with AsyncExitStack() as stack:
        pipeline = await stack.enter_async_context(open_pipeline(log_url, database_url, delivery_url=delivery_url))
        hub = await stack.enter_async_context(Hub(delivery_url, pipeline.streams, cursor_delay_seconds=0.0))
        yield pipeline, hub


class _Call:
    """A command as MONITOR shows it, and those that it ran as a script."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.commands = [arguments]

    async def keys(self, redis: Redis) -> set[str]:
        found: set[str] = set()
        for arguments in self.commands:
            try:
                found |= {key.decode() for key in await redis.call("COMMAND", "GETKEYS", *arguments)}
            except RedisCommandError as error:
                if "no key arguments" not in str(error):
                    raise
        return found


def _calls(lines: Iterable[str]) -> list[_Call]:
    calls: list[_Call] = []
    for line in lines:
        origin, _, rest = line.partition("] ")
        # Its escapes are those of Python's bytes.
        arguments = [ast.literal_eval(f"b{text}").decode() for text in re.findall(r'"(?:\\.|[^"\\])*"', rest)]
        if origin.endswith(" lua"):
            calls[-1].commands.append(arguments)
        else:
            calls.append(_Call(arguments))
    return calls


@asynccontextmanager
async def _monitored(server: ValkeyServer) -> AsyncIterator[list[str]]:
    """Collect every command that the server runs; complete when the context has ended."""
    lines: list[str] = []
    reader, writer = await asyncio.open_unix_connection(server.url.removeprefix("unix://"), limit=2**24)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"

    async def collect() -> None:
        while not (line := (await reader.readline()).decode().rstrip("\r\n")).endswith('"ECHO" "the end"'):
            lines.append(line.removeprefix("+"))

    collecting = asyncio.create_task(collect())
    try:
        yield lines
        server.execute("ECHO", "the end")
        async with asyncio.timeout(10):
            await collecting
    finally:
        collecting.cancel()
        writer.close()


def _kind(key: str, tag: str) -> str:
    return "repeats" if key.endswith(":repeats") else key.partition(f":{tag}")[0]


async def test_every_key_of_a_user_and_of_a_call_is_in_one_slot(
    valkey: str, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with Redis(valkey_server.url, name="test") as redis:
        async with (
            _pipeline(valkey, valkey_server.url, tmp_path) as (pipeline, hub),
            _monitored(valkey_server) as lines,
        ):
            await _busy(pipeline, hub, redis)
            left = {key.decode() for key in await redis.call("KEYS", "*")}
            await pipeline.streams.forget(USERS[0])
        seen: set[str] = set()
        for call in _calls(lines):
            keys = await call.keys(redis) if call.commands[0][0] != "KEYS" else set()
            assert len({_key_slot(key) for key in keys}) <= 1, call.commands
            seen |= keys
        assert not [key async for key in _of(redis, USERS[0])]
    assert left <= seen
    tags = [names_of(user).tag for user in USERS]
    of_users = {tag: {key for key in seen if tag in key} for tag in tags}
    assert {key for key in seen if not any(tag in key for tag in tags)} == _OF_ALL
    for tag, keys in of_users.items():
        assert len({_key_slot(key) for key in keys}) == 1
        assert {_kind(key, tag) for key in keys} == _KINDS


async def _of(redis: Redis, user: UserKey) -> AsyncIterator[bytes]:
    for key in await redis.call("KEYS", "*"):
        if names_of(user).tag.encode() in key:
            yield key


def _documented_user() -> list[str]:
    """Return the command with which the guide makes a user for Duologue."""
    guide = Path(__file__).parents[3] / "docs/operations/running.md"
    found = re.search(r"^ACL SETUSER duologue .*$", guide.read_text(), re.MULTILINE)
    assert found is not None, "the guide does not say how to make a user"
    return shlex.split(found[0])


async def test_user_of_the_guide_has_all_rights_that_are_needed_also_through_tls(
    valkey: str, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    command = _documented_user()
    password = next(word[1:] for word in command if word.startswith(">"))
    valkey_server.execute(*command)
    valkey_server.execute("ACL", "SETUSER", "default", "off")
    async with tls_front(valkey_server.url.removeprefix("unix://")) as port:
        chosen: dict[str, Any] = {
            "redis_url": f"rediss://duologue@localhost:{port}",
            "redis_password": password,
            "redis_ssl_ca_location": str(CA_FILE),
        }
        url = shared_redis_url(Settings(**chosen))
        async with _pipeline(valkey, url, tmp_path) as (pipeline, hub), Redis(url, name="test") as redis:
            await _busy(pipeline, hub, redis)
            await pipeline.streams.revoke(USERS[0])
            await pipeline.streams.forget(USERS[0])
            with pytest.raises(Exception, match="NOPERM"):
                await redis.call("FLUSHALL")
