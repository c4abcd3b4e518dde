"""Addresses of servers, as people write them."""

from __future__ import annotations

from duologue.domain.errors import StartRefused


def server_address(url: str) -> str:
    """Return the base address of the server that `url` names; `http://` may be left out.

    Raises:
        StartRefused: it is no address over HTTP.
    """
    address = (url if "://" in url else f"http://{url}").rstrip("/")
    scheme, _, host = address.partition("://")
    if scheme not in {"http", "https"} or not host or any(character.isspace() for character in host):
        raise StartRefused(f"{url} is not the address of a server; it looks like http://127.0.0.1:8080.")
    return address
