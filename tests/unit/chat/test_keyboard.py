from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from duologue.chat.keyboard import EndOfInput, Keyboard, _layout


@dataclass
class Desk:
    """A keyboard on a pseudo-terminal of 40 columns, and the end at which keys are pressed."""

    ours: int
    keyboard: Keyboard
    written: list[str] = field(default_factory=list)

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    before = termios.tcgetattr(theirs)
    written: list[str] = []
    with Keyboard(theirs, written.append) as keyboard:
        yield Desk(ours, keyboard, written)
    assert termios.tcgetattr(theirs)[:4] == before[:4]
    os.close(ours)
    os.close(theirs)


async def test_line_is_read_with_its_edits(desk: Desk) -> None:
    desk.press("helo\x1b[Dl\r")
    assert await asyncio.wait_for(desk.keyboard.read_line(), 5) == "hello"


async def test_lines_typed_ahead_come_one_by_one(desk: Desk) -> None:
    desk.press("one\rtwo\rthr")
    assert await asyncio.wait_for(desk.keyboard.read_line(), 5) == "one"
    assert await asyncio.wait_for(desk.keyboard.read_line(), 5) == "two"
    desk.press("ee\r")
    assert await asyncio.wait_for(desk.keyboard.read_line(), 5) == "three"


@pytest.mark.parametrize("by_key", [True, False])
async def test_end_of_input_is_raised(desk: Desk, by_key: bool) -> None:
    reading = asyncio.create_task(desk.keyboard.read_line())
    await asyncio.sleep(0)
    if by_key:
        desk.press("\x04")
    else:
        desk.keyboard.interrupt()
    with pytest.raises(EndOfInput):
        await asyncio.wait_for(reading, 5)


async def test_text_above_the_prompt_leaves_the_line_as_it_was(desk: Desk) -> None:
    reading = asyncio.create_task(desk.keyboard.read_line())
    await asyncio.sleep(0)
    desk.written.clear()
    desk.keyboard.write_above("news\n")
    assert "".join(desk.written).startswith("\r\x1b[Jnews\n")
    desk.press("x\r")
    assert await asyncio.wait_for(reading, 5) == "x"
    desk.written.clear()
    desk.keyboard.write_above("plain\n")
    assert desk.written == ["plain\n"]


@pytest.mark.parametrize("keys", ["\x1b", "\x1b\x1b", "ab\x1b"])
async def test_escape_is_told_while_no_line_is_asked_for(desk: Desk, keys: str) -> None:
    pressed = asyncio.Event()
    with desk.keyboard.escape_calls(pressed.set):
        desk.press(keys)
        await asyncio.wait_for(pressed.wait(), 5)
    desk.press("c\r")
    assert await asyncio.wait_for(desk.keyboard.read_line(), 5) == keys.replace("\x1b", "") + "c"


async def test_keys_typed_while_escape_is_listened_for_come_with_the_next_line(desk: Desk) -> None:
    pressed = asyncio.Event()
    with desk.keyboard.escape_calls(pressed.set):
        desk.press("ad\x1b[Dbc\x1b")  # an arrow is no Esc
        await asyncio.wait_for(pressed.wait(), 5)
    desk.press("\r")
    assert await asyncio.wait_for(desk.keyboard.read_line(), 5) == "abcd"


async def test_edits_are_told_with_the_line(desk: Desk) -> None:
    lines: list[str] = []
    desk.keyboard.on_edit = lines.append
    desk.press("ab\x7f\r")
    await asyncio.wait_for(desk.keyboard.read_line(), 5)
    assert lines[-3:] == ["ab", "a", ""]


async def test_hint_stands_before_the_prompt_if_it_fits(desk: Desk) -> None:
    reading = asyncio.create_task(desk.keyboard.read_line())
    await asyncio.sleep(0)
    desk.keyboard.hint("news")
    assert "(news) › " in desk.written[-1]  # noqa: RUF001
    desk.keyboard.hint("x" * 20)
    assert "x" not in desk.written[-1]
    desk.keyboard.hint("")
    assert "(" not in desk.written[-1]
    desk.press("a\r")
    assert await asyncio.wait_for(reading, 5) == "a"


@given(text=st.text(st.sampled_from("ab 日é"), max_size=60), columns=st.integers(4, 20), where=st.floats(0, 1))
def test_layout_keeps_within_the_columns_and_finds_the_cursor(text: str, columns: int, where: float) -> None:
    cursor = round(where * len(text))
    laid_out, (row, column), last = _layout(text, cursor, columns)
    rows = laid_out.split("\n")
    assert len(rows) == last + 1
    assert all(cell_len(one) < columns for one in rows)
    assert "".join(rows) == text + " "
    before = "".join(rows[:row])
    assert len(before) <= cursor
    assert cell_len(text[len(before) : cursor]) == column
