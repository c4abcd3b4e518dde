"""What goes over a hop."""

from __future__ import annotations

from typing import Final

import msgspec


class HopBytes(msgspec.Struct, frozen=True):
    """Bytes to a server and from it."""

    to_server: int
    from_server: int

    def __add__(self, other: HopBytes) -> HopBytes:
        return HopBytes(self.to_server + other.to_server, self.from_server + other.from_server)

    def __sub__(self, other: HopBytes) -> HopBytes:
        return HopBytes(self.to_server - other.to_server, self.from_server - other.from_server)


NO_BYTES: Final = HopBytes(0, 0)
