"""`duologue chat`: a conversation at a terminal, or one message and its answer in a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

import aiohttp

from duologue.chat.guest_name import guest_name
from duologue.chat.keyboard import Keyboard
from duologue.chat.options import ChatOptions, checked_user, connection_options
from duologue.chat.screen import Screen, write
from duologue.chat.script import answer_once, read_message
from duologue.chat.session import ChatSession, Leave, Switch, explain
from duologue.client.address import server_address
from duologue.client.connection import ClientConnection
from duologue.client.http_api import HttpApi
from duologue.client.tokens import GuestTokens, TokenFile
from duologue.domain.errors import DuologueError

__all__ = ["ChatOptions", "run_chat"]

_FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class _Access:
    """Who talks to which server, and with what."""

    server: str
    user: str
    tokens: GuestTokens
    api: HttpApi


async def run_chat(options: ChatOptions) -> int:
    """Talk at the terminal; if standard input or output is none, send what comes in and print the answer.

    Returns:
        The exit code: 0, or 1 after an error, which is told on standard error.
    """
    server = options.url
    try:
        server = server_address(options.url)
        async with _open_access(options, server) as access:
            if sys.stdin.isatty() and sys.stdout.isatty():
                return await _converse(options, access)
            return await _answer(options, access)
    except DuologueError as error:
        _complain(explain(error, server))
        return _FAILED
    except OSError as error:
        _complain(f"A file or the terminal cannot be used: {error}")
        return _FAILED


@contextlib.asynccontextmanager
async def _open_access(options: ChatOptions, server: str) -> AsyncIterator[_Access]:
    user = checked_user(options.user) if options.user else guest_name()
    async with aiohttp.ClientSession() as http:
        tokens = GuestTokens(http, server, user, file=TokenFile())
        yield _Access(server, user, tokens, HttpApi(http, server, tokens))


async def _answer(options: ChatOptions, access: _Access) -> int:
    message = await read_message()
    if not message:
        _complain("There is nothing to send: standard input is empty.")
        return _FAILED
    wanted = connection_options(options, access.server, access.user)
    async with ClientConnection(wanted, access.tokens) as connection:
        write(await answer_once(connection, message) + "\n")
    return 0


async def _converse(options: ChatOptions, access: _Access) -> int:
    await access.tokens.token()
    screen = Screen()
    with Keyboard(sys.stdin.fileno(), write) as keyboard:
        while True:
            outcome = await _one_conversation(options, access, keyboard, screen)
            if isinstance(outcome, Leave):
                return outcome.exit_code
            options = replace(options, character=outcome.character, conversation=outcome.conversation)


async def _one_conversation(
    options: ChatOptions, access: _Access, keyboard: Keyboard, screen: Screen
) -> Leave | Switch:
    session = ChatSession(access.api, keyboard, screen, user=access.user, server=access.server)
    wanted = connection_options(options, access.server, access.user)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, session.interrupt)
    try:
        async with ClientConnection(wanted, access.tokens, history=access.api, on_event=session.attend) as connection:
            return await session.run(connection)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _complain(text: str) -> None:
    sys.stderr.write(f"duologue: {text}\n")
