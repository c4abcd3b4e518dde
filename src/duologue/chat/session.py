"""A conversation at a terminal: lines in, replies out, whatever happens to the connection meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from duologue.chat.keyboard import EndOfInput, Keyboard
from duologue.chat.options import no_server
from duologue.chat.screen import Screen
from duologue.chat.script import wait_until_open
from duologue.chat.words import error_in_words, failure_in_words, sentence
from duologue.client.connection import ClientConnection
from duologue.client.conversation_view import Exchange, Frame, Phase
from duologue.client.event_feed import ConnectionEnded
from duologue.client.events import Closed, Dropped, Event, Open, Received, Reconnecting
from duologue.client.http_api import HttpApi, RequestRefused
from duologue.client.tokens import ServerUnreachable, TokenRefused
from duologue.domain.errors import DuologueError

_HISTORY_ROWS: Final = 20
_HISTORY_SHOWN: Final = 4
_FOREVER_SECONDS: Final = 24 * 3600.0
_HELP: Final = """\
/new                another conversation with the same character
/characters         who there is to talk to
/character SLUG     talk to somebody else
/quit               leave (also Ctrl-D or Ctrl-C)
Ctrl-J starts a new line within a message; Ctrl-C during a reply returns to the prompt."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The person wants to go."""

    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Switch:
    """The person wants another conversation."""

    character: str | None
    conversation: str | None


class ChatSession:
    """One conversation. `attend` is to be given to the connection as its `on_event`."""

    def __init__(self, api: HttpApi, keyboard: Keyboard, screen: Screen, *, user: str, server: str) -> None:
        self._api = api
        self._keyboard = keyboard
        self._screen = screen
        self._user = user
        self._server = server
        self._connection: ClientConnection
        self._character: Frame = {"name": "Assistant", "slug": None}
        self._conversation_id = ""
        self._features: list[str] = []
        self._awaited: str | None = None
        self._known: set[str] = set()
        self._is_ready = False
        self._is_lost = False
        self._interrupted = asyncio.Event()

    async def run(self, connection: ClientConnection) -> Leave | Switch:
        """Talk until the person wants something else.

        Raises:
            ServerUnreachable: no server answers at the first try.
            DuologueError: the server refuses this user, character or conversation.
        """
        self._connection = connection
        if not await self._unless_interrupted(self._begin()):
            return Leave()
        while True:
            try:
                line = (await self._keyboard.read_line()).strip()
            except EndOfInput:
                return Leave(1 if isinstance(connection.state, Closed) else 0)
            outcome = await self._obey(line) if line.startswith("/") else await self._say(line)
            if outcome is not None:
                return outcome

    async def _begin(self) -> None:
        await wait_until_open(self._connection)
        await self._greet()

    def interrupt(self) -> None:
        """Ctrl-C: during a reply back to the prompt, at the prompt the end."""
        self._interrupted.set()
        self._keyboard.interrupt()

    def attend(self, event: Event) -> None:
        """Show what happens on the connection."""
        match event:
            case Open(frame):
                self._attached(frame)
            case Reconnecting(_, why, _) if self._is_ready and not self._is_lost:
                self._is_lost = True  # said once: a server that is away for long would fill the screen
                self._remark(f"({why}; connecting again)", bad=True)
            case Closed(code, reason) if self._is_ready and code != 1000:
                self._remark(f"The connection has ended. {sentence(reason)}", bad=True)
                self.interrupt()
            case Dropped():
                self._remark("A message is too large for the server and was given up.", bad=True)
            case Received(frame, exchange) if self._is_ready:
                self._received(frame, exchange)
            case _:
                pass

    def _attached(self, frame: Frame) -> None:
        self._conversation_id = str(frame.get("conversation_id", ""))
        features = frame.get("features")
        self._features = features if isinstance(features, list) else []
        if self._is_lost:
            self._is_lost = False
            self._remark("(connected again)")

    def _remark(self, text: str, *, bad: bool = False) -> None:
        if self._awaited is None:
            self._keyboard.write_above(self._screen.render(self._screen.remark(text, bad=bad)))
        else:
            self._screen.notice(text, bad=bad)

    async def _greet(self) -> None:
        state = self._connection.state
        frame: Frame = state.frame if isinstance(state, Open) else {}
        await self._find_character(frame.get("character_id"))
        self._screen.header(
            server=self._server,
            server_id=str(frame.get("server_id", "?")),
            user=self._user,
            character=str(self._character["name"]),
            conversation_id=self._conversation_id,
        )
        await self._show_history()
        self._is_ready = True

    async def _find_character(self, character_id: object) -> None:
        with contextlib.suppress(RequestRefused, ServerUnreachable, TokenRefused):
            characters = await self._api.characters()
            found = (one for one in characters if character_id in {one.get("id"), one.get("slug")})
            self._character = next(found, self._character)

    async def _show_history(self) -> None:
        view = self._connection.view
        try:
            view.merge(await self._api.messages(self._conversation_id, limit=_HISTORY_ROWS))
        except (RequestRefused, ServerUnreachable, TokenRefused) as error:
            self._screen.notice(f"(the history cannot be read: {error})", bad=True)
        said = [one for one in view.in_conversation(self._conversation_id) if one.content is not None]
        self._known = {one.message_id for one in said if one.ended}
        earlier = [one for one in said if one.ended][-_HISTORY_SHOWN:]
        self._keyboard.write_above("".join(self._whole(one) for one in earlier))
        greeting = self._character.get("greeting")
        if not said and isinstance(greeting, str) and greeting:
            self._keyboard.write_above(self._screen.reply(greeting))

    def _whole(self, exchange: Exchange) -> str:
        text = self._screen.exchange(exchange)
        if exchange.phase is Phase.FAILED:
            text += self._screen.render(self._screen.remark(failure_in_words(exchange), bad=True))
        return text

    def _received(self, frame: Frame, exchange: Exchange | None) -> None:
        if exchange is not None and exchange.conversation_id == self._conversation_id:
            if self._is_awaited(exchange):
                self._follow(exchange)
            elif exchange.ended and exchange.message_id not in self._known and exchange.content is not None:
                self._known.add(exchange.message_id)
                self._keyboard.write_above(self._whole(exchange))
        elif frame.get("type") == "error" and exchange is None:
            self._show_error(frame)

    def _show_error(self, frame: Frame) -> None:
        words = error_in_words(frame)
        if frame.get("temporary") and frame.get("id") == self._awaited:
            words += f" Trying again in {frame.get('retry_after', 10):.0f} s."
        self._remark(words, bad=True)

    def _is_awaited(self, exchange: Exchange) -> bool:
        return self._awaited is not None and exchange.client_id == self._awaited

    def _follow(self, exchange: Exchange) -> None:
        if exchange.phase is Phase.WAITING:
            place = f" number {exchange.queue_position} in line" if exchange.queue_position else ""
            self._screen.status(f"…{place}")
        else:
            self._screen.show_reply(exchange.text)

    async def _say(self, content: str) -> Leave | None:
        if not content:
            return None
        try:
            self._awaited = self._connection.send(content)
        except OverflowError:
            self._remark("Too many messages wait for the server. Please wait until it answers.", bad=True)
            return None
        self._screen.begin_reply()
        self._screen.status("…")
        await self._wait_for_reply(self._awaited)
        return None

    async def _wait_for_reply(self, client_id: str) -> None:
        def settled() -> bool:
            exchange = self._connection.view.by_client_id(client_id)
            return client_id in self._connection.refusals or (exchange is not None and exchange.ended)

        with contextlib.suppress(ConnectionEnded):
            await self._unless_interrupted(self._connection.until(settled, timeout_seconds=_FOREVER_SECONDS))
        self._leave_reply(client_id)

    async def _unless_interrupted(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work` unless Ctrl-C is pressed meanwhile. Returns whether it was done; raises what it raises."""
        self._interrupted.clear()
        working = asyncio.create_task(work)
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({working, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_done = working.done()
            working.cancel()
            interrupted.cancel()
            outcome, _ = await asyncio.gather(working, interrupted, return_exceptions=True)
        if is_done and isinstance(outcome, BaseException):
            raise outcome
        return is_done

    def _leave_reply(self, client_id: str) -> None:
        exchange = self._connection.view.by_client_id(client_id)
        if exchange is not None and exchange.ended:
            self._known.add(exchange.message_id)
            if exchange.phase is Phase.FAILED:
                self._screen.notice(failure_in_words(exchange), bad=True)
        elif client_id not in self._connection.refusals:
            self._leave_unfinished(exchange)
        self._screen.end_reply()
        self._awaited = None

    def _leave_unfinished(self, exchange: Exchange | None) -> None:
        if exchange is not None and "stop" in self._features:
            self._connection.stop(exchange.message_id)
            self._known.add(exchange.message_id)
            self._screen.notice("(stopped)")
        else:
            self._screen.notice("(the reply will be shown when it is complete)")

    async def _obey(self, line: str) -> Leave | Switch | None:
        command, _, argument = line.partition(" ")
        match command, argument.strip():
            case "/quit" | "/exit" | "/q", _:
                return Leave()
            case "/new", _:
                return Switch(self._character.get("slug"), "new")
            case "/character", slug if slug:
                return await self._switch_to(slug)
            case "/characters" | "/character", _:
                await self._list_characters()
            case "/help", _:
                self._screen.notice(_HELP)
            case _:
                self._screen.notice(f"There is no command {command}; /help lists them.", bad=True)
        return None

    async def _switch_to(self, slug: str) -> Switch | None:
        try:
            known = {str(one["slug"]) for one in await self._api.characters()}
        except (RequestRefused, ServerUnreachable, TokenRefused) as error:
            self._screen.notice(str(error), bad=True)
            return None
        if slug in known:
            return Switch(slug, None)
        self._screen.notice(f"There is no character {slug}; there are {', '.join(sorted(known))}.", bad=True)
        return None

    async def _list_characters(self) -> None:
        try:
            self._screen.characters(await self._api.characters())
        except (RequestRefused, ServerUnreachable, TokenRefused) as error:
            self._screen.notice(str(error), bad=True)


def explain(error: DuologueError, server: str) -> str:
    """Return an error of the start, for people."""
    return no_server(server, str(error)) if isinstance(error, ServerUnreachable) else str(error)
