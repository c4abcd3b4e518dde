"""The address of a process, taken before anything else is started."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from duologue.domain.errors import StartRefused

BACKLOG: Final = 2048
"""Connections that may wait to be served, as far as the system allows as many."""


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything else is started.

    Raises:
        StartRefused: another program has it, or there is no such address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with contextlib.ExitStack() as undo:
            bound = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
            undo.pop_all()
    except OSError as error:
        raise StartRefused(f"cannot listen on {host}:{port}: {error.strerror or error}. Set HOST or PORT.") from error
    return bound


def listen(host: str, port: int) -> socket.socket:
    """Take the address, and let clients connect: they wait for the answer until somebody serves them.

    For a process that nothing stands in front of. A client that is refused while it starts comes back later and later;
    one that waits is served as soon as it can be. A proxy would rather hear at once that it has to ask another.

    Raises:
        StartRefused: as `bind`.
    """
    bound = bind(host, port)
    bound.listen(BACKLOG)
    return bound
