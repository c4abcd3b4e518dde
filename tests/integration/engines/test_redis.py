"""The pipelined connection, on a real Valkey."""

import asyncio

import pytest
import uvloop

from duologue.cluster.valkey import ValkeyServer
from duologue.domain.errors import RedisUnavailable, StartRefused
from duologue.engines.redis import Redis, RedisCommandError, Script, Subscription

_INCREMENT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


async def test_calls_in_one_turn_take_effect_in_their_order(valkey: str) -> None:
    async with Redis(valkey, name="test") as redis:
        futures = [redis.call("RPUSH", "list", number) for number in range(1000)]
        assert await asyncio.gather(*futures) == list(range(1, 1001))
        assert await redis.call("LRANGE", "list", 0, -1) == [str(number).encode() for number in range(1000)]


async def test_script_forgotten_by_redis_is_sent_whole(valkey: str) -> None:
    async with Redis(valkey, name="test", scripts=[_INCREMENT]) as redis:
        assert await redis.run(_INCREMENT, ["n"], [2]) == 2
        await redis.call("SCRIPT", "FLUSH")
        assert await redis.run(_INCREMENT, ["n"], [3]) == 5


async def test_command_refused_for_its_data_fails_alone(valkey: str) -> None:
    async with Redis(valkey, name="test") as redis:
        before, wrong, after = redis.call("SET", "k", "v"), redis.call("INCR", "k"), redis.call("GET", "k")
        assert await before == b"OK"
        with pytest.raises(RedisCommandError):
            await wrong
        assert await after == b"v"


def test_connection_that_breaks_in_the_turn_of_a_call_fails_the_call_and_nothing_else(valkey: str) -> None:
    faults: list[dict[str, object]] = []

    async def call() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with Redis(valkey, name="test") as redis:
            assert redis._wire is not None
            redis._wire.close()  # its end is told before the call is sent
            waiting = redis.call("GET", "k")
            with pytest.raises(RedisUnavailable):
                await waiting

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # which raises where asyncio's own does not
        runner.run(call())
    assert faults == []


async def test_cancelled_call_does_not_shift_the_replies_of_others(valkey: str) -> None:
    async with Redis(valkey, name="test") as redis:
        first, second = redis.call("ECHO", "1"), redis.call("ECHO", "2")
        first.cancel()
        assert await second == b"2"


async def test_full_server_is_unavailable_not_refusing(valkey_server: ValkeyServer) -> None:
    async with Redis(valkey_server.url, name="test") as redis:
        await redis.call("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(RedisUnavailable):
            await redis.call("SET", "k", "v")


async def test_killed_server_fails_calls_and_comes_back(valkey_server: ValkeyServer) -> None:
    async with Redis(valkey_server.url, name="test") as redis:
        first_run = redis.run_id
        await redis.call("SET", "k", "v")
        waiting = redis.call("BLPOP", "nothing", 0)
        valkey_server.kill()
        with pytest.raises(RedisUnavailable):
            await waiting
        with pytest.raises(RedisUnavailable):
            await redis.call("GET", "k")
        valkey_server.start()
        async with asyncio.timeout(10):
            await redis.connected.wait()
        assert await redis.call("GET", "k") == b"v"
        assert redis.run_id != first_run


async def test_stopped_server_fails_calls_within_the_time_limit(valkey_server: ValkeyServer) -> None:
    async with Redis(valkey_server.url, name="test", timeout_seconds=0.2) as redis:
        valkey_server.pause()
        async with asyncio.timeout(5):
            with pytest.raises(RedisUnavailable, match="did not answer"):
                await redis.call("PING")
        valkey_server.resume()
        async with asyncio.timeout(10):
            await redis.connected.wait()
        assert await redis.call("PING") == b"PONG"


async def test_absent_server_at_start_is_unavailable() -> None:
    with pytest.raises(RedisUnavailable):
        async with Redis("unix:///nowhere.sock", name="test"):
            pass


async def test_wrong_password_at_start_is_refused(valkey_server: ValkeyServer) -> None:
    valkey_server.execute("CONFIG", "SET", "requirepass", "right")
    separator = "&" if "?" in valkey_server.url else "?"
    with pytest.raises(StartRefused, match="refuses"):
        async with Redis(f"{valkey_server.url}{separator}password=wrong", name="test"):
            pass
    async with Redis(f"{valkey_server.url}{separator}password=right", name="test") as redis:
        assert await redis.call("PING") == b"PONG"


async def test_subscription_hears_publications_until_it_unsubscribes(valkey: str) -> None:
    heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    async with (
        Redis(valkey, name="test") as redis,
        Subscription(valkey, name="ear", on_message=lambda *message: heard.put_nowait(message)) as ear,
    ):
        await ear.subscribe("one")
        assert await redis.call("PUBLISH", "one", "hello") == 1
        async with asyncio.timeout(5):
            assert await heard.get() == (b"one", b"hello")
        await ear.unsubscribe("one")
        assert await redis.call("PUBLISH", "one", "nobody") == 0


async def test_subscription_renewed_hears_its_own_channel_on_the_new_connection(valkey: str) -> None:
    heard: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
    returned = asyncio.Event()
    async with (
        Redis(valkey, name="test") as redis,
        Subscription(
            valkey,
            name="ear",
            on_message=lambda *message: heard.put_nowait(message),
            on_connected=returned.set,
            channel="own",
        ) as ear,
    ):
        async with asyncio.timeout(10):
            assert await redis.call("PUBLISH", "own", "hello") == 1
            assert await heard.get() == (b"own", b"hello")
            ear.renew("the test says so")
            await returned.wait()
            assert await redis.call("PUBLISH", "own", "again") == 1
            assert await heard.get() == (b"own", b"again")


async def test_subscription_cut_by_the_server_announces_its_return(valkey_server: ValkeyServer) -> None:
    returned = asyncio.Event()
    async with (
        Redis(valkey_server.url, name="test") as redis,
        Subscription(valkey_server.url, name="ear", on_message=lambda *_: None, on_connected=returned.set) as ear,
    ):
        await ear.subscribe("one")
        await redis.call("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(10):
            await returned.wait()
        await ear.subscribe("one")
        assert await redis.call("PUBSUB", "NUMSUB", "one") == [b"one", 1]


async def test_task_that_is_cancelled_while_it_closes_its_connection_ends_cancelled(valkey: str) -> None:
    go = asyncio.Event()

    async def use() -> None:
        async with Redis(valkey, name="test"):
            await go.wait()
        await asyncio.sleep(3600)

    task = asyncio.create_task(use())
    async with Redis(valkey, name="other") as other:
        while b"duologue-test" not in await other.call("CLIENT", "LIST"):
            pass
    go.set()
    await asyncio.sleep(0)  # now it waits for the connection's own task to end
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    assert task.cancelled()
