"""Addresses of Redis."""

import ssl

import pytest

from duologue.domain.errors import StartRefused
from duologue.engines.redis_address import RedisAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisAddress(host="cache")),
        ("redis://cache:7000/3", RedisAddress(host="cache", port=7000, database=3)),
        ("redis://:p%40ss@cache", RedisAddress(host="cache", password="p@ss")),
        ("redis://ada:secret@[::1]:1", RedisAddress(host="::1", port=1, username="ada", password="secret")),
        (
            "redis://cache?password=x&username=y&db=2",
            RedisAddress(host="cache", username="y", password="x", database=2),
        ),
        ("unix:///run/valkey.sock", RedisAddress(host="localhost", path="/run/valkey.sock")),
        (
            "unix:///run/v.sock?db=1&password=x",
            RedisAddress(host="localhost", path="/run/v.sock", database=1, password="x"),
        ),
    ],
)
def test_url_of_redis_is_read_in_all_its_forms(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


def test_url_with_tls_checks_the_server_unless_told_otherwise() -> None:
    checked, unchecked = parse_redis_url("rediss://cache").tls, parse_redis_url("rediss://cache?ssl_cert_reqs=none").tls
    assert checked is not None
    assert unchecked is not None
    assert (checked.verify_mode, unchecked.verify_mode) == (ssl.CERT_REQUIRED, ssl.CERT_NONE)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cache:6379",
        "http://cache",
        "redis://:secret@cache:port",
        "redis://:secret@cache/x",
        "rediss://:secret@cache?ssl_ca_certs=/none",
    ],
)
def test_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StartRefused) as refused:
        parse_redis_url(url)
    assert "secret" not in str(refused.value)
