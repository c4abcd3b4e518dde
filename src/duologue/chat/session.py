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
from duologue.client.typing_state import LAPSE_SECONDS
from duologue.domain.errors import DuologueError

_HISTORY_ROWS: Final = 20
_HISTORY_SHOWN: Final = 4
_FOREVER_SECONDS: Final = 24 * 3600.0
_STOPPED: Final = "(stopped)"
_TYPING_ELSEWHERE: Final = "typing elsewhere"
_TOO_MANY: Final = "Too many messages wait for the server. Please wait until it answers."
_HELP: Final = """\
/new                another conversation with the same character
/characters         who there is to talk to
/character SLUG     talk to somebody else
/stop               end the reply that is being written, on whatever device it was asked for
/regenerate         another answer to the last message
/quit               leave (also Ctrl-D or Ctrl-C)
Esc or Ctrl-C stops a reply; Ctrl-J starts a new line within a message."""
_STOP_SECONDS: Final = 5.0
"""How long to wait for the end of a reply that was stopped. Then the prompt comes without it."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The person wants to go."""

    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A reply that is waited for: asked for by the frame of this `id`, and of a higher attempt than `replaces`.

    `message_id` is that of the message if the frame is none itself.
    """

    frame_id: str
    message_id: str | None = None
    replaces: int = 0

    def is_in(self, exchange: Exchange) -> bool:
        """Tell whether it is the reply of this exchange."""
        return exchange.message_id == self.message_id or exchange.client_id == self.frame_id

    def has_ended(self, exchange: Exchange) -> bool:
        """Tell whether it has its outcome."""
        return exchange.ended and exchange.attempt > self.replaces


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
        self._awaited: _Awaited | None = None
        self._known: dict[str, int] = {}
        self._typing_lapse: asyncio.TimerHandle | None = None
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
        self._keyboard.on_edit = self._tell_typing
        try:
            return await self._converse(connection)
        finally:
            self._keyboard.on_edit = None
            self._keyboard.hint("")
            if self._typing_lapse is not None:
                self._typing_lapse.cancel()

    async def _converse(self, connection: ClientConnection) -> Leave | Switch:
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
        """Ctrl-C: during a reply its end, at the prompt the end of all."""
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
        try:
            self._connection.view.merge(await self._api.messages(self._conversation_id, limit=_HISTORY_ROWS))
        except (RequestRefused, ServerUnreachable, TokenRefused) as error:
            self._screen.notice(f"(the history cannot be read: {error})", bad=True)
        said = self._said()
        self._known = {one.message_id: one.attempt for one in said if one.ended}
        earlier = [one for one in said if one.ended][-_HISTORY_SHOWN:]
        self._keyboard.write_above("".join(self._whole(one) for one in earlier))
        greeting = self._character.get("greeting")
        if not said and isinstance(greeting, str) and greeting:
            self._keyboard.write_above(self._screen.reply(greeting))

    def _whole(self, exchange: Exchange) -> str:
        text = self._screen.exchange(exchange)
        if exchange.phase is Phase.FAILED:
            text += self._screen.render(self._screen.remark(failure_in_words(exchange), bad=True))
        elif exchange.finish_reason == "stopped":
            text += self._screen.render(self._screen.remark(_STOPPED))
        return text

    def _received(self, frame: Frame, exchange: Exchange | None) -> None:
        if frame.get("type") in {"typing", "echo"}:
            self._show_typing()
        if exchange is not None and exchange.conversation_id == self._conversation_id:
            if self._awaited is not None and self._awaited.is_in(exchange):
                self._follow(exchange, self._awaited)
            elif exchange.ended and exchange.content is not None and self._is_news(exchange):
                self._known[exchange.message_id] = exchange.attempt
                self._keyboard.write_above(self._whole(exchange))
        elif frame.get("type") == "error" and exchange is None:
            self._show_error(frame)

    def _is_news(self, exchange: Exchange) -> bool:
        """Tell whether an outcome was not shown: that of a message of another device, or another answer."""
        return exchange.attempt > self._known.get(exchange.message_id, 0)

    def _show_typing(self) -> None:
        """Tell at the prompt that somebody types on another device; it lapses by itself."""
        active = self._connection.is_typing_elsewhere(self._conversation_id)
        self._keyboard.hint(_TYPING_ELSEWHERE if active else "")
        if self._typing_lapse is not None:
            self._typing_lapse.cancel()
            self._typing_lapse = None
        if active:
            self._typing_lapse = asyncio.get_running_loop().call_later(LAPSE_SECONDS, self._show_typing)

    def _tell_typing(self, line: str) -> None:
        is_message = bool(line.strip()) and not line.startswith("/")
        self._connection.typing(active=is_message, conversation_id=self._conversation_id)

    def _show_error(self, frame: Frame) -> None:
        words = error_in_words(frame)
        if frame.get("temporary") and self._awaited is not None and frame.get("id") == self._awaited.frame_id:
            words += f" Trying again in {frame.get('retry_after', 10):.0f} s."
        self._remark(words, bad=True)

    def _follow(self, exchange: Exchange, awaited: _Awaited) -> None:
        if exchange.phase is Phase.WAITING or exchange.attempt <= awaited.replaces:
            place = f" number {exchange.queue_position} in line" if exchange.queue_position else ""
            self._screen.status(f"…{place}")
        elif exchange.phase is not Phase.FAILED:  # what a failed one shows is the answer before it
            self._screen.show_reply(exchange.text)

    async def _say(self, content: str) -> Leave | None:
        if not content:
            return None
        try:
            awaited = _Awaited(self._connection.send(content))
        except OverflowError:
            self._remark(_TOO_MANY, bad=True)
            return None
        await self._wait_for_reply(awaited)
        return None

    async def _wait_for_reply(self, awaited: _Awaited) -> None:
        """Show a reply to its end, or until somebody stops it: the first time the reply, the second time the wait."""
        self._awaited = awaited
        self._screen.begin_reply()
        self._screen.status("…")
        with self._keyboard.escape_calls(self._interrupted.set), contextlib.suppress(ConnectionEnded):
            if not await self._until_settled(awaited, _FOREVER_SECONDS) and self._stop(self._exchange_of(awaited)):
                await self._until_settled(awaited, _STOP_SECONDS)
        self._leave_reply(awaited)

    async def _until_settled(self, awaited: _Awaited, seconds: float) -> bool:
        def settled() -> bool:
            exchange = self._exchange_of(awaited)
            ended = exchange is not None and awaited.has_ended(exchange)
            return ended or awaited.frame_id in self._connection.refusals

        return await self._unless_interrupted(self._connection.until(settled, timeout_seconds=seconds))

    def _exchange_of(self, awaited: _Awaited) -> Exchange | None:
        view = self._connection.view
        if awaited.message_id is not None:
            return view.exchanges.get(awaited.message_id)
        return view.by_client_id(awaited.frame_id)

    def _stop(self, exchange: Exchange | None) -> bool:
        """Ask for the end of a reply; return whether that was possible."""
        if exchange is None or "stop" not in self._connection.features:
            return False
        try:
            self._connection.stop(exchange.message_id)
        except OverflowError:
            return False
        return True

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

    def _leave_reply(self, awaited: _Awaited) -> None:
        exchange = self._exchange_of(awaited)
        if exchange is not None and awaited.has_ended(exchange):
            self._known[exchange.message_id] = exchange.attempt
            if exchange.phase is Phase.FAILED:
                self._screen.notice(failure_in_words(exchange), bad=True)
            elif exchange.finish_reason == "stopped":
                self._screen.notice(_STOPPED)
        elif awaited.frame_id not in self._connection.refusals:
            self._screen.notice("(the reply will be shown when it is complete)")
        self._screen.end_reply()
        self._awaited = None

    async def _obey(self, line: str) -> Leave | Switch | None:
        command, _, argument = line.partition(" ")
        match command, argument.strip():
            case "/quit" | "/exit" | "/q", _:
                return Leave()
            case "/new", _:
                return Switch(self._character.get("slug"), "new")
            case "/character", slug if slug:
                return await self._switch_to(slug)
            case "/stop", _:
                self._stop_unfinished()
            case "/regenerate", _:
                await self._regenerate()
            case "/characters" | "/character", _:
                await self._list_characters()
            case "/help", _:
                self._screen.notice(_HELP)
            case _:
                self._screen.notice(f"There is no command {command}; /help lists them.", bad=True)
        return None

    def _said(self) -> list[Exchange]:
        """Return what was said in this conversation, the oldest first, as far as it is known here."""
        view = self._connection.view
        return [one for one in view.in_conversation(self._conversation_id) if one.content is not None]

    def _stop_unfinished(self) -> None:
        unfinished = [one for one in self._said() if not one.ended]
        if not unfinished:
            self._screen.notice("No reply is being written.")
        elif not all(map(self._stop, unfinished)):
            self._screen.notice("Replies cannot be stopped here.", bad=True)

    async def _regenerate(self) -> None:
        last = next(reversed(self._said()), None)
        if last is None:
            self._screen.notice("Nothing was said yet.")
        elif "regenerate" not in self._connection.features:
            self._screen.notice("This server writes no other answers.", bad=True)
        elif not last.ended:
            self._screen.notice("The reply is still being written; /stop ends it.")
        else:
            await self._answer_again(last)

    async def _answer_again(self, exchange: Exchange) -> None:
        try:
            frame_id = self._connection.regenerate(exchange.message_id, attempt=exchange.attempt)
        except OverflowError:
            self._remark(_TOO_MANY, bad=True)
            return
        await self._wait_for_reply(_Awaited(frame_id, exchange.message_id, exchange.attempt))

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
