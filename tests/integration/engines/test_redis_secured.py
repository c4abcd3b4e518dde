"""A Redis behind TLS, with passwords and with users of limited rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog
from tests.support.pipeline import until
from tests.support.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE, tls_front

from duologue.cluster.valkey import ValkeyServer
from duologue.config import Settings
from duologue.domain.errors import RedisUnavailable, StartRefused
from duologue.engines.redis import Redis, Script, Subscription
from duologue.engines.redis_address import shared_redis_url
from duologue.log.valkey_streams import open_streams_log

_SET = Script("return redis.call('SET', KEYS[1], ARGV[1])")


def _socket(server: ValkeyServer) -> str:
    return server.url.removeprefix("unix://")


@pytest.fixture
async def port(valkey_server: ValkeyServer) -> AsyncIterator[int]:
    """A port of `localhost` behind which there is a Valkey with TLS and a password."""
    valkey_server.execute("CONFIG", "SET", "requirepass", "s3cret/ä@")
    async with tls_front(_socket(valkey_server)) as opened:
        yield opened


def _url(address: str, **settings: str) -> str:
    return shared_redis_url(Settings.model_validate({"redis_url": address, **settings}))


async def _refusal(url: str) -> str:
    """Return the words of whoever starts with this address."""
    with pytest.raises(StartRefused) as refused:
        async with Redis(url, name="test", may_be_away=True):
            pass
    assert "s3cret" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("in_settings", [True, False], ids=["settings", "address"])
async def test_calls_and_publications_pass_through_tls_with_a_password(port: int, in_settings: bool) -> None:
    if in_settings:
        url = _url(f"rediss://localhost:{port}", redis_password="s3cret/ä@", redis_ssl_ca_location=str(CA_FILE))
    else:
        url = _url(f"rediss://:s3cret%2F%C3%A4%40@localhost:{port}/0?ssl_ca_certs={CA_FILE}")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with (
        Redis(url, name="test", scripts=[_SET]) as redis,
        Subscription(url, name="ear", on_message=lambda _, payload: heard.put_nowait(payload)) as ear,
    ):
        await ear.subscribe("one")
        big = "x" * 1_000_000
        assert await redis.run(_SET, ["k"], [big]) == b"OK"
        assert await redis.call("GET", "k") == big.encode()
        await asyncio.gather(*(redis.call("PUBLISH", "one", number) for number in range(100)))
        async with asyncio.timeout(5):
            assert [await heard.get() for _ in range(100)] == [b"%d" % number for number in range(100)]


async def test_connection_by_tls_comes_back_by_itself(port: int) -> None:
    url = _url(f"rediss://localhost:{port}", redis_password="s3cret/ä@", redis_ssl_ca_location=str(CA_FILE))
    async with Redis(url, name="test") as redis, Redis(url, name="other") as other:
        before = await redis.call("CLIENT", "ID")

        async def is_another() -> bool:
            try:
                return bool(await redis.call("CLIENT", "ID") != before)
            except RedisUnavailable:
                return False

        await other.call("CLIENT", "KILL", "SKIPME", "yes")
        await until(is_another)


async def test_certificate_of_an_unknown_authority_is_refused_in_words(port: int) -> None:
    refusal = await _refusal(_url(f"rediss://:s3cret@localhost:{port}"))
    assert refusal.startswith("the certificate of Redis is not trusted: ")
    assert "REDIS_SSL_CA_LOCATION" in refusal


async def test_certificate_of_another_host_is_refused_in_words(port: int) -> None:
    address = f"rediss://127.0.0.1:{port}"
    refusal = await _refusal(_url(address, redis_ssl_ca_location=str(CA_FILE)))
    assert "not valid for '127.0.0.1'" in refusal
    checked = _url(
        f"{address}?ssl_check_hostname=false", redis_password="s3cret/ä@", redis_ssl_ca_location=str(CA_FILE)
    )
    unchecked = _url(f"{address}?ssl_cert_reqs=none", redis_password="s3cret/ä@")
    for url in (checked, unchecked):
        async with Redis(url, name="test") as redis:
            assert await redis.call("PING") == b"PONG"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("rediss://:s3cret-no@localhost:{port}", "WRONGPASS"),
        ("rediss://s3cret:s3cret@localhost:{port}", "WRONGPASS"),
        ("rediss://localhost:{port}", "NOAUTH"),
    ],
)
async def test_wrong_password_through_tls_is_refused_in_words(port: int, address: str, reason: str) -> None:
    refusal = await _refusal(_url(address.format(port=port), redis_ssl_ca_location=str(CA_FILE)))
    assert refusal.startswith(f"Redis refuses the connection: {reason} ")


async def test_password_where_none_is_asked_for_is_refused_in_words(valkey_server: ValkeyServer) -> None:
    assert "without any password configured" in await _refusal(_url(valkey_server.url, redis_password="s3cret"))


async def test_plain_address_of_a_server_with_tls_is_told_what_it_lacks(port: int) -> None:
    with pytest.raises(RedisUnavailable, match="if it wants TLS, its address begins with rediss://"):
        async with Redis(f"redis://localhost:{port}", name="test", timeout_seconds=2.0):
            pass


async def test_tls_address_of_a_server_without_is_told_so() -> None:
    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        with pytest.raises(RedisUnavailable, match=r"no TLS with Redis: .*redis://"):
            async with Redis(f"rediss://localhost:{port}?ssl_ca_certs={CA_FILE}", name="test"):
                pass


async def test_server_that_asks_for_a_certificate_is_shown_the_one_of_the_address(valkey_server: ValkeyServer) -> None:
    async with tls_front(_socket(valkey_server), asks_for_certificate=True) as port:
        url = f"rediss://localhost:{port}?ssl_ca_certs={CA_FILE}"
        with pytest.raises(RedisUnavailable, match="if it asks for a certificate of this client"):
            async with Redis(url, name="test"):
                pass
        shown = f"{url}&ssl_certfile={CERTIFICATE_FILE}&ssl_keyfile={KEY_FILE}"
        async with Redis(shown, name="test") as redis:
            assert await redis.call("PING") == b"PONG"


async def test_password_changed_while_it_works_is_told_again_and_again_until_it_is_right(
    valkey_server: ValkeyServer,
) -> None:
    valkey_server.execute("ACL", "SETUSER", "duologue", "on", ">first", "~*", "&*", "+@all")
    url = f"{valkey_server.url}?username=duologue&password=first"
    with structlog.testing.capture_logs() as lines:
        async with Redis(url, name="test") as redis:
            valkey_server.execute("ACL", "SETUSER", "duologue", "resetpass", ">second")
            valkey_server.execute("CLIENT", "KILL", "USER", "duologue")
            await until(lambda: len([line for line in lines if line["event"] == "redis_unavailable"]) >= 3)
            assert "Redis refuses the connection: WRONGPASS" in lines[-1]["error"]
            with pytest.raises(RedisUnavailable):
                await redis.call("PING")
            valkey_server.execute("ACL", "SETUSER", "duologue", "resetpass", ">first")
            await until(redis.connected.is_set)
            assert await redis.call("PING") == b"PONG"


async def test_user_without_a_right_is_told_so_and_the_data_is_not_blamed(valkey_server: ValkeyServer) -> None:
    """A record that Redis refuses for its data is set aside; for a right that an operator forgot, none may be."""
    valkey_server.execute("ACL", "SETUSER", "duologue", "on", ">pw", "~ours:*", "&user:*", "+@all")
    async with Redis(f"{valkey_server.url}?username=duologue&password=pw", name="test", scripts=[_SET]) as redis:
        publish = Script("return redis.call('PUBLISH', 'elsewhere', ARGV[1])")
        for call in (
            redis.call("SET", "theirs:k", "v"),
            redis.call("PUBLISH", "elsewhere", "v"),
            redis.run(_SET, ["theirs:k"], ["v"]),
            redis.run(publish, ["ours:k"], ["v"]),
        ):
            with pytest.raises(RedisUnavailable, match=r"Redis does not allow it: .*[Nn]o permissions"):
                await call
        assert await redis.run(_SET, ["ours:k"], ["v"]) == b"OK"


async def test_user_that_may_not_read_how_the_logs_server_is_set_is_refused_in_words(
    valkey_server: ValkeyServer,
) -> None:
    valkey_server.execute("ACL", "SETUSER", "duologue", "on", ">pw", "~*", "&*", "+@all", "-config")
    with pytest.raises(StartRefused, match=r"does not tell whether appendonly is yes: .*NOPERM"):
        async with open_streams_log(f"{valkey_server.url}?username=duologue&password=pw", takeover=True):
            pass
