"""The terminal's input: a prompt that is edited in place, read without blocking the event loop."""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from rich.cells import cell_len

from duologue.chat.line_editor import ESCAPE, KeyParser, LineEditor, Outcome

_NEWLINE_SHOWN: Final = "↵"
_USUAL_COLUMNS: Final = 80
_ESCAPE_SECONDS: Final = 0.05
"""After which an Esc is no longer taken as the start of another key's sequence."""
_TYPED_AHEAD: Final = 4096
_PASTES_MARKED: Final = "\x1b[?2004h"
_PASTES_PLAIN: Final = "\x1b[?2004l"


class EndOfInput(Exception):  # an event, not an error
    """The person has ended the input: Ctrl-D, Ctrl-C at the prompt, or the terminal went away."""


class Keyboard:
    """Reads lines from a terminal. Used as `with`, which sets the terminal to single keys and sets it back.

    What is typed while no line is asked for waits in the terminal and comes with the next line. `write` writes to the
    same terminal and flushes.
    """

    def __init__(self, descriptor: int, write: Callable[[str], None], *, prompt: str = "› ") -> None:  # noqa: RUF001
        self._descriptor = descriptor
        self._write = write
        self._prompt = prompt
        self._editor = LineEditor()
        self._parser = KeyParser()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._keys: list[tuple[str, bool]] = []
        self._line: asyncio.Future[str] | None = None
        self._cursor_row = 0
        self._hint = ""
        self._saved: list[Any] = []
        self.on_edit: Callable[[str], None] | None = None
        """Told of the line whenever it has changed."""

    def __enter__(self) -> Self:
        self._saved = termios.tcgetattr(self._descriptor)
        self._single_keys()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCONT, self._continued)
        loop.add_signal_handler(signal.SIGWINCH, self._redraw)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGCONT)
        loop.remove_signal_handler(signal.SIGWINCH)
        self._write(_PASTES_PLAIN)
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)

    async def read_line(self) -> str:
        """Show the prompt and return the line that is entered.

        Raises:
            EndOfInput: there will be no other.
        """
        loop = asyncio.get_running_loop()
        self._line = loop.create_future()
        self._cursor_row = 0
        self._redraw()
        self._work_off()
        loop.add_reader(self._descriptor, self._readable)
        try:
            return await self._line
        finally:
            loop.remove_reader(self._descriptor)
            self._line = None

    def interrupt(self) -> None:
        """End the input, if a line is being asked for."""
        if self._line is not None and not self._line.done():
            self._leave_line()
            self._line.set_exception(EndOfInput())

    def write_above(self, text: str) -> None:
        """Write whole lines above the prompt, or just write them if there is none."""
        if self._line is None or self._line.done():
            self._write(text)
            return
        self._write(self._to_prompt_start() + text)
        self._cursor_row = 0
        self._redraw()

    def hint(self, text: str) -> None:
        """Show a word before the prompt, if the terminal is wide enough; "" for none."""
        if text != self._hint:
            self._hint = text
            self._redraw()

    @contextmanager
    def escape_calls(self, on_escape: Callable[[], None]) -> Iterator[None]:
        """While no line is asked for, call `on_escape` when Esc is pressed; other keys wait for the next line."""
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def read() -> None:
            while timers:
                timers.pop().cancel()
            data = self._read()
            if data is None or len(self._keys) > _TYPED_AHEAD:  # the end is told to whoever asks for the next line
                loop.remove_reader(self._descriptor)
            keys = list(self._parser.feed(data or ""))
            self._keys += [key for key in keys if key != (ESCAPE, True)]
            if (ESCAPE, True) in keys:
                on_escape()
            elif self._parser.may_be_escape:
                timers.append(loop.call_later(_ESCAPE_SECONDS, escaped))

        def escaped() -> None:
            self._parser.drop_escape()
            on_escape()

        loop.add_reader(self._descriptor, read)
        try:
            yield
        finally:
            loop.remove_reader(self._descriptor)
            for timer in timers:
                timer.cancel()
            self._parser.drop_escape()

    def _single_keys(self) -> None:
        tty.setcbreak(self._descriptor, termios.TCSADRAIN)
        attributes = termios.tcgetattr(self._descriptor)
        # Enter is \r then, and differs from Ctrl-J, which starts a new line within the message.
        attributes[tty.IFLAG] &= ~termios.ICRNL
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, attributes)
        self._write(_PASTES_MARKED)

    def _continued(self) -> None:
        self._single_keys()
        self._cursor_row = 0
        self._redraw()

    def _readable(self) -> None:
        data = self._read()
        if data is None:
            self.interrupt()
            return
        self._keys += self._parser.feed(data)
        self._work_off()

    def _read(self) -> str | None:
        """Return what was typed; None at the end, which the next read finds again."""
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:
            return None
        return self._decoder.decode(data) if data else None

    def _work_off(self) -> None:
        """Apply the keys that have come, up to the end of a line: the rest belongs to the next one."""
        while self._keys and self._line is not None and not self._line.done():
            value, is_key = self._keys.pop(0)
            outcome = Outcome.EDITED
            if is_key:
                outcome = self._editor.press(value)
            else:
                self._editor.insert(value)
            self._apply(outcome, self._line)

    def _apply(self, outcome: Outcome, line: asyncio.Future[str]) -> None:
        if outcome is Outcome.ENDED:
            self.interrupt()
        elif outcome is Outcome.SUBMITTED:
            self._leave_line()
            line.set_result(self._editor.take())
        else:
            self._redraw()
        if self.on_edit is not None:
            self.on_edit(self._editor.text)

    def _leave_line(self) -> None:
        self._editor.press("end")
        self._redraw()
        self._write("\n")

    def _redraw(self) -> None:
        if self._line is None or self._line.done():
            return
        columns = os.get_terminal_size(self._descriptor).columns or _USUAL_COLUMNS  # 0: it does not know
        prompt = f"({self._hint}) {self._prompt}" if self._hint and len(self._hint) < columns // 2 else self._prompt
        shown = prompt + self._editor.text.replace("\n", _NEWLINE_SHOWN)
        cursor = len(prompt) + self._editor.cursor
        text, (row, column), last_row = _layout(shown, cursor, columns)
        up = f"\x1b[{last_row - row}A" if last_row > row else ""
        right = f"\x1b[{column}C" if column else ""
        self._write(f"{self._to_prompt_start()}{text}{up}\r{right}")
        self._cursor_row = row

    def _to_prompt_start(self) -> str:
        up = f"\x1b[{self._cursor_row}A" if self._cursor_row else ""
        return f"{up}\r\x1b[J"


def _layout(text: str, cursor: int, columns: int) -> tuple[str, tuple[int, int], int]:
    """Break `text` into rows of `columns` cells.

    Returns:
        The text with its line breaks, row and column of the character at index `cursor`, the number of the last row.
    """
    rows, column, position = [""], 0, (0, 0)
    for index, character in enumerate(text + " "):
        cells = cell_len(character)
        if column + cells >= columns:
            rows.append("")
            column = 0
        if index == cursor:
            position = (len(rows) - 1, column)
        rows[-1] += character
        column += cells
    return "\n".join(rows), position, len(rows) - 1
