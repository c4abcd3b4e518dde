"""TCP ports of loopback for servers that are told theirs."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from typing import Final

_PORTS: Final = range(12_000, 30_000)
"""Below those that systems give to outgoing connections: a server that is started again finds its port free."""


def free_ports(count: int) -> list[int]:
    """Return ports on which nobody listens right now, all different."""
    chosen: list[int] = []
    with ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(chosen) == count:
                break
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen.append(port)
    return chosen
