"""How fast this machine is right now: the CPU time of a fixed amount of the kind of work that the program does.

Costs that were measured at different times, or on different machines, are compared relative to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import uvloop

ROUNDS: Final = 7
_FRAMES: Final = 24_000
_ENTRIES: Final = 150_000
_DIGESTS: Final = 900
_ECHOES: Final = 4_000

_FRAME: Final = {
    "type": "response",
    "id": "0199e1f2-7c3a-7d10-8a43-1f2e3d4c5b6a",
    "content": "What was said, in a sentence or two, with “quotes” and a number: 42. " * 3,
    "seq": 17,
    "usage": {"prompt_tokens": 812, "completion_tokens": 64},
    "metadata": None,
}
_BLOCK: Final = bytes(range(256)) * 256
_ECHOED: Final = b"x" * 256


def calibrate() -> float:
    """Return the CPU seconds of a fixed amount of work, about 0.13; takes about a second.

    Each part of it counts as in its best round, as what disturbs a round only adds to it. Not from a thread that runs
    an event loop; other threads' work is not in it.
    """
    parts: tuple[Callable[[], None], ...] = (_json, _dicts, _digests, _echoes)
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(ROUNDS):
        for part in parts:
            began = time.thread_time()
            part()
            best[part] = min(best[part], time.thread_time() - began)
    return sum(best.values())


def _json() -> None:
    decoder = msgspec.json.Decoder(dict[str, Any])
    for _ in range(_FRAMES):
        decoder.decode(msgspec.json.encode(_FRAME))


def _dicts() -> None:
    entries: dict[str, list[int]] = {}
    for number in range(_ENTRIES):
        entries.setdefault(f"user:{number % 997}", []).append(number)
    assert sum(map(len, entries.values())) == _ENTRIES  # noqa: S101  # and so nothing of it is left out


def _digests() -> None:
    digest = b""
    for _ in range(_DIGESTS):
        digest = hashlib.sha256(digest + _BLOCK).digest()


def _echoes() -> None:
    """Send something to and fro on a pair of sockets: system calls and turns of the event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_echo())


async def _echo() -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    one, other = socket.socketpair()
    answering, _ = await loop.create_connection(_Echo, sock=one)
    asking, _ = await loop.create_connection(lambda: _Asking(ended), sock=other)
    asking.write(_ECHOED)
    await ended
    asking.close()
    answering.close()
    await asyncio.sleep(0)


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # a stream's is one

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Asking(_Echo):
    def __init__(self, ended: asyncio.Future[None]) -> None:
        self._ended = ended
        self._left = _ECHOES

    def data_received(self, data: bytes) -> None:
        self._left -= 1
        if self._left:
            self._transport.write(data)
        elif not self._ended.done():
            self._ended.set_result(None)
