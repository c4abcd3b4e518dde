"""Users for tests that share a system."""

from __future__ import annotations

import secrets

import aiohttp


def unique(name: str) -> str:
    """Return a user id that no other test has: `name` with something behind it."""
    return f"{name}-{secrets.token_hex(4)}"


async def guest(url: str, name: str | None = None) -> str:
    """Return the token of a new guest of the system at `url`, of that name or any."""
    query = {"userid": name or unique("guest")}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/token", params=query) as response:
        response.raise_for_status()
        token: str = (await response.json())["token"]
        return token
