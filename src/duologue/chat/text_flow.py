"""Text that arrives in pieces, for a terminal: wrapped at words as it comes, and harmless. No I/O."""

from __future__ import annotations

import re
from typing import Final

from rich.cells import cell_len

_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Return `text` without what a terminal would obey: control characters other than newline and tab, and overrides
    of the writing direction. A model's words must not move the cursor or set the clipboard."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n")).replace("\t", "    ")


class TextFlow:
    """Wraps a growing text into lines of `width` cells.

    Each piece is written at once; a word that turns out too long for its line is taken back and written on the next.
    The last column stays free, since terminals differ in where the cursor is after writing there.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width - 1, 8)
        self._column = 0
        self._word = ""

    @property
    def at_line_start(self) -> bool:
        """Whether nothing is written on the current line."""
        return self._column == 0

    def feed(self, piece: str) -> str:
        """Return what to write so that `piece` follows what was written before."""
        return "".join(map(self._place, harmless(piece)))

    def finish_line(self) -> str:
        """Return what to write so that something else can follow on a new line."""
        return "" if self.at_line_start else self._break()

    def _place(self, character: str) -> str:
        if character == "\n":
            return self._break()
        cells = cell_len(character)
        if character == " ":
            return self._space()
        before = self._make_room(character, cells)
        self._column += cells
        # A wide character is a word of its own: scripts that have them set no spaces.
        self._word = "" if cells > 1 else self._word + character
        return before + character

    def _space(self) -> str:
        self._word = ""
        if self._column >= self._width:
            return self._break()
        self._column += 1
        return " "

    def _make_room(self, character: str, cells: int) -> str:
        if self._column + cells <= self._width:
            return ""
        word, length = self._word, cell_len(self._word)
        if cells > 1 or length == self._column:
            return self._break()
        taken_back = f"\x1b[{length}D\x1b[K" if length else ""
        self._break()
        self._column, self._word = length, word
        return f"{taken_back}\n{word}"

    def _break(self) -> str:
        self._column, self._word = 0, ""
        return "\n"
