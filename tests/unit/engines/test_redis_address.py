"""Addresses of Redis."""

import ssl
from typing import Any

import pytest
from pydantic import SecretStr
from tests.support.tls import CA_FILE

from duologue.config import Settings
from duologue.domain.errors import StartRefused
from duologue.engines.redis_address import RedisAddress, parse_redis_url, shared_redis_url


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


@pytest.mark.parametrize(
    ("query", "mode", "checks_name"),
    [
        ("", ssl.CERT_REQUIRED, True),
        ("?ssl_cert_reqs=required", ssl.CERT_REQUIRED, True),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE, False),
        ("?ssl_cert_reqs=CERT_NONE", ssl.CERT_NONE, False),
        ("?ssl_check_hostname=false", ssl.CERT_REQUIRED, False),
        ("?ssl_check_hostname=True", ssl.CERT_REQUIRED, True),
    ],
)
def test_url_with_tls_checks_the_server_unless_told_otherwise(
    query: str, mode: ssl.VerifyMode, checks_name: bool
) -> None:
    tls = parse_redis_url(f"rediss://cache{query}").tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (mode, checks_name)


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"redis_host": "cache"}, RedisAddress(host="cache")),
        ({"redis_host": "::1", "redis_port": 7}, RedisAddress(host="::1", port=7)),
        ({"redis_host": "cache", "redis_password": "p@/ß +%"}, RedisAddress(host="cache", password="p@/ß +%")),
        (
            {"redis_url": "redis://ada@cache/2", "redis_password": "x"},
            RedisAddress(host="cache", database=2, username="ada", password="x"),
        ),
        ({"redis_url": "redis://:own@cache", "redis_password": "x"}, RedisAddress(host="cache", password="own")),
        (
            {"redis_url": "redis://cache?password=own", "redis_password": "x"},
            RedisAddress(host="cache", password="own"),
        ),
        (
            {"redis_url": "unix:///run/v.sock?db=1", "redis_password": "x"},
            RedisAddress(host="localhost", path="/run/v.sock", database=1, password="x"),
        ),
        ({"redis_url": "redis://cache", "redis_ssl_ca_location": "/none"}, RedisAddress(host="cache")),
        ({"redis_url": "redis://cache", "redis_host": "other", "redis_port": 1}, RedisAddress(host="cache")),
    ],
)
def test_settings_give_one_address_of_redis(settings: dict[str, Any], address: RedisAddress) -> None:
    assert parse_redis_url(shared_redis_url(Settings(**settings))) == address


def test_settings_without_a_redis_give_none() -> None:
    assert shared_redis_url(Settings(redis_password=SecretStr("x"), redis_ssl_ca_location="/none")) == ""


def test_settings_trust_the_authorities_that_they_name() -> None:
    with pytest.raises(StartRefused, match="a file that cannot be used"):
        parse_redis_url(shared_redis_url(Settings(redis_url="rediss://cache", redis_ssl_ca_location="/none")))
    own = {"redis_url": f"rediss://cache?ssl_ca_certs={CA_FILE}", "redis_ssl_ca_location": "/none"}
    tls = parse_redis_url(shared_redis_url(Settings.model_validate(own))).tls
    assert tls is not None
    assert len(tls.get_ca_certs()) == 1


def test_settings_with_an_address_that_is_none_are_refused_without_the_password() -> None:
    with pytest.raises(StartRefused) as refused:
        shared_redis_url(Settings(redis_url="redis://:secret@[::1"))
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cache:6379",
        "http://cache",
        "redis://:secret@cache:port",
        "redis://:secret@cache/x",
        "rediss://:secret@cache?ssl_ca_certs=/none",
        "redis://:secret@[::1",
        "redis://:secret@cache?sll_cert_reqs=none",
        "rediss://:secret@cache?ssl_cert_reqs=maybe",
        "rediss://:secret@cache?ssl_check_hostname=maybe",
    ],
)
def test_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StartRefused) as refused:
        parse_redis_url(url)
    assert "secret" not in str(refused.value)
