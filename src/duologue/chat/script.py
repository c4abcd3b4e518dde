"""One message, one answer: what `duologue chat` does when it stands in a pipe."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from typing import Final

from duologue.chat.words import error_in_words, failure_in_words, sentence
from duologue.client.connection import ClientConnection, MessageRefused
from duologue.client.conversation_view import Phase
from duologue.client.event_feed import ConnectionEnded
from duologue.client.events import Closed, Open, Reconnecting
from duologue.client.tokens import ServerUnreachable
from duologue.domain.errors import DuologueError
from duologue.protocol.codes import CloseCode

_OPEN_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 900.0


async def read_message() -> str:
    """Return all of standard input, decoded as UTF-8, without the blank space around it."""
    descriptor = sys.stdin.fileno()
    data = await _read_to_end(descriptor) if _can_wait_for(descriptor) else sys.stdin.buffer.read()
    return data.decode("utf-8", "replace").strip()


async def answer_once(connection: ClientConnection, message: str) -> str:
    """Send `message` and return the answer.

    Raises:
        ServerUnreachable: no server answers.
        DuologueError: the message was refused, the reply failed, or the connection ended; the text says why.
    """
    await wait_until_open(connection)
    try:
        exchange = await connection.ask(message, timeout_seconds=_ANSWER_SECONDS)
    except MessageRefused as error:
        raise DuologueError(f"The message was refused. {error_in_words(error.frame)}") from error
    if exchange.phase is Phase.FAILED:
        raise DuologueError(failure_in_words(exchange))
    return exchange.text


async def wait_until_open(connection: ClientConnection) -> None:
    """Wait for the first attachment.

    Raises:
        ServerUnreachable: the first try did not succeed.
        DuologueError: the server refuses this user.
    """
    await connection.until(lambda: not _is_undecided(connection), timeout_seconds=_OPEN_SECONDS)
    if isinstance(connection.state, Reconnecting):
        raise ServerUnreachable(connection.state.why)
    if isinstance(connection.state, Closed):
        raise ConnectionEnded(sentence(connection.state.reason))


def _is_undecided(connection: ClientConnection) -> bool:
    match connection.state:
        case Open() | Closed():
            return False
        case Reconnecting(code=code):
            return code == CloseCode.INVALID_TOKEN  # a token of the server that was here before: a new one is asked for
        case _:
            return True


def _can_wait_for(descriptor: int) -> bool:
    """Tell whether the event loop can wait for it: files are always ready, and cannot be waited for."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


async def _read_to_end(descriptor: int) -> bytes:
    """Read whenever there is something, so that Ctrl-C works while the other end is silent.

    The descriptor stays in blocking mode, since the shell and other processes share it.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    parts: list[bytes] = []

    def read() -> None:
        try:
            data = os.read(descriptor, 65536)
        except OSError as error:
            ended.set_exception(error)
            return
        if data:
            parts.append(data)
        elif not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, read)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
    return b"".join(parts)
