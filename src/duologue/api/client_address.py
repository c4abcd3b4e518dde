"""Where a request comes from, as a key to count by."""

from __future__ import annotations

import ipaddress
from typing import Final

from starlette.types import Scope

UNKNOWN: Final = "unknown"
"""Who sends what is no address, by a proxy that passes it on, counts as one with all others who do."""


def client_address(scope: Scope) -> str:
    """Return the address of a request's client; of one behind a trusted proxy, what the proxy says.

    An IPv6 address counts as its network of 64 bits: that is the least that one customer is given, and within it an
    address is theirs to choose (RFC 6177, RFC 4862).
    """
    client = scope.get("client")
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
