"""What a conversation at a terminal makes of keys and frames: stopping, another answer, typing on another device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import pytest

from duologue.chat.keyboard import EndOfInput, Keyboard
from duologue.chat.screen import Screen
from duologue.chat.session import ChatSession, Leave
from duologue.client.connection import ClientConnection
from duologue.client.conversation_view import ConversationView, Frame
from duologue.client.event_feed import EventFeed
from duologue.client.events import Open, Received
from duologue.client.http_api import HttpApi
from duologue.client.typing_state import TypingElsewhere

FEATURES = frozenset({"stop", "regenerate", "typing"})


class Api:
    """An empty server over HTTP."""

    async def characters(self) -> list[Frame]:
        return []

    async def messages(self, conversation_id: str, *, limit: int) -> list[Frame]:
        return []


class Connection:
    """A connection whose server the test plays."""

    def __init__(self) -> None:
        self.view = ConversationView()
        self.state = Open({"type": "connection", "conversation_id": "c"})
        self.features = FEATURES
        self.refusals: dict[str, Frame] = {}
        self.sent: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.typed: list[bool] = []
        self._elsewhere = TypingElsewhere()
        self._feed = EventFeed()
        self.session: ChatSession

    def send(self, content: str) -> str:
        self.sent.put_nowait(("message", content))
        return content

    def stop(self, message_id: str) -> str:
        self.sent.put_nowait(("stop", message_id))
        return f"stop {message_id}"

    def regenerate(self, message_id: str, *, attempt: int) -> str:
        self.sent.put_nowait(("regenerate", f"{message_id} {attempt}"))
        return f"regenerate {message_id}"

    def typing(self, *, active: bool, conversation_id: str) -> None:
        assert conversation_id == "c"
        self.typed.append(active)

    def is_typing_elsewhere(self, conversation_id: str) -> bool:
        return self._elsewhere.is_active(conversation_id, now=1.0)

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float) -> None:
        await self._feed.until(condition, timeout_seconds=timeout_seconds)

    async def give(self, *frames: Frame) -> None:
        """Let frames come."""
        for frame in frames:
            if frame["type"] == "error" and "id" in frame:
                self.refusals[frame["id"]] = frame
            self._elsewhere.feed(frame, now=1.0)
            event = Received(frame, self.view.feed(frame))
            self.session.attend(event)
            await self._feed.publish(event)

    async def commanded(self) -> tuple[str, str]:
        """Return what is sent next."""
        return await asyncio.wait_for(self.sent.get(), 5)


class Keys:
    """A keyboard at which the test enters lines."""

    def __init__(self) -> None:
        self.on_edit: Callable[[str], None] | None = None
        self.hints: list[str] = []
        self.above = ""
        self.asked = asyncio.Event()
        self.escape: Callable[[], None] | None = None
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def read_line(self) -> str:
        self.asked.set()
        line = await self._lines.get()
        if line is None:
            raise EndOfInput
        return line

    def interrupt(self) -> None:
        if self.asked.is_set():
            self.asked.clear()
            self._lines.put_nowait(None)

    def enter(self, line: str) -> None:
        self.asked.clear()
        self._lines.put_nowait(line)

    def write_above(self, text: str) -> None:
        self.above += text

    def hint(self, text: str) -> None:
        self.hints.append(text)

    @contextmanager
    def escape_calls(self, on_escape: Callable[[], None]) -> Iterator[None]:
        self.escape = on_escape
        yield
        self.escape = None


class Chat:
    """A conversation under way."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.connection = Connection()
        self.keys = Keys()
        self._capsys = capsys
        self._shown = ""

    @property
    def shown(self) -> str:
        """What was written to the terminal since the last look."""
        return self._capsys.readouterr().out

    async def say(self, content: str) -> None:
        """Enter a message, which the server takes as `m-…`."""
        self.keys.enter(content)
        assert await self.connection.commanded() == ("message", content)
        await self.connection.give(echo(content))

    async def answered(self, content: str, answer: str) -> None:
        """Have something answered, and wait for the prompt."""
        await self.say(content)
        await self.connection.give(response(content, answer))
        await self.prompt()

    async def prompt(self) -> None:
        """Wait until the next line is asked for."""
        await asyncio.wait_for(self.keys.asked.wait(), 5)


@pytest.fixture
async def chat(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Chat]:
    async with running(capsys) as chat:
        yield chat


@asynccontextmanager
async def running(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Chat]:
    chat = Chat(capsys)
    session = chat.connection.session = ChatSession(
        cast("HttpApi", Api()), cast("Keyboard", chat.keys), Screen(), user="ada", server="here"
    )
    session._conversation_id = "c"
    task = asyncio.create_task(session.run(cast("ClientConnection", chat.connection)))
    await chat.prompt()
    assert "here" in chat.shown
    yield chat
    await chat.prompt()
    chat.keys.enter("/quit")
    assert await asyncio.wait_for(task, 5) == Leave()
    assert chat.keys.on_edit is None


def echo(content: str) -> Frame:
    return {
        "type": "echo", "id": content, "message_id": f"m-{content}", "conversation_id": "c", "content": content,
        "timestamp": "now",
    }  # fmt: skip


def delta(content: str, text: str, *, attempt: int = 1) -> Frame:
    return {"type": "delta", "message_id": f"m-{content}", "attempt": attempt, "seq": 1, "content": text}


def response(content: str, text: str, *, attempt: int = 1, **fields: Any) -> Frame:
    return {"type": "response", "message_id": f"m-{content}", "attempt": attempt, "content": text, **fields}


def typing(active: bool) -> Frame:
    return {"type": "typing", "role": "user", "conversation_id": "c", "active": active}


@pytest.mark.parametrize("by_escape", [True, False])
async def test_reply_that_is_interrupted_is_stopped_and_shown_as_far_as_it_came(chat: Chat, by_escape: bool) -> None:
    await chat.say("hello")
    await chat.connection.give(delta("hello", "Once upon"))
    assert chat.keys.escape is not None
    interrupt = chat.keys.escape if by_escape else chat.connection.session.interrupt
    interrupt()
    assert await chat.connection.commanded() == ("stop", "m-hello")
    await chat.connection.give(response("hello", "Once upon a", finish_reason="stopped"))
    await chat.prompt()
    shown = chat.shown
    assert "Once upon a" in shown
    assert shown.index("Once upon a") < shown.index("(stopped)")


async def test_reply_that_was_complete_before_its_stop_is_not_called_stopped(chat: Chat) -> None:
    await chat.say("hello")
    chat.connection.session.interrupt()
    await chat.connection.commanded()
    await chat.connection.give(response("hello", "whole", finish_reason="stop"))
    await chat.prompt()
    assert "(stopped)" not in chat.shown


async def test_second_interrupt_leaves_the_reply_and_shows_it_when_it_is_there(chat: Chat) -> None:
    await chat.say("hello")
    chat.connection.session.interrupt()
    await chat.connection.commanded()
    chat.connection.session.interrupt()
    await chat.prompt()
    assert "will be shown" in chat.shown
    await chat.connection.give(response("hello", "late words", finish_reason="stopped"))
    assert "late words" in chat.keys.above
    assert "(stopped)" in chat.keys.above


async def test_server_that_stops_nothing_lets_the_reply_go_on(chat: Chat) -> None:
    chat.connection.features = frozenset()
    await chat.say("hello")
    chat.connection.session.interrupt()
    await chat.prompt()
    assert "will be shown" in chat.shown
    assert chat.connection.sent.empty()
    chat.keys.enter("/regenerate")
    await chat.prompt()


async def test_regenerate_shows_the_other_answer_and_nothing_of_the_first(chat: Chat) -> None:
    await chat.answered("hello", "first words")
    assert "first words" in chat.shown
    chat.keys.enter("/regenerate")
    assert await chat.connection.commanded() == ("regenerate", "m-hello 1")
    await chat.connection.give(
        {"type": "queued", "message_id": "m-hello", "position": 2, "eta_ms": 0},
        response("hello", "first words"),
        {"type": "reset", "message_id": "m-hello", "attempt": 2, "reason": "regenerate"},
        delta("hello", "other words", attempt=2),
        response("hello", "other words", attempt=2),
    )
    await chat.prompt()
    shown = chat.shown
    assert "number 2 in line" in shown
    assert "other words" in shown
    assert "first words" not in shown


async def test_regenerate_that_fails_tells_why_and_does_not_repeat_the_first_answer(chat: Chat) -> None:
    await chat.answered("hello", "first words")
    assert chat.shown
    chat.keys.enter("/regenerate")
    await chat.connection.commanded()
    failed = {"type": "error", "code": "generation_failed", "message": "too busy", "message_id": "m-hello"}
    await chat.connection.give({**failed, "attempt": 2})
    await chat.prompt()
    shown = chat.shown
    assert "too busy" in shown
    assert "first words" not in shown


async def test_regenerate_that_is_refused_returns_to_the_prompt_with_the_reason(chat: Chat) -> None:
    await chat.answered("hello", "first words")
    chat.keys.enter("/regenerate")
    await chat.connection.commanded()
    error = {"type": "error", "code": "not_last", "message": "only the last", "id": "regenerate m-hello"}
    await chat.connection.give(error)
    await chat.prompt()
    assert "Only the last." in chat.shown


async def test_regenerate_and_stop_without_anything_to_work_on_say_so(chat: Chat) -> None:
    for line, words in (("/regenerate", "Nothing was said"), ("/stop", "No reply is being written")):
        chat.keys.enter(line)
        await chat.prompt()
        assert words in chat.shown


async def test_stop_at_the_prompt_ends_what_another_device_has_asked(chat: Chat) -> None:
    await chat.connection.give(echo("elsewhere"), delta("elsewhere", "some "))
    chat.keys.enter("/regenerate")
    await chat.prompt()
    assert "still being written" in chat.shown
    chat.keys.enter("/stop")
    assert await chat.connection.commanded() == ("stop", "m-elsewhere")
    await chat.connection.give(response("elsewhere", "some ", finish_reason="stopped"))
    assert "(stopped)" in chat.keys.above


async def test_other_answer_that_another_device_has_asked_for_is_shown(chat: Chat) -> None:
    await chat.answered("hello", "first words")
    await chat.connection.give(response("hello", "first words"), response("hello", "other words", attempt=2))
    assert "other words" in chat.keys.above
    assert "first words" not in chat.keys.above


async def test_typing_is_told_and_shown(chat: Chat) -> None:
    assert chat.keys.on_edit is not None
    for line in ("H", "/he", " ", "Hello"):
        chat.keys.on_edit(line)
    assert chat.connection.typed == [True, False, False, True]
    await chat.connection.give(typing(True), typing(False), typing(True), echo("elsewhere"))
    assert [bool(hint) for hint in chat.keys.hints] == [True, False, True, False]
