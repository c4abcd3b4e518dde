"""The fallback chain as it is configured: which models stand in, where, and with which key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from duologue.config import BUILTIN_MODEL
from duologue.domain.errors import StartRefused
from duologue.llm.openai_compatible import host_of, may_be_key

MAX_FALLBACKS: Final = 4
"""Each adds up to MODEL_RETRY_SECONDS to what a user waits for a failure."""

_ENTRY: Final = re.compile(r"(?P<model>\S+?)(@(?P<url>https?://\S*))?")


class Address(NamedTuple):
    """Where a provider is reached, and with what key: together they are one provider."""

    base_url: str
    api_key: str


class Fallback(NamedTuple):
    """A model that stands in. Both are None for the built-in one."""

    model: str | None
    address: Address | None


def read_fallbacks(names: Sequence[str], keys: str, first: Address | None) -> list[Fallback]:
    """Read `FALLBACK_MODELS` and `FALLBACK_API_KEYS`. The key of one address is never used for another.

    Args:
        names: each `model` (at the first provider), `model@https://host/v1`, or `builtin`.
        keys: `host=key`, separated by commas.
        first: the provider that is asked first, None if that is the built-in model.

    Raises:
        StartRefused: one cannot be; the words hold nothing of a key.
    """
    if len(names) > MAX_FALLBACKS:
        raise StartRefused(f"FALLBACK_MODELS has {len(names)} models: at most {MAX_FALLBACKS} can stand in")
    by_host = _read_keys(keys)
    fallbacks = [_read(name, by_host, first) for name in names]
    used = {host_of(each.address.base_url) for each in fallbacks if each.address not in (None, first)}
    for number, host in enumerate(by_host, 1):
        if host not in used:  # not named: what stands there may be the key, written the wrong way round
            raise StartRefused(
                f"FALLBACK_API_KEYS: entry {number} is for a host that no model of FALLBACK_MODELS is at"
            )
    return fallbacks


def _read(name: str, keys: Mapping[str, str], first: Address | None) -> Fallback:
    entry = _ENTRY.fullmatch(name)
    if entry is None:
        raise StartRefused(f"FALLBACK_MODELS: {name!r} is neither model nor model@https://host/v1")
    model, url = entry["model"], entry["url"]
    if url is not None:
        return Fallback(model, _address(name, url.rstrip("/"), keys, first))
    if model == BUILTIN_MODEL and first is not None:
        return Fallback(None, None)
    if model == BUILTIN_MODEL:
        raise StartRefused("FALLBACK_MODELS: the built-in model is asked first already, as no provider is set")
    if first is None:
        raise StartRefused(
            f"FALLBACK_MODELS: {name!r} is to be asked for at the first provider, but that is the built-in model, "
            f"which has no other: write {name}@https://host/v1, or set OPENAI_BASE_URL or OPENAI_API_KEY"
        )
    return Fallback(model, first)


def _address(name: str, url: str, keys: Mapping[str, str], first: Address | None) -> Address:
    try:
        host = host_of(url)
    except ValueError as error:
        raise StartRefused(f"FALLBACK_MODELS: the address of {name.partition('@http')[0]!r} cannot be one") from error
    if host not in keys and first is not None and url == first.base_url:
        return first
    return Address(url, keys.get(host, ""))


def _read_keys(keys: str) -> dict[str, str]:
    by_host: dict[str, str] = {}
    for number, entry in enumerate((entry.strip() for entry in keys.split(",") if entry.strip()), 1):
        host, separator, key = (part.strip() for part in entry.partition("="))
        if not (host and separator and key):
            raise StartRefused(f"FALLBACK_API_KEYS: entry {number} is not host=key")
        if not may_be_key(key):
            raise StartRefused(f"FALLBACK_API_KEYS: entry {number} has characters that no key has")
        if host.lower() in by_host:
            raise StartRefused(f"FALLBACK_API_KEYS: entry {number} is for a host that has a key already")
        by_host[host.lower()] = key
    return by_host
